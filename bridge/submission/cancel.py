"""Cancels a task, whether it waits, is scheduled or runs, and whether or not a worker is up."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec

from bridge.names import Names, escape
from bridge.records import TaskState
from bridge.submission.keys import TaskPlaces
from bridge.submission.lookup import TaskLookup
from bridge.submission.stored import Stored, about, not_found, read
from bridge.submission.view import revoked_meta, state_of
from bridge.topology import BUCKET_TTL_SECONDS
from bridge.transport.headers import encode_message
from bridge.wire import Bucket, Connection, ConnectionPool, JetStream, JetStreamError
from bridge.wire.jetstream import WRONG_LAST_SEQUENCE
from bridge.wire.kv import ttl_headers

#: Exchange of Celery's remote control (its default `control_exchange`)
_CONTROL_EXCHANGE = "celery.pidbox"


class Cancellation(msgspec.Struct, kw_only=True, frozen=True):
    """Answer to a cancellation."""

    task_id: str
    #: the task will not run, or will be ended
    cancelled: bool
    state: str
    detail: str


class Canceller:
    """Cancels tasks. Safe for threads and greenlets.

    Args:
        pool: connections.
        names: names of the virtual host.
        lookup: knows the running tasks.
        result_ttl_seconds: how long the result of a cancelled task is kept.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        names: Names,
        lookup: TaskLookup,
        *,
        result_ttl_seconds: float = 86_400.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._pool = pool
        self._names = names
        self._lookup = lookup
        self._result_ttl_seconds = result_ttl_seconds
        self._clock = clock

    def cancel(self, task_id: str, *, terminate: bool = False) -> Cancellation:
        """Cancel a task; a running one is ended only with `terminate`.

        Raises:
            TaskNotFound: nothing is stored under this id.
            NatsConnectionError: NATS cannot be reached.
        """
        with about(self._pool, task_id) as js:
            answer = self._cancel(js, task_id, terminate=terminate)
        if answer is None:
            raise not_found(task_id)
        return answer

    def _cancel(self, js: JetStream, task_id: str, *, terminate: bool) -> Cancellation | None:
        stored = read(js, self._names, task_id, self._lookup.active(task_id))
        known = stored.known
        if known.empty:
            return None
        state = state_of(known, self._clock())
        if known.meta is not None and known.meta.final:
            return _ended(task_id, state)
        if state in {TaskState.QUEUED, TaskState.SCHEDULED, TaskState.RETRY}:
            return self._cancel_waiting(js, task_id, stored)
        if not terminate:
            return Cancellation(
                task_id=task_id,
                cancelled=False,
                state=state,
                detail="The task is running. Send terminate=true to end it.",
            )
        self._leave_tombstone(js, task_id)
        _broadcast_revoke(js.connection, self._names, task_id, terminate=True)
        return Cancellation(
            task_id=task_id, cancelled=True, state=state, detail="The task is being terminated."
        )

    def _cancel_waiting(self, js: JetStream, task_id: str, stored: Stored) -> Cancellation:
        # The tombstone is first: from here on no worker starts the task, whatever comes after.
        self._leave_tombstone(js, task_id)
        js.purge((self._names.task_stream, self._names.task_schedules(task_id)))
        _broadcast_revoke(js.connection, self._names, task_id, terminate=False)
        if not self._record_revoked(js, task_id, stored.result_sequence):
            now = read(js, self._names, task_id).known
            if now.meta is not None and now.meta.final:
                return _ended(task_id, now.meta.status)
        return Cancellation(
            task_id=task_id,
            cancelled=True,
            state=TaskState.REVOKED,
            detail="The task was cancelled before it started.",
        )

    def _leave_tombstone(self, js: JetStream, task_id: str) -> None:
        """Written for workers that are down now, and read by them before they start a task."""
        bucket = Bucket(js, self._names.bucket("revoked"))
        value = msgspec.json.encode({"revoked_epoch": self._clock()})
        bucket.put(escape(task_id), value, BUCKET_TTL_SECONDS["revoked"])

    def _record_revoked(self, js: JetStream, task_id: str, sequence: int) -> bool:
        """Write the result REVOKED unless the task has written one since `sequence` was read."""
        headers = {
            "Nats-Expected-Last-Subject-Sequence": str(sequence),
            **ttl_headers(self._result_ttl_seconds),
        }
        subject = TaskPlaces(self._names, task_id).result_subject
        try:
            js.publish(subject, revoked_meta(task_id, self._clock()), headers)
        except JetStreamError as error:
            if error.err_code != WRONG_LAST_SEQUENCE:
                raise
            return False
        return True


def _ended(task_id: str, state: str) -> Cancellation:
    revoked = state == TaskState.REVOKED
    detail = (
        "The task was already cancelled, or it expired."
        if revoked
        else "It was too late: the task has already ended."
    )
    return Cancellation(task_id=task_id, cancelled=revoked, state=state, detail=detail)


def _broadcast_revoke(
    connection: Connection, names: Names, task_id: str, *, terminate: bool
) -> None:
    """Tell all workers, as Celery's `control.revoke` does; nobody's answer is awaited."""
    command: dict[str, Any] = {
        "method": "revoke",
        "arguments": {"task_id": task_id, "terminate": terminate, "signal": "SIGTERM"},
        "destination": None,
        "pattern": None,
        "matcher": None,
    }
    headers, payload = encode_message(
        msgspec.json.encode(command),
        headers={"clock": 1, "expires": 0},
        properties={
            "delivery_mode": 1,
            "priority": 0,
            "content_type": "application/json",
            "content_encoding": "utf-8",
        },
    )
    connection.publish(names.exchange_subject(_CONTROL_EXCHANGE, ""), payload, headers)
