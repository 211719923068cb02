"""What `pool_resize` refuses, and how prefetch is computed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from celery.worker import state as worker_state
from kombu.common import QoS

from bridge.worker import resize


class RecordedSize:
    """A pool that does what it is told and keeps it."""

    serving = 2
    pending_shrink = 0

    def resize(self, target: int) -> None:
        self.serving = target

    def settle(self) -> None:
        """Nothing is ever left to do here."""


def state(*, size: Any = None, prefetch: int = 8, autoscaler: Any = None) -> SimpleNamespace:
    """Return what Celery hands to a control command, of a worker with 2 slots."""
    app = SimpleNamespace(steps={"worker": {resize.Resizing}})
    controller = SimpleNamespace(app=app, pool=object(), pool_size=size, autoscaler=autoscaler)
    consumer = SimpleNamespace(
        controller=controller,
        prefetch_multiplier=4,
        initial_prefetch_count=prefetch,
        qos=QoS(lambda prefetch_count: None, prefetch),
    )
    return SimpleNamespace(consumer=consumer)


@pytest.mark.parametrize("target", [0, -1, True, "4", None, 2.0])
def test_target_that_is_no_size_is_refused(target: object) -> None:
    """Zero slots would mean no prefetch limit at all; what is no number is told so."""
    size = RecordedSize()

    answer = resize.pool_resize(state(size=size), target)

    assert answer["error"].startswith("target must be a whole number of at least 1")
    assert size.serving == 2


def test_worker_that_scales_itself_is_refused() -> None:
    """Two that set one size would undo each other's work."""
    answer = resize.pool_resize(state(size=RecordedSize(), autoscaler=object()), 3)

    assert "--autoscale" in answer["error"]


def test_worker_on_another_broker_is_told_what_it_has() -> None:
    """A worker that this package did not set up is pointed to Celery's own commands."""
    foreign = state()
    foreign.consumer.controller.app.steps["worker"].clear()

    assert "pool_grow" in resize.pool_resize(foreign, 3)["error"]


@pytest.mark.parametrize("target", [1, 2, 5])
def test_prefetch_is_size_times_multiplier_plus_waiting_etas(
    monkeypatch: pytest.MonkeyPatch, target: int
) -> None:
    """Whatever the count was before, also a wrong one, it is right after a resize."""
    monkeypatch.setattr(worker_state, "scheduled_requests", {"a", "b", "c"})
    given = state(size=RecordedSize())
    given.consumer.qos.value = 40

    resize.pool_resize(given, target)

    assert given.consumer.qos.value == target * 4 + 3
    assert given.consumer.initial_prefetch_count == target * 4


def test_prefetch_without_limit_stays_so() -> None:
    """A worker started with --prefetch-multiplier 0 keeps 0, which is no limit."""
    given = state(size=RecordedSize(), prefetch=0)

    resize.pool_resize(given, 5)

    assert given.consumer.qos.value == 0
