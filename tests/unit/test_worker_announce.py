"""A worker's announcement fits into one message, whatever it must leave out for that."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from bridge.records import TaskType, WorkerRecord
from bridge.wire import PayloadTooLarge
from bridge.worker import announce
from bridge.worker.announce import Announce

_TYPES = [
    TaskType(
        name=f"task.{number}",
        queue="celery",
        schema={"type": "object", "properties": {"value": {"type": "integer"}}},
        doc="What it does. " * 30,
    )
    for number in range(100)
]


class SmallBucket:
    """A bucket that takes no value above `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.stored: list[WorkerRecord] = []

    def put(self, key: str, value: bytes, ttl_seconds: float) -> None:
        if len(value) > self.limit:
            raise PayloadTooLarge(len(value), self.limit)
        self.stored.append(msgspec.json.decode(value, type=WorkerRecord))


@pytest.fixture
def consumer(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What Celery hands to the step, of a worker with many tasks."""
    monkeypatch.setattr(announce, "task_types", lambda app, queues: list(_TYPES))
    queues = [SimpleNamespace(name="celery")]
    return SimpleNamespace(
        app=None,
        hostname="worker@host",
        pool=SimpleNamespace(num_processes=2),
        task_consumer=SimpleNamespace(queues=queues, accept=None),
    )


@pytest.mark.parametrize(
    ("limit", "docs", "schemas", "names"),
    [(80_000, 100, 100, 100), (20_000, 0, 100, 100), (10_000, 0, 0, 100), (500, 0, 0, 0)],
)
def test_what_is_too_large_is_announced_with_less(
    consumer: Any,
    caplog: pytest.LogCaptureFixture,
    limit: int,
    docs: int,
    schemas: int,
    names: int,
) -> None:
    """First the descriptions go, then the schemas, at last the tasks; the log tells so once."""
    step, bucket = Announce(consumer), SmallBucket(limit)

    with caplog.at_level(logging.WARNING, "nats"):
        step.store(bucket, consumer)
        told = len(caplog.records)
        step.store(bucket, consumer)

    assert len(bucket.stored) == 2
    assert bucket.stored[0].types == bucket.stored[1].types
    types = bucket.stored[0].types
    assert len(types) == names
    assert sum(bool(each.doc) for each in types) == docs
    assert sum(bool(each.schema.get("properties")) for each in types) == schemas
    assert told == len(caplog.records) == (docs == 0) + (schemas == 0) + (names == 0)
    assert all("max_payload" in record.message for record in caplog.records)


def test_a_server_that_takes_nothing_is_told_of(consumer: Any) -> None:
    """There is an end to what can be left out."""
    with pytest.raises(PayloadTooLarge):
        Announce(consumer).store(SmallBucket(10), consumer)
