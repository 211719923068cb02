"""Reads what the streams hold of a task."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from bridge.names import Names
from bridge.records import ActiveTask, TaskRecord
from bridge.submission.keys import TaskPlaces
from bridge.submission.view import Known, ResultMeta
from bridge.wire import JetStream

_decode_record = msgspec.json.Decoder(TaskRecord).decode
#: Decode a result as Celery stores it.
decode_meta = msgspec.json.Decoder(ResultMeta).decode


class Stored(NamedTuple):
    """What the streams hold of a task, and the sequence of its result (0 without one)."""

    known: Known
    result_sequence: int


def read(js: JetStream, names: Names, task_id: str, active: ActiveTask | None = None) -> Stored:
    """Read record and result of a task. Raises NatsConnectionError."""
    places = TaskPlaces(names, task_id)
    # The result first: a task that ends between the two reads is then merely reported earlier.
    result = js.get_last(places.result_stream, places.result_subject)
    record = js.get_last(places.record_stream, places.record_subject)
    known = Known(
        record=None if record is None else _decode_record(record.payload),
        meta=None if result is None else decode_meta(result.payload),
        active=active,
    )
    return Stored(known, 0 if result is None else int(result.headers["Nats-Sequence"]))
