"""`worker_disable_prefetch`: a worker takes a task only where it can begin at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery import bootsteps
from celery.worker import state

from bridge.transport.broker import BrokerConnection


class DisablePrefetch(bootsteps.StartStopStep):
    """Leaves to others what this worker's pool has no slot for, in addition to the prefetch."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._connection: BrokerConnection | None = None
        if not consumer.pool.uses_semaphore:  # prefork's, whose results come to the reader itself
            self._watch_ends(consumer.pool)

    def start(self, consumer: Any) -> None:
        def room() -> int:
            # As Celery counts on Redis: with an autoscaler, up to the largest pool there may be.
            slots = consumer.controller.max_concurrency or consumer.pool.num_processes
            return int(slots) - len(state.reserved_requests)

        consumer.task_consumer.channel.intake.room = room
        self._connection = consumer.connection.connection

    def _watch_ends(self, pool: Any) -> None:
        """Tell the reader when a task has ended, which Celery tells only the task's request.

        A late acknowledgement says it too, an early one came before.
        """

        def then_ask(callback: Callable[..., None]) -> Callable[..., None]:
            def ended(*args: Any, **kwargs: Any) -> None:
                try:
                    callback(*args, **kwargs)
                finally:
                    if self._connection is not None:
                        self._connection.ask_for_more()

            return ended

        apply = pool.on_apply

        def on_apply(*args: Any, **options: Any) -> Any:
            for name in ("callback", "timeout_callback"):
                if name in options:
                    options[name] = then_ask(options[name])
            return apply(*args, **options)

        pool.on_apply = on_apply


def install(app: Any) -> None:
    """Take the setting over from Celery, which knows how to keep it on Redis only, and warns."""
    if app.conf.worker_disable_prefetch:
        app.conf.worker_disable_prefetch = False
        app.steps["consumer"].add(DisablePrefetch)
