"""A task that was given up gets a final state, so that nobody waits for it for ever."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celery import bootsteps, states
from celery.exceptions import WorkerLostError


class ReportDead(bootsteps.StartStopStep):
    """Stores FAILURE and sends `task-failed` for what the transport sets aside."""

    requires = ("celery.worker.consumer.tasks:Tasks", "celery.worker.consumer.events:Events")

    def start(self, consumer: Any) -> None:
        def report(headers: Mapping[str, Any], reason: str) -> None:
            error = WorkerLostError(f"{headers['task']} was given up: {reason}")
            consumer.app.backend.store_result(headers["id"], error, states.FAILURE)
            if consumer.event_dispatcher is not None:
                consumer.event_dispatcher.send(
                    "task-failed", uuid=headers["id"], exception=repr(error), traceback=""
                )

        consumer.connection.connection.dead.on_dead = report
