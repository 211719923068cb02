"""What can be submitted: the task types that live workers announced."""

from __future__ import annotations

import contextlib
import difflib
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Protocol

import jsonschema_rs
import msgspec

from bridge.errors import InvalidTaskData, NatsConnectionError, ServiceUnavailable
from bridge.records import WORKER_TTL_SECONDS, TaskType, WorkerRecord

_SHOWN_FAULTS = 3
_SHOWN_CHARACTERS = 300


class LiveWorker:
    """A worker's announcement, indexed by task type."""

    def __init__(self, record: WorkerRecord) -> None:
        self.record = record
        self.types = {each.name: AnnouncedType(each) for each in record.types}


class AnnouncedType:
    """A task type and the check of its arguments, compiled when first needed."""

    def __init__(self, task_type: TaskType) -> None:
        self.task_type = task_type
        self._schema = msgspec.json.encode(task_type.schema)

    def check(self, task_data: dict[str, Any]) -> None:
        """Raise InvalidTaskData, naming the fields, unless `task_data` fits the schema."""
        validator = self._validator()
        if validator.is_valid(task_data):
            return
        faults = [_describe(fault) for fault in validator.iter_errors(task_data)]
        more = len(faults) - _SHOWN_FAULTS
        tail = f" (and {more} more)" if more > 0 else ""
        raise InvalidTaskData(
            f"{'; '.join(faults[:_SHOWN_FAULTS])}{tail}. GET /api/v1/tasks/types has the schema."
        )

    def _validator(self) -> jsonschema_rs.Validator:
        try:
            return _compile(self._schema)
        except (ValueError, jsonschema_rs.ReferencingError) as error:
            raise ServiceUnavailable(
                f"The worker's JSON Schema of task type {self.task_type.name!r} cannot be used: "
                f"{error}. Correct the task's annotations and restart the worker."
            ) from error


@lru_cache(maxsize=1024)
def _compile(schema: bytes) -> jsonschema_rs.Validator:
    # Announcements repeat every few seconds; the schema's bytes tell whether one is new.
    # offline: a schema comes from a worker and must not make us fetch anything.
    return jsonschema_rs.validator_for(msgspec.json.decode(schema), offline=True)


def _describe(fault: jsonschema_rs.ValidationError) -> str:
    path = "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault.instance_path
    )
    message = fault.message
    if len(message) > _SHOWN_CHARACTERS:
        message = message[:_SHOWN_CHARACTERS] + "..."
    return f"task_data{path}: {message}"


def decode_worker(value: bytes) -> LiveWorker:
    """Decode a value of bucket `workers`, for the mirror that feeds `TaskTypes`."""
    return LiveWorker(msgspec.json.decode(value, type=WorkerRecord))


class WorkersView(Protocol):
    """The part of a `BucketMirror` of bucket `workers` that is needed here."""

    @property
    def values(self) -> Mapping[str, LiveWorker]: ...

    @property
    def connected(self) -> bool: ...


class TaskTypes:
    """Looks up task types among the workers that are alive.

    Args:
        workers: live copy of bucket `workers`.
        clock: seconds since 1970.
    """

    def __init__(self, workers: WorkersView, clock: Callable[[], float] = time.time) -> None:
        self._workers = workers
        self._clock = clock
        self._known: set[str] = set()

    def live_workers(self) -> list[LiveWorker]:
        """Workers that announced themselves within WORKER_TTL_SECONDS."""
        oldest = self._clock() - WORKER_TTL_SECONDS
        # A copy: the mirror's thread may change the mapping meanwhile.
        workers = list(self._workers.values.values())
        return [each for each in workers if each.record.announced_epoch >= oldest]

    def lookup(self, name: str) -> AnnouncedType:
        """Return the type called `name`; of several announcements the youngest worker's.

        Raises:
            InvalidTaskData: no worker knows it.
            ServiceUnavailable: no worker is alive, or none of those that knew it; or one that
                serves its queue takes no JSON.
            NatsConnectionError: NATS is away, so nothing is known of the workers.
        """
        live = self.live_workers()
        candidates = [each for each in live if name in each.types]
        if candidates:
            self._known.add(name)
            found = max(candidates, key=lambda each: each.record.started_epoch).types[name]
            _check_accepted(found.task_type, live)
            return found
        if not self._workers.connected:
            raise NatsConnectionError("NATS cannot be reached. Try again when it is back.")
        if not live:
            raise ServiceUnavailable(
                "No worker is running. Start one (python -m bridge controller, or celery worker)."
            )
        if name in self._known:
            raise ServiceUnavailable(
                f"No running worker handles task type {name!r} at the moment. Start its worker."
            )
        raise InvalidTaskData(f"task_type: {name!r} is not known. {_hint(name, self.all())}")

    def all(self) -> list[TaskType]:
        """Every type that can be submitted now, by name."""
        names = {name for worker in self.live_workers() for name in worker.types}
        found = []
        for name in sorted(names):
            # Left out is what a submission would be told of.
            with contextlib.suppress(ServiceUnavailable):
                found.append(self.lookup(name).task_type)
        return found


def _check_accepted(task_type: TaskType, live: list[LiveWorker]) -> None:
    """Raise ServiceUnavailable where a worker of the type's queue would drop the task's message."""
    for worker in live:
        record = worker.record
        if not record.accepts_json and task_type.queue in record.queues:
            raise ServiceUnavailable(
                f"Worker {record.hostname!r} of queue {task_type.queue!r} takes no JSON, in which "
                f"task type {task_type.name!r} would be sent to it. Add 'json' to the "
                "accept_content of its Celery app and restart it."
            )


def _hint(name: str, types: list[TaskType]) -> str:
    names = [each.name for each in types]
    near = difflib.get_close_matches(name, names, n=3)
    if near:
        return f"Did you mean {', '.join(near)}?"
    return "GET /api/v1/tasks/types lists what can be submitted."
