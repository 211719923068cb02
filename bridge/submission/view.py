"""Turns what is stored about a task into what a client is told. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec

from bridge.envelope import from_epoch, isoformat
from bridge.errors import ErrorCode
from bridge.records import FINAL_STATES, ActiveTask, TaskRecord, TaskState

#: Celery's word for "nothing known"; and for "a worker took it", which is still waiting.
_WAITING = {None, "PENDING", "RECEIVED"}
#: A start is told twice, by the result and by an event; nearer than this it is the same one.
_SAME_START_SECONDS = 0.01


class TaskFailure(msgspec.Struct, kw_only=True, frozen=True):
    """Why a task failed."""

    error_code: ErrorCode = ErrorCode.TASK_EXECUTION_ERROR
    type: str
    message: str
    traceback: str | None = None


class TaskView(msgspec.Struct, kw_only=True, frozen=True):
    """One task as the API shows it."""

    task_id: str
    #: QUEUED, SCHEDULED, STARTED, RETRY, SUCCESS, FAILURE, REVOKED or a state of the task's own
    state: str
    task_type: str | None = None
    queue: str | None = None
    priority: int | None = None
    result: Any = None
    #: where to read the value when it is not JSON, for which `result` and `meta` are null
    result_note: str | None = None
    error: TaskFailure | None = None
    #: what a state of the task's own carries, for instance {"current": 3, "total": 9}
    meta: Any = None
    submitted_at: str | None = None
    scheduled_for: str | None = None
    expires_at: str | None = None
    started_at: str | None = None
    finished_at: str | None = None
    runtime_seconds: float | None = None
    timeout_seconds: float | None = None
    retries: int = 0
    worker: str | None = None


class ResultMeta(msgspec.Struct, kw_only=True, frozen=True):
    """The result as Celery stores it, with what our backend adds."""

    status: str
    result: Any = None
    traceback: str | None = None
    date_done: str | None = None
    name: str | None = None
    worker: str | None = None
    queue: str | None = None
    retries: int | None = None
    started_epoch: float | None = None
    #: set where the value is not shown, to tell why
    result_note: str | None = None

    @property
    def final(self) -> bool:
        return self.status in FINAL_STATES

    @property
    def finished_epoch(self) -> float | None:
        """Seconds since 1970 of the state's time; Celery writes UTC with or without an offset."""
        if self.date_done is None:
            return None
        moment = datetime.fromisoformat(self.date_done)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


class Known(msgspec.Struct, kw_only=True, frozen=True):
    """All that is known about a task."""

    record: TaskRecord | None = None
    meta: ResultMeta | None = None
    active: ActiveTask | None = None

    @property
    def empty(self) -> bool:
        """True when nobody knows the task."""
        return self.record is None and self.meta is None and self.active is None

    @property
    def ended(self) -> bool:
        """True when the state no longer changes."""
        return self.meta is not None and self.meta.final


def state_of(known: Known, now_epoch: float) -> str:
    """Return the state of a task, truthfully: what was never started is not called PENDING."""
    meta, active, record = known.meta, known.active, known.record
    if meta is not None and meta.final and not (active and meta.status == TaskState.EXPIRED):
        return meta.status
    if active is not None and (meta is None or _runs_again(meta, active)):
        return TaskState.STARTED
    if meta is not None and meta.status not in _WAITING:
        return meta.status
    due = record.eta_epoch if record is not None else None
    return TaskState.SCHEDULED if due is not None and due > now_epoch else TaskState.QUEUED


def _runs_again(meta: ResultMeta, active: ActiveTask) -> bool:
    """True when a worker started the task and has stored nothing since."""
    if meta.status in _WAITING:
        return True
    earlier = meta.started_epoch or 0.0
    return meta.status == TaskState.RETRY and active.started_epoch > earlier + _SAME_START_SECONDS


def view_of(
    task_id: str, known: Known, now_epoch: float, *, show_tracebacks: bool = False
) -> TaskView:
    """Return what a client sees of a task."""
    record, meta = known.record, known.meta
    state = state_of(known, now_epoch)
    fields: dict[str, Any] = {}
    if record is not None:
        fields.update(_from_record(record))
    if meta is not None:
        fields.update(_from_meta(meta, state, show_tracebacks))
    if known.active is not None and state == TaskState.STARTED:
        fields["worker"] = known.active.worker_id
        fields["started_at"] = from_epoch(known.active.started_epoch)
        fields.setdefault("task_type", known.active.task_type)
    return TaskView(task_id=task_id, state=state, **fields)


def _from_record(record: TaskRecord) -> dict[str, Any]:
    due = record.eta_epoch
    return {
        "task_type": record.task_type,
        "queue": record.queue,
        "priority": record.priority,
        "submitted_at": record.submitted_at,
        "scheduled_for": None if due is None else from_epoch(due),
        "expires_at": record.expires_at,
        "timeout_seconds": record.timeout_seconds,
    }


def _from_meta(meta: ResultMeta, state: str, show_tracebacks: bool) -> dict[str, Any]:
    fields: dict[str, Any] = {
        name: value
        for name, value in (
            ("task_type", meta.name),
            ("queue", meta.queue),
            ("worker", meta.worker),
            ("retries", meta.retries),
        )
        if value is not None
    }
    started, finished = meta.started_epoch, meta.finished_epoch
    if started is not None:
        fields["started_at"] = from_epoch(started)
    if meta.final and finished is not None:
        fields["finished_at"] = from_epoch(finished)
        if started is not None:
            fields["runtime_seconds"] = round(max(0.0, finished - started), 6)
    if state == TaskState.SUCCESS:
        fields["result"], fields["result_note"] = meta.result, meta.result_note
    elif state in {TaskState.FAILURE, TaskState.REVOKED, TaskState.RETRY}:
        fields["error"] = _failure(meta, show_tracebacks)
    elif state == meta.status and state != TaskState.STARTED:
        fields["meta"], fields["result_note"] = meta.result, meta.result_note
    return fields


def _failure(meta: ResultMeta, show_tracebacks: bool) -> TaskFailure:
    kind, message = "", meta.result
    if isinstance(meta.result, dict):
        kind = str(meta.result.get("exc_type", ""))
        message = meta.result.get("exc_message", "")
    if isinstance(message, (list, tuple)):
        message = ", ".join(map(str, message))
    return TaskFailure(
        type=kind,
        message="" if message is None else str(message),
        traceback=meta.traceback if show_tracebacks else None,
    )


def revoked_meta(task_id: str, now_epoch: float) -> bytes:
    """Return the result of a task that was cancelled before it ran, as Celery's own would be."""
    return msgspec.json.encode(
        {
            "task_id": task_id,
            "status": TaskState.REVOKED,
            "result": {
                "exc_type": "TaskRevokedError",
                "exc_message": ["revoked"],
                "exc_module": "celery.exceptions",
            },
            "traceback": None,
            "children": [],
            "date_done": isoformat(datetime.fromtimestamp(now_epoch, UTC)).replace("Z", "+00:00"),
        }
    )
