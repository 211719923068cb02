"""Control command `pool_resize`: an absolute size for a running worker's pool (ADR 0007).

`celery -A app control pool_resize 4 --destination worker@host` sends it by hand.
"""

from __future__ import annotations

import logging
from typing import Any, Protocol

from celery import bootsteps
from celery.worker import components
from celery.worker import state as worker_state
from celery.worker.control import control_command

from bridge.worker.flush import KeepWritten
from bridge.worker.prefork import PreforkSize, Slots

logger = logging.getLogger("nats")

_AUTOSCALE = (
    "this worker scales itself: start it without --autoscale, or change the range with "
    "`celery control autoscale`"
)
_TARGET = "target must be a whole number of at least 1, not {!r}"
_FIXED = (
    "a pool of type {} keeps the size it was started with: restart the worker with another "
    "--concurrency, or with --pool prefork or gevent"
)
_NOT_OURS = "this worker's broker is not NATS: use pool_grow and pool_shrink"


class PoolSize(Protocol):
    """How one type of pool is resized."""

    @property
    def serving(self) -> int:
        """Slots that take tasks."""

    @property
    def pending_shrink(self) -> int:
        """Slots above the wanted size that go once their task has ended."""

    def resize(self, target: int) -> None:
        """Bring the pool to `target` slots without ending a task."""

    def settle(self) -> None:
        """Finish what could not be done at once."""


class GreenSize:
    """A pool of greenlets (gevent, eventlet): a limit on how many run at a time."""

    def __init__(self, task_pool: Any) -> None:
        self._task_pool = task_pool

    @property
    def serving(self) -> int:
        return int(self._task_pool.limit) + self.pending_shrink

    @property
    def pending_shrink(self) -> int:
        return max(len(self._task_pool._pool_map) - int(self._task_pool.limit), 0)

    def resize(self, target: int) -> None:
        change = target - self._task_pool.limit
        if change > 0:
            self._task_pool.grow(change)
        elif change < 0:
            self._task_pool.shrink(-change)

    def settle(self) -> None:
        """Nothing is left to do: the limit holds from the next task on."""


class Resizing(bootsteps.StartStopStep):
    """Makes a worker's pool resizable where its type allows it, and shows so in its stats."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        worker.pool_size = None

    def create(self, worker: Any) -> None:
        pool = worker.pool
        if getattr(pool, "is_green", False):
            worker.pool_size = GreenSize(pool)
        elif isinstance(worker.semaphore, Slots) and pool.uses_semaphore:
            worker.pool_size = PreforkSize(pool, worker.hub)

    def register_with_event_loop(self, worker: Any, hub: Any) -> None:
        if worker.pool_size is not None:
            hub.on_tick.add(worker.pool_size.settle)

    def info(self, worker: Any) -> dict[str, Any]:
        """Part of `inspect stats`: there only where `pool_resize` works."""
        size: PoolSize | None = worker.pool_size
        if size is None or worker.autoscaler:
            return {}
        return {"pool_resize": {"serving": size.serving, "pending_shrink": size.pending_shrink}}


def install(app: Any) -> None:
    """Make the worker that `app` is about to start resizable, and its pool exact."""
    # Celery builds the pool's permits from this name.
    components.LaxBoundedSemaphore = Slots
    app.steps["worker"].update({Resizing, KeepWritten})


@control_command(args=[("target", int)], signature="<target>")
def pool_resize(state: Any, target: Any, **_: Any) -> dict[str, Any]:
    """Bring the pool to TARGET processes or greenlets without ending a task.

    Saying it twice is the same as once. Answers with the slots that take tasks `before` and
    `after`, the `target`, and `pending_shrink`: how many go as soon as their task has ended.
    Where it cannot be done the answer has one key, `error`, with what to do.
    """
    worker = state.consumer.controller
    size: PoolSize | None = getattr(worker, "pool_size", None)
    if refusal := _refusal(worker, size, target):
        return {"error": refusal}
    assert size is not None
    before = size.serving
    size.resize(target)
    _follow_with_prefetch(state.consumer, target)
    answer = {
        "before": before,
        "after": size.serving,
        "target": target,
        "pending_shrink": size.pending_shrink,
    }
    logger.info("pool resized: %s", answer)
    return answer


def _refusal(worker: Any, size: PoolSize | None, target: Any) -> str:
    """Why this cannot be done; empty when it can."""
    if not isinstance(target, int) or isinstance(target, bool) or target < 1:
        return _TARGET.format(target)
    if worker.autoscaler:
        return _AUTOSCALE
    if size is None:
        resizable = Resizing in worker.app.steps["worker"]
        return _FIXED.format(type(worker.pool).__module__) if resizable else _NOT_OURS
    return ""


def _follow_with_prefetch(consumer: Any, target: int) -> None:
    """Let the worker hold as many tasks as its new size is worth, plus those waiting for an ETA.

    Computed from nothing but the present state: a sum of changes would keep every error made
    on the way, and 0 would mean no limit at all.
    """
    full = target * consumer.prefetch_multiplier
    if not consumer.initial_prefetch_count or not full:
        return
    consumer.initial_prefetch_count = full
    change = full + len(worker_state.scheduled_requests) - consumer.qos.value
    if change > 0:
        consumer.qos.increment_eventually(change)
    elif change < 0:
        consumer.qos.decrement_eventually(-change)
