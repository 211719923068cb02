"""A task is in an idle pool process's pipe before anything else is done."""

from __future__ import annotations

from functools import partial
from typing import Any

from celery import bootsteps


class HandOver(bootsteps.StartStopStep):
    """Has a prefork pool write what just came at once, where a process is idle.

    Celery waits for the next turn of its hub: the process would start only after acknowledgements
    and pulls went out, and this one has asked the kernel once more. 5 % of `AsyncResult.get()`.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, consumer: Any) -> None:
        if consumer.hub is not None and consumer.pool.uses_semaphore:
            connection = consumer.connection.connection
            connection.on_delivered = partial(_write, consumer.pool, consumer.hub)


def _write(task_pool: Any, hub: Any) -> None:
    pool = task_pool._pool
    if not pool.outbound_buffer:
        return
    idle = pool._all_inqueues - pool._active_writes - pool._busy_workers
    if idle:
        hub.consolidate_callback(list(idle))
