"""Task types: only what live workers announced can be submitted, and only with fitting data."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from bridge.errors import InvalidTaskData, NatsConnectionError, ServiceUnavailable
from bridge.records import WORKER_TTL_SECONDS, TaskType, WorkerRecord
from bridge.submission.registry import AnnouncedType, LiveWorker, TaskTypes, decode_worker

_SCHEMA = {
    "type": "object",
    "properties": {
        "input": {"type": "string"},
        "parameters": {"type": "object", "properties": {"window": {"type": "integer"}}},
        "rows": {"type": "array", "items": {"type": "integer"}},
    },
    "required": ["input"],
    "additionalProperties": False,
}
_NOW = 1_800_000_000.0


class MemoryWorkers:
    """Workers without a bucket."""

    def __init__(self, *workers: LiveWorker) -> None:
        self.values = {each.record.hostname: each for each in workers}
        self.connected = True


def _worker(
    hostname: str,
    *types: str,
    age: float = 0.0,
    queue: str = "celery",
    accepts_json: bool = True,
) -> LiveWorker:
    return LiveWorker(
        WorkerRecord(
            hostname=hostname,
            pid=1,
            pool="solo",
            concurrency=1,
            queues=[queue],
            types=[TaskType(name=name, queue=queue, schema=_SCHEMA) for name in types],
            started_epoch=_NOW - 100 + len(hostname),
            announced_epoch=_NOW - age,
            accepts_json=accepts_json,
        )
    )


def _types(workers: MemoryWorkers) -> TaskTypes:
    return TaskTypes(workers, clock=lambda: _NOW)


def test_youngest_worker_decides() -> None:
    """Of two announcements of a type that of the worker started last counts."""
    types = _types(MemoryWorkers(_worker("a", "t", queue="old"), _worker("bb", "t", queue="new")))

    assert types.lookup("t").task_type.queue == "new"


def test_unknown_type_is_refused_with_near_names() -> None:
    """A mistyped type is answered with what was probably meant."""
    types = _types(MemoryWorkers(_worker("a", "data_processing", "noop")))

    with pytest.raises(InvalidTaskData, match=r"task_type: 'data_procesing'.*data_processing"):
        types.lookup("data_procesing")


def test_no_live_worker_is_unavailable() -> None:
    """A worker that was silent too long does not count."""
    types = _types(MemoryWorkers(_worker("a", "t", age=WORKER_TTL_SECONDS + 1)))

    with pytest.raises(ServiceUnavailable, match="No worker is running"):
        types.lookup("t")


def test_type_whose_worker_has_gone_is_unavailable() -> None:
    """What could be submitted a moment ago is unavailable, not unknown."""
    workers = MemoryWorkers(_worker("a", "t"), _worker("b", "other"))
    types = _types(workers)
    types.lookup("t")
    workers.values.pop("a")

    with pytest.raises(ServiceUnavailable, match="'t'"):
        types.lookup("t")


def test_all_lists_every_type_once() -> None:
    """The list holds each type once, by name."""
    types = _types(MemoryWorkers(_worker("a", "z", "t"), _worker("b", "t")))

    assert [each.name for each in types.all()] == ["t", "z"]


@pytest.mark.parametrize("other", ["t", "other"])
def test_queue_with_a_worker_that_takes_no_json_is_refused(other: str) -> None:
    """One such worker on the queue is enough: it would drop the task, whatever else it runs."""
    types = _types(
        MemoryWorkers(
            _worker("a", "t"),
            _worker("b", "elsewhere", queue="elsewhere"),
            _worker("strict", other, accepts_json=False),
        )
    )

    with pytest.raises(ServiceUnavailable, match=r"'strict'.*'json' to the accept_content"):
        types.lookup("t")
    assert [each.name for each in types.all()] == ["elsewhere"]


def test_announcement_without_word_of_json_accepts_it() -> None:
    """A worker of an earlier version said nothing of what it accepts."""
    fields = msgspec.to_builtins(_worker("a", "t").record)
    del fields["accepts_json"]
    worker = decode_worker(msgspec.json.encode(fields))

    assert _types(MemoryWorkers(worker)).lookup("t").task_type.name == "t"


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"input": "a", "parameters": {"window": "x"}}, "task_data.parameters.window: "),
        ({"input": "a", "rows": [1, "x"]}, "task_data.rows[1]: "),
        ({}, 'task_data: "input" is a required property'),
        ({"input": "a", "q": 1}, "('q' was unexpected)"),
    ],
)
def test_data_that_does_not_fit_is_refused_by_field(data: dict[str, Any], told: str) -> None:
    """The message names the place of the fault in task_data, and where the schema is."""
    with pytest.raises(InvalidTaskData) as refused:
        AnnouncedType(TaskType(name="t", queue="q", schema=_SCHEMA)).check(data)

    assert told in str(refused.value)
    assert str(refused.value).endswith("GET /api/v1/tasks/types has the schema.")


@pytest.mark.parametrize(
    "schema", [{"type": "nonsense"}, {"$ref": "http://localhost:1/schema.json"}]
)
def test_unusable_schema_is_the_workers_fault(schema: dict[str, Any]) -> None:
    """A schema that is none, or points elsewhere, is told as such and fetches nothing."""
    announced = AnnouncedType(TaskType(name="t", queue="q", schema=schema))

    with pytest.raises(ServiceUnavailable, match="JSON Schema of task type 't'"):
        announced.check({})


def test_without_nats_nothing_is_said_of_workers() -> None:
    """Announcements run out during an outage; that is no sign that the workers are gone."""
    workers = MemoryWorkers(_worker("w", "add", age=WORKER_TTL_SECONDS + 1))
    workers.connected = False

    with pytest.raises(NatsConnectionError):
        _types(workers).lookup("add")
