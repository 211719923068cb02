"""Typed records kept in NATS buckets: what one process writes, another reads. Pure.

Times are UTC ISO-8601 strings ending in `_at` (see `bridge.envelope.isoformat`) for people,
seconds since 1970 where a program computes with them (`_epoch`).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec


class TaskState(StrEnum):
    """State of a task as the API tells it; the upper-case words are Celery's where it has one."""

    QUEUED = "QUEUED"
    SCHEDULED = "SCHEDULED"
    STARTED = "STARTED"
    RETRY = "RETRY"
    SUCCESS = "SUCCESS"
    FAILURE = "FAILURE"
    REVOKED = "REVOKED"
    #: it ended, and its result was kept for as long as the settings say
    EXPIRED = "EXPIRED"


#: States that no longer change.
FINAL_STATES = frozenset(
    {TaskState.SUCCESS, TaskState.FAILURE, TaskState.REVOKED, TaskState.EXPIRED}
)


class TaskRecord(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """Bucket `tasks`, key = escaped task id: what was accepted. Written with the submission."""

    task_id: str
    task_type: str
    queue: str
    priority: int
    submitted_at: str
    #: seconds since 1970 when the task becomes due; None = at once
    eta_epoch: float | None = None
    expires_at: str | None = None
    timeout_seconds: float | None = None


#: NATS header of a result that is not plain JSON: as JSON, what Celery keeps of the task but its
#: value (an error's type and text are there), so that who must not read the payload knows the rest.
RESULT_META = "Celery-meta"
#: NATS header beside it: how the payload is serialized, before any compression.
RESULT_CONTENT_TYPE = "Content-Type"
JSON_CONTENT_TYPE = "application/json"
#: So starts the result that the API writes of a task it cancelled: JSON, whatever the app's own
#: serializer is. Celery's results start with another member.
CANCELLED_START = b'{"task_id":'


class IdempotencyRecord(msgspec.Struct, kw_only=True, frozen=True):
    """Bucket `idempotency`, key = SHA-256 of the client's key: what it was used for."""

    task_id: str
    #: SHA-256 (hex) of the canonical request
    body_sha256: str


class TaskType(msgspec.Struct, kw_only=True, frozen=True):
    """One thing a worker can run."""

    name: str
    queue: str
    #: JSON Schema (2020-12) of `task_data`
    schema: dict[str, Any]
    doc: str = ""
    ignore_result: bool = False


class WorkerRecord(msgspec.Struct, kw_only=True, frozen=True):
    """Bucket `workers`, key = escaped Celery hostname: what a live worker announces.

    Written on start, again every ANNOUNCE_SECONDS with a TTL of three times that, and
    removed on a clean stop.
    """

    hostname: str
    pid: int
    pool: str
    concurrency: int
    queues: list[str]
    types: list[TaskType]
    started_epoch: float
    announced_epoch: float
    #: whether its `accept_content` has json, in which the API writes tasks
    accepts_json: bool = True


#: How often a worker announces itself.
ANNOUNCE_SECONDS = 10.0
#: A worker that was silent this long is not alive.
WORKER_TTL_SECONDS = 30.0


class WorkerState(msgspec.Struct, kw_only=True, frozen=True):
    """One worker in the snapshot."""

    worker_id: str
    #: running | starting | stopping | lost
    state: str
    worker_type: str
    pid: int | None = None
    pool: str | None = None
    #: tasks it may run at a time, at most
    max_concurrent: int = 0
    #: slots of its pool at present
    concurrency: int = 0
    active_tasks: int = 0
    tasks_processed: int = 0
    tasks_failed: int = 0
    queues: list[str] = []
    nats_connected: bool = False
    last_heartbeat_at: str | None = None
    started_at: str | None = None
    restarts: int = 0
    last_error: str | None = None


class ActiveTask(msgspec.Struct, kw_only=True, frozen=True):
    """A task that a worker has started and not finished."""

    task_id: str
    task_type: str
    worker_id: str
    started_epoch: float


class QueueState(msgspec.Struct, kw_only=True, frozen=True):
    """Depth of one queue, read from its consumers."""

    name: str
    waiting: int
    in_flight: int
    scheduled: int
    oldest_waiting_seconds: float | None


class TaskFigures(msgspec.Struct, kw_only=True, frozen=True):
    """Key figures since the first start (counts) and over the last minutes (rates)."""

    tasks_processed: int = 0
    tasks_succeeded: int = 0
    tasks_failed: int = 0
    tasks_retried: int = 0
    tasks_revoked: int = 0
    throughput_per_minute: float = 0.0
    #: succeeded / (succeeded + failed); None before the first
    success_rate: float | None = None
    average_duration_seconds: float | None = None
    p50_duration_seconds: float | None = None
    p95_duration_seconds: float | None = None


class Snapshot(msgspec.Struct, kw_only=True, frozen=True):
    """Bucket `status`, key SNAPSHOT_KEY: the controller's view, written about twice a second."""

    taken_epoch: float
    controller_started_epoch: float
    worker_type: str
    max_concurrent_per_worker: int
    target_workers: int
    workers: list[WorkerState] = []
    queues: list[QueueState] = []
    active: list[ActiveTask] = []
    figures: TaskFigures = TaskFigures()


SNAPSHOT_KEY = "snapshot"


class ScalingDecision(msgspec.Struct, kw_only=True, frozen=True):
    """One change of the size that the fleet shall have, and what led to it."""

    decided_at: str
    #: up | down | manual
    direction: str
    workers_before: int
    concurrency_before: int
    workers: int
    concurrency: int
    #: one line, with figures
    reason: str
    figures: dict[str, float | int | None] = {}


class ScalingState(msgspec.Struct, kw_only=True, frozen=True):
    """Bucket `status`, key SCALING_KEY: what the autoscaler wants, and its last decisions.

    In mode `manual` the pinned gears hold until `manual_until_epoch`, or until told otherwise
    where that is None; a gear that is None stays automatic. In mode `fixed` the settings have
    switched automatic scaling off, and nobody has asked for another size.
    """

    #: auto | manual | fixed
    mode: str
    workers: int
    concurrency: int
    pinned_workers: int | None = None
    pinned_concurrency: int | None = None
    manual_until_epoch: float | None = None
    #: why nothing can be decided now; None when all is well
    blind_reason: str | None = None
    #: newest first
    decisions: list[ScalingDecision] = []


SCALING_KEY = "scaling"
#: Who decides: one controller of all. Its revision fences every write of the leader.
LEADER_KEY = "leader"


class ScaleCommand(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """Subject `scale`, answered by the leader: a size to have and to hold.

    A gear that is None stays automatic; `automatic` gives both back.
    """

    workers: int | None = None
    concurrency: int | None = None
    #: None: as long as the settings say
    hold_seconds: float | None = None
    automatic: bool = False


class WorkerCommand(msgspec.Struct, kw_only=True, frozen=True):
    """Subjects `restart` (answered by the worker's own controller) and `remove` (by the leader)."""

    worker_id: str


class FleetSize(msgspec.Struct, kw_only=True, frozen=True):
    """Workers there are, and tasks that each of them takes at a time."""

    worker_count: int
    concurrency: int


class WorkerChange(msgspec.Struct, kw_only=True, frozen=True):
    """One worker after a command."""

    worker_id: str
    #: running | starting | stopping | lost | stopped
    state: str
    #: started | stopped | restarted | kept
    change: str


class ScalingResult(msgspec.Struct, kw_only=True, frozen=True):
    """What a command to the fleet came to."""

    #: auto | manual | fixed
    mode: str
    before: FleetSize
    after: FleetSize
    workers: list[WorkerChange]
    #: until when it holds against the autoscaler; None: until told otherwise, or not at all
    manual_until_at: str | None = None


class CommandReply(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """Answer of a controller: first that it will see to it, later what came of it.

    `error_code` and `status` are those of the response envelope.
    """

    accepted: bool = False
    result: ScalingResult | None = None
    worker: WorkerChange | None = None
    error_code: str = ""
    message: str = ""
    status: int = 200
    #: a snapshot taken then or later shows the result
    snapshot_epoch: float = 0.0
