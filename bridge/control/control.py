"""Celery's remote control with a time limit, one resize per worker at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import msgspec
from celery import Celery
from kombu.exceptions import OperationalError

from bridge.control.deltas import accepted, resize_by_deltas
from bridge.control.resized import Resized
from bridge.errors import NatsConnectionError, ScalingError, WorkerSilent

#: Longer than a worker's event loop is ever away: it forks its children on it.
TIMEOUT_SECONDS: Final = 3.0


class Control:
    """Sends commands to the workers of one broker. Safe for threads.

    Args:
        broker_url: as Celery has it, for instance ``nats://127.0.0.1:4222``.
        timeout: seconds to connect, and seconds to wait for each answer.
    """

    def __init__(self, broker_url: str, *, timeout: float = TIMEOUT_SECONDS) -> None:
        self._timeout = timeout
        self._app = Celery("bridge.control", broker=broker_url, set_as_current=False)
        self._app.conf.update(
            broker_connection_timeout=timeout,
            # Celery would go on trying; whoever calls us decides that.
            broker_transport_options={"max_retries": 0, "timeout": timeout},
        )
        self._guard = threading.Lock()
        self._turns: dict[str, threading.Lock] = {}

    def stats(self, worker_id: str) -> dict[str, Any]:
        """Return what `celery inspect stats` shows of one worker.

        Raises:
            WorkerSilent: no answer in time.
            NatsConnectionError: the broker cannot be reached.
        """
        answer: dict[str, Any] = self.ask(worker_id, "stats")
        return answer

    def resize(self, worker_id: str, target: int) -> Resized:
        """Bring the pool of one worker to `target` slots (at least 1), ending no task.

        A worker without `pool_resize` gets pool_grow or pool_shrink, as far as that is safe.
        Celery acts on those every 5 seconds only, so that takes 6 seconds and more.

        Raises:
            ScalingError: the worker refuses, or another resize of it is under way.
            WorkerSilent: no answer in time; asking for the same target again is safe.
            NatsConnectionError: the broker cannot be reached.
        """
        if target < 1:
            raise ScalingError(f"A pool needs at least 1 slot, not {target}.", status=400)
        with self._turn(worker_id):
            stats = self.stats(worker_id)
            if "pool_resize" not in stats:
                return resize_by_deltas(partial(self.ask, worker_id), worker_id, target, stats)
            answer = accepted(worker_id, self.ask(worker_id, "pool_resize", target=target))
            return msgspec.convert(answer, Resized)

    def ask(self, worker_id: str, command: str, **arguments: Any) -> Any:
        """Send any of Celery's control commands to one worker and return its answer.

        Raises:
            WorkerSilent: no answer in time; the command may or may not be carried out.
            NatsConnectionError: the broker cannot be reached.
        """
        with self._connection() as connection:
            answers = self._app.control.broadcast(
                command,
                arguments,
                destination=[worker_id],
                connection=connection,
                reply=True,
                timeout=self._timeout,
            )
        for answer in answers:
            if worker_id in answer:
                return answer[worker_id]
        raise WorkerSilent(
            f"Worker {worker_id} did not answer {command!r} within {self._timeout:g} s. "
            "Check that it runs, is on this broker and has remote control enabled."
        )

    @contextmanager
    def _turn(self, worker_id: str) -> Iterator[None]:
        """Hold off other resizes of the same worker: two at once end as neither wants."""
        with self._guard:
            turn = self._turns.setdefault(worker_id, threading.Lock())
        if not turn.acquire(timeout=self._timeout):
            raise ScalingError(
                f"Another resize of {worker_id} is under way. Try again when it has ended.",
                status=409,
            )
        try:
            yield
        finally:
            turn.release()

    @contextmanager
    def _connection(self) -> Iterator[Any]:
        """A connection of this call's own: kombu's are not safe for threads."""
        connection = self._app.connection_for_write()
        try:
            with connection:
                yield connection.ensure_connection(max_retries=0)
        except (OperationalError, *connection.connection_errors) as error:
            raise NatsConnectionError(
                f"The broker at {connection.as_uri()} cannot be reached: {error}. "
                "Check that it runs and that the URL is right."
            ) from error
