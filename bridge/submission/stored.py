"""Reads what the streams hold of a task."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from bridge.errors import TaskNotFound
from bridge.names import Names
from bridge.records import ActiveTask, TaskRecord, TaskState
from bridge.submission.deadline import ANSWER_SECONDS, Deadline
from bridge.submission.keys import TaskPlaces
from bridge.submission.result import read_result
from bridge.submission.view import Known, ResultMeta
from bridge.wire import ConnectionPool, JetStream, Message
from bridge.wire.jetstream import is_expired, is_gone

_decode_record = msgspec.json.Decoder(TaskRecord).decode

#: Celery's ids are UUIDs; a subject made of a much longer one would break the connection.
MAX_ID_CHARACTERS = 255


def not_found(task_id: str) -> TaskNotFound:
    """The error for an id under which nothing is stored."""
    shown = task_id[:64] + ("..." if len(task_id) > 64 else "")
    return TaskNotFound(f"No task has the id {shown!r}. Check the id; records are kept for 7 days.")


def check_id(task_id: str) -> None:
    """Raise TaskNotFound for what cannot be an id."""
    if len(task_id) > MAX_ID_CHARACTERS:
        raise not_found(task_id)


@contextlib.contextmanager
def about(pool: ConnectionPool, task_id: str) -> Iterator[JetStream]:
    """Borrow a connection for what is to be answered about a task within ANSWER_SECONDS.

    Raises TaskNotFound for what cannot be an id, NatsConnectionError.
    """
    check_id(task_id)
    deadline = Deadline(ANSWER_SECONDS)
    with pool.connection() as connection:
        yield JetStream(connection, deadline.remaining())


def _meta(result: Message) -> ResultMeta | None:
    if is_expired(result):
        return ResultMeta(status=TaskState.EXPIRED)
    return None if is_gone(result) else read_result(result)


class Stored(NamedTuple):
    """What the streams hold of a task, and the sequence of its result (0 without one)."""

    known: Known
    result_sequence: int


def read(js: JetStream, names: Names, task_id: str, active: ActiveTask | None = None) -> Stored:
    """Read record and result of a task whose id was checked. Raises NatsConnectionError."""
    places = TaskPlaces(names, task_id)
    # The result first: a task that ends between the two reads is then merely reported earlier.
    result = js.get_last_or_marker(places.result_stream, places.result_subject)
    record = js.get_last(places.record_stream, places.record_subject)
    known = Known(
        record=None if record is None else _decode_record(record.payload),
        meta=None if result is None else _meta(result),
        active=active,
    )
    return Stored(known, 0 if result is None else int(result.headers["Nats-Sequence"]))
