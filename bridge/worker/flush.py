"""A pool whose worker has lost its connection, or is about to stop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery import bootsteps


class KeepWritten(bootsteps.StartStopStep):
    """Has a prefork pool remember the tasks that a child has got but not yet begun.

    When the consumer closes, Celery drops every task that no child has said to have begun, to be
    delivered again. One that is in a child's pipe runs all the same: its result is not read, so
    it is not acknowledged and runs a second time elsewhere, and the child waits 30 s for someone
    to read it, and the worker for the child.
    """

    requires = ("celery.worker.components:Pool",)

    def start(self, worker: Any) -> None:
        if worker.use_eventloop and worker.pool.uses_semaphore:
            worker.pool.flush = _Flush(worker.pool._pool)
            worker.pool._pool.get_process_queues = _spare_queues(worker.pool._pool)
            worker.pool._pool.register_with_event_loop = _watched_anew(worker.pool._pool)


def _spare_queues(pool: Any) -> Callable[[], Any]:
    """Return Celery's choice of pipes for a new process; where there are none it makes some.

    Those of a process that is killed while its worker loses the connection are not given free, and
    Celery's worker ends over that.
    """
    get_free: Callable[[], Any] = pool.get_process_queues

    def get_process_queues() -> Any:
        if None not in pool._queues.values():
            pool._queues[pool.create_process_queues()] = None
        return get_free()

    return get_process_queues


def _watched_anew(pool: Any) -> Callable[[Any], None]:
    """Return Celery's registration of a pool with the hub of a new connection.

    A process that was just seen to end, and is not yet reaped, is watched no more and still in the
    pool. Celery's worker ends over that; here it is seen to end once more.
    """
    register: Callable[[Any], None] = pool.register_with_event_loop

    def register_with_event_loop(hub: Any) -> None:
        pool.maintain_pool()
        for process in pool._pool:
            if getattr(process, "_sentinel_poll", 0) is None:
                del process._sentinel_poll
        register(hub)

    return register_with_event_loop


class _Flush:
    """Celery's flush of a pool, without what is in a child's pipe already."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._flush = pool.flush

    def __call__(self) -> None:
        written = [job for job in self._pool._cache.values() if self._is_written(job)]
        self._flush()
        for job in written:
            if job._write_to._is_alive() and not job.ready():
                self._pool._cache[job._job] = job
                self._pool._busy_workers.add(job._write_to.inqW_fd)

    def _is_written(self, job: Any) -> bool:
        child = job._write_to
        unfinished = child is None or child.inqW_fd in self._pool._active_writes
        return not job._accepted and not unfinished
