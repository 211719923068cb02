"""Flower is extended where it runs, for `nats://`, and nowhere else."""

from __future__ import annotations

import logging
import subprocess
import sys

import flower.app
import flower.views
import pytest
from celery import Celery
from flower.events import Events

import bridge.flower
from bridge.flower.events import StoredEvents


@pytest.fixture(autouse=True)
def flower_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put back what a test replaces."""
    monkeypatch.setattr(flower.app, "Events", Events)
    handler = flower.views.BaseHandler
    monkeypatch.setattr(handler, "get_broker", bridge.flower._flowers_get_broker)


def test_nats_app_gets_both(caplog: pytest.LogCaptureFixture) -> None:
    """Broker tab and stored events are in place, without a warning on the tested release."""
    bridge.flower.install(Celery(broker="nats://localhost"))

    assert flower.app.Events is StoredEvents
    assert flower.views.BaseHandler.get_broker is not bridge.flower._flowers_get_broker
    assert not caplog.records


def test_other_brokers_are_left_alone() -> None:
    """Flower for an app on another broker stays as it comes."""
    bridge.flower.install(Celery(broker="memory://"))

    assert flower.app.Events is Events
    assert flower.views.BaseHandler.get_broker is bridge.flower._flowers_get_broker


def test_other_event_exchange_stays_live() -> None:
    """Events that the stream does not keep are still received by Flower itself."""
    app = Celery(broker="nats://localhost")
    app.conf.event_exchange = "elsewhere"

    bridge.flower.install(app)

    assert flower.app.Events is Events


def test_untested_release_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever runs another Flower learns which one is tested."""
    monkeypatch.setattr(bridge.flower, "version", lambda _: "2.20.1")

    with caplog.at_level(logging.WARNING):
        bridge.flower.install(Celery(broker="nats://localhost"))

    assert "this is Flower 2.20.1, tested is 2.2" in caplog.text


def test_worker_does_not_load_it() -> None:
    """The same signal in a process that is no Flower loads nothing of Flower's extension."""
    script = (
        "import sys, bridge.worker.plugin\n"
        "from celery import Celery, signals\n"
        "Celery(broker='nats://localhost').loader.import_default_modules()\n"
        "sys.exit('bridge.flower' in sys.modules or 'tornado' in sys.modules)\n"
    )

    assert subprocess.run([sys.executable, "-c", script], timeout=60, check=False).returncode == 0
