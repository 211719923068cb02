"""A task that was given up gets a final state, so that nobody waits for it for ever."""

from __future__ import annotations

from typing import Any

from celery import bootsteps
from celery.app.task import Context
from celery.exceptions import WorkerLostError


class ReportDead(bootsteps.StartStopStep):
    """Fails what the transport sets aside as Celery does: its chord, chain and errbacks too."""

    requires = ("celery.worker.consumer.tasks:Tasks", "celery.worker.consumer.events:Events")

    def start(self, consumer: Any) -> None:
        def report(message: Any, reason: str) -> None:
            task_id, task = message.headers["id"], message.headers["task"]
            error = WorkerLostError(f"{task} was given up: {reason}")
            message.accept = consumer.task_consumer.accept
            request = _context_of(message, consumer.hostname)
            consumer.app.backend.mark_as_failure(task_id, error, request=request)
            if consumer.event_dispatcher is not None:
                consumer.event_dispatcher.send(
                    "task-failed", uuid=task_id, exception=repr(error), traceback=""
                )

        consumer.connection.connection.dead.on_dead = report


def _context_of(message: Any, hostname: str) -> Context:
    """Return what Celery's `Request` makes of a message; the task may be unknown to this worker."""
    args, kwargs, embed = message.payload
    properties = message.properties
    return Context(
        {
            **message.headers,
            **(embed or {}),
            "args": args,
            "kwargs": kwargs,
            "hostname": hostname,
            "properties": properties,
            "reply_to": properties.get("reply_to"),
            "correlation_id": properties.get("correlation_id"),
            "delivery_info": message.delivery_info,
        }
    )
