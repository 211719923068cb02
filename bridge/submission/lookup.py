"""Reads the state of a task, and waits for its end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

from bridge.errors import NatsConnectionError
from bridge.names import Names
from bridge.records import SNAPSHOT_KEY, ActiveTask, Snapshot
from bridge.submission.deadline import ANSWER_SECONDS
from bridge.submission.keys import TaskPlaces
from bridge.submission.result import read_result
from bridge.submission.stored import about, check_id, not_found, read
from bridge.submission.view import Known, TaskView, view_of
from bridge.wire import Connection, ConnectionPool, JetStream, Message


class StatusView(Protocol):
    """The part of a `BucketMirror` of bucket `status` that is needed here."""

    @property
    def values(self) -> Mapping[str, Snapshot | None]: ...


class TaskLookup:
    """Answers what has become of a task. Safe for threads and greenlets.

    Args:
        pool: connections; each waiting call holds one.
        names: names of the virtual host.
        status: live copy of bucket `status`, which knows the running tasks.
        show_tracebacks: whether a failed task shows its traceback.
        max_waiting: calls that may wait at the same time; beyond that they answer at once.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        names: Names,
        status: StatusView,
        *,
        show_tracebacks: bool = False,
        max_waiting: int = 512,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._pool = pool
        self._names = names
        self._status = status
        self._show_tracebacks = show_tracebacks
        self._waiting = threading.BoundedSemaphore(max_waiting)
        self._clock = clock

    def get(self, task_id: str) -> TaskView:
        """Return the task as it is now.

        Raises:
            TaskNotFound: nothing is stored under this id.
            NatsConnectionError: NATS cannot be reached.
        """
        with about(self._pool, task_id) as js:
            known = read(js, self._names, task_id, self.active(task_id)).known
        return self._view(task_id, known)

    def wait(self, task_id: str, seconds: float) -> TaskView:
        """Return the task once it has ended, or as it is after `seconds`.

        Raises like `get`.
        """
        check_id(task_id)
        if seconds <= 0 or not self._waiting.acquire(blocking=False):
            return self.get(task_id)
        try:
            with self._pool.connection() as connection:
                known = self._await_end(connection, task_id, seconds)
        finally:
            self._waiting.release()
        return self._view(task_id, known)

    def _await_end(self, connection: Connection, task_id: str, seconds: float) -> Known:
        """Subscribe to what is stored, then read: a result between the two is not missed.

        When the time is up it reads again. The word of a result is lost with a node of a cluster
        that dies right after it stored it.
        """
        arrived: list[Message] = []
        js = JetStream(connection, ANSWER_SECONDS)
        end = time.monotonic() + seconds
        places = TaskPlaces(self._names, task_id)
        sid = connection.subscribe(places.result_change_subject, arrived.append)
        try:
            known = read(js, self._names, task_id, self.active(task_id)).known
            while not (known.empty or known.ended):
                if not arrived and not _drain(connection, end - time.monotonic()):
                    known = read(js, self._names, task_id, self.active(task_id)).known
                    break
                known = _newest(known, arrived)
                arrived.clear()
        finally:
            connection.unsubscribe(sid)
        return msgspec.structs.replace(known, active=self.active(task_id))

    def _view(self, task_id: str, known: Known) -> TaskView:
        if known.empty:
            raise not_found(task_id)
        view = view_of(task_id, known, self._clock(), show_tracebacks=self._show_tracebacks)
        return msgspec.structs.replace(view, worker=self._worker_id(view.worker))

    def _worker_id(self, hostname: str | None) -> str | None:
        """Return the id under which GET /api/v1/workers has the worker of this Celery hostname.

        The fleet's own workers are shown without their host; results carry all of it.
        """
        snapshot = self._status.values.get(SNAPSHOT_KEY)
        if hostname is None or snapshot is None:
            return hostname
        ids = {worker.worker_id for worker in snapshot.workers}
        short = hostname.partition("@")[0]
        return short if hostname not in ids and short in ids else hostname

    def active(self, task_id: str) -> ActiveTask | None:
        """The task's entry among those that run now, None when it does not run."""
        snapshot = self._status.values.get(SNAPSHOT_KEY)
        if snapshot is None:
            return None
        return next((each for each in snapshot.active if each.task_id == task_id), None)


def _drain(connection: Connection, seconds: float) -> bool:
    """Dispatch what comes within `seconds`; False when nothing came."""
    try:
        connection.drain(seconds)
    except NatsConnectionError:
        raise
    except TimeoutError:
        return False
    return True


def _newest(known: Known, arrived: list[Message]) -> Known:
    for message in arrived:
        # Expiry and deletion leave markers on the subject; they are no result.
        if message.payload and "KV-Operation" not in message.headers:
            known = msgspec.structs.replace(known, meta=read_result(message))
    return known
