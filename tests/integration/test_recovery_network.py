"""The network between a real worker and its server fails."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery

from bridge.wire import SILENCE_SECONDS
from tests.support.celery_client import close_app, make_app
from tests.support.nats import NatsServer
from tests.support.proxy import Proxy
from tests.support.recovery import BACK_SECONDS, IN_FLIGHT, PATIENCE_SECONDS, Notebook, worker_on


@pytest.fixture
def idle_app(nats_server: NatsServer) -> Iterator[Celery]:
    """The same for a queue that stays empty."""
    app = make_app(nats_server.url, task_default_queue="idle")
    yield app
    close_app(app)


@pytest.fixture
def proxy(nats_server: NatsServer) -> Iterator[Proxy]:
    with Proxy(nats_server.port) as proxy:
        yield proxy


def test_connections_reset(app: Celery, proxy: Proxy, tmp_path: Path) -> None:
    """RST in the middle of a backlog, on every connection: five seconds later all is well."""
    notebook = Notebook(app, tmp_path / "ran")
    with worker_on(proxy.url, tmp_path) as worker:
        notebook.send_many(40, 0.05)
        notebook.wait_for("end t5")

        assert proxy.reset() > 0
        reset = time.monotonic()
        notebook.send("afterwards").get(timeout=20)

        assert time.monotonic() - reset < BACK_SECONDS
        notebook.assert_none_lost(IN_FLIGHT)
        worker.stop()


def test_peer_falls_silent(app: Celery, idle_app: Celery, proxy: Proxy, tmp_path: Path) -> None:
    """A half-open connection, of which no packet tells, is given up and another one made.

    Also by a worker that has never had a task. It takes as long as a live server may be silent.
    """
    busy, idle = Notebook(app, tmp_path / "busy"), Notebook(idle_app, tmp_path / "idle")
    with (
        worker_on(proxy.url, tmp_path, name="busy-worker") as first,
        worker_on(
            proxy.url, tmp_path, name="idle-worker", arguments=("-Q", "idle"), concurrency=1
        ) as second,
    ):
        second.wait_for_log(" ready.")
        busy.send_many(40, 0.05)
        busy.wait_for("end t5")

        assert proxy.silence() > 0
        silent = time.monotonic()
        for result in [notebook.send("afterwards") for notebook in (busy, idle)]:
            result.get(timeout=PATIENCE_SECONDS)

        # The other connections of a worker are as silent, and a request on one takes its time too.
        assert time.monotonic() - silent < SILENCE_SECONDS + 2 * BACK_SECONDS
        busy.assert_none_lost(IN_FLIGHT)
        first.stop()
        second.stop()
