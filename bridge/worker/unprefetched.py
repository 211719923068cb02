"""`worker_disable_prefetch`: a worker takes a task only where it can begin at once."""

from __future__ import annotations

from typing import Any

from celery import bootsteps
from celery.worker import state


class DisablePrefetch(bootsteps.StartStopStep):
    """Leaves to others what this worker's pool has no slot for, in addition to the prefetch."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, consumer: Any) -> None:
        def room() -> int:
            # As Celery counts on Redis: with an autoscaler, up to the largest pool there may be.
            slots = consumer.controller.max_concurrency or consumer.pool.num_processes
            return int(slots) - len(state.reserved_requests)

        consumer.task_consumer.channel.intake.room = room


def install(app: Any) -> None:
    """Take the setting over from Celery, which knows how to keep it on Redis only, and warns."""
    if app.conf.worker_disable_prefetch:
        app.conf.worker_disable_prefetch = False
        app.steps["consumer"].add(DisablePrefetch)
