"""What the endpoints answer with under `data`; the OpenAPI document is made from these."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from bridge.records import QueueState, ScalingDecision, TaskFigures, TaskType, WorkerState


class Health(msgspec.Struct, kw_only=True, frozen=True):
    """The process is alive."""

    service: str
    status: str
    version: str
    uptime_seconds: float


class Readiness(msgspec.Struct, kw_only=True, frozen=True):
    """Tasks can be taken and will be run."""

    nats_connected: bool
    live_workers: int


class Features(msgspec.Struct, kw_only=True, frozen=True):
    """What this version of the service does."""

    distributed_tasks: bool = True
    nats_integration: bool = True
    auto_scaling: bool = True
    load_balancing: bool = True
    fault_tolerance: bool = True


class WorkerSummary(msgspec.Struct, kw_only=True, frozen=True):
    """The worker pool in five figures."""

    total_workers: int
    running_workers: int
    worker_type: str
    max_concurrent_per_worker: int
    total_max_concurrent: int


class NatsInfo(msgspec.Struct, kw_only=True, frozen=True):
    """The connection to NATS. `connection_count`: workers that are connected."""

    url: str
    connected: bool
    connection_count: int


class Statistics(msgspec.Struct, kw_only=True, frozen=True):
    """Figures since the first start. Durations in seconds."""

    tasks_processed: int
    tasks_failed: int
    current_active_tasks: int
    average_task_duration: float


class Status(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """State of the whole service."""

    service: str
    #: running, or degraded with the reason
    status: str
    uptime_seconds: float
    version: str
    environment: str
    port: int
    features: Features
    worker_summary: WorkerSummary
    nats_info: NatsInfo
    statistics: Statistics
    degraded_reason: str | None = None


class Workers(msgspec.Struct, kw_only=True, frozen=True):
    """All workers."""

    total: int
    workers: list[WorkerState]


class WorkerStatus(msgspec.Struct, kw_only=True, frozen=True):
    """State of one worker."""

    worker_id: str
    state: str
    nats_connected: bool
    active_tasks: int
    max_concurrent: int
    last_heartbeat_at: str | None
    restarts: int
    last_error: str | None


class WorkersStatus(msgspec.Struct, kw_only=True, frozen=True):
    """State of all workers. `taken_at` is when the figures were taken."""

    summary: WorkerSummary
    workers: list[WorkerStatus]
    taken_at: str | None


class WorkerStats(msgspec.Struct, kw_only=True, frozen=True):
    """Figures of one worker. `utilisation` is active tasks over capacity, 0 to 1."""

    worker_id: str
    tasks_processed: int
    tasks_failed: int
    active_tasks: int
    max_concurrent: int
    utilisation: float


class WorkersStats(msgspec.Struct, kw_only=True, frozen=True):
    """Figures of all workers."""

    utilisation: float
    active_tasks: int
    total_max_concurrent: int
    workers: list[WorkerStats]
    taken_at: str | None


class TaskStats(msgspec.Struct, kw_only=True, frozen=True):
    """Key figures of the tasks and depth of the queues."""

    figures: TaskFigures
    utilisation: float
    active_tasks: int
    queues: list[QueueState]
    taken_at: str | None


class TaskTypes(msgspec.Struct, kw_only=True, frozen=True):
    """What can be submitted now."""

    types: list[TaskType]


class ScaleRequest(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A size to have at once and to hold, or `mode` auto to give it back to the autoscaler.

    What is not named follows the load. The descriptions also end the sentence "Send ..." of a
    refusal.
    """

    worker_count: Annotated[
        Annotated[int, msgspec.Meta(ge=1, le=1000)] | msgspec.UnsetType,
        msgspec.Meta(
            description="The number of workers, within `limits` of GET /api/v1/workers/scaling."
        ),
    ] = msgspec.UNSET
    concurrency: Annotated[
        Annotated[int, msgspec.Meta(ge=1, le=1000)] | msgspec.UnsetType,
        msgspec.Meta(
            description="The tasks at a time in each worker, 1 to `max_concurrent_tasks` in "
            "`limits` of GET /api/v1/workers/scaling."
        ),
    ] = msgspec.UNSET
    mode: Annotated[
        Literal["auto"] | msgspec.UnsetType,
        msgspec.Meta(description='"auto", alone, to give the size back to the autoscaler.'),
    ] = msgspec.UNSET
    hold_seconds: Annotated[
        Annotated[float, msgspec.Meta(gt=0, le=31_622_400)] | msgspec.UnsetType,
        msgspec.Meta(
            description="The seconds that the autoscaler leaves this size alone, above 0 to "
            "31622400; without it MANUAL_HOLD_SECONDS."
        ),
    ] = msgspec.UNSET


class ScalingLimits(msgspec.Struct, kw_only=True, frozen=True):
    """What the settings allow."""

    min_workers: int
    max_workers: int
    max_concurrent_tasks: int


class Scaling(msgspec.Struct, kw_only=True, frozen=True):
    """What the fleet shall be, who decided so, and why. The newest decision stands first."""

    #: auto, manual, or fixed where AUTOSCALE is off
    mode: str
    worker_count: int
    concurrency: int
    #: what a person has set; null is left to the autoscaler
    manual_worker_count: int | None
    manual_concurrency: int | None
    manual_until_at: str | None
    #: why nothing can be decided now
    blind_reason: str | None
    limits: ScalingLimits
    decisions: list[ScalingDecision]
