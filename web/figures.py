"""Answers about workers and tasks, made from the controller's snapshot."""

from __future__ import annotations

import time
from importlib.metadata import version

import msgspec

from bridge.envelope import from_epoch
from bridge.errors import ServiceUnavailable
from bridge.masking import mask_text
from bridge.records import Snapshot, WorkerState
from web.context import context, resources
from web.models import (
    Features,
    NatsInfo,
    Scaling,
    ScalingLimits,
    Statistics,
    Status,
    TaskStats,
    WorkersStats,
    WorkersStatus,
    WorkerStats,
    WorkerStatus,
    WorkerSummary,
)

SERVICE = "task-worker"
VERSION = version("celery-nats-bridge")
#: The controller writes about twice a second; older than this it counts as down.
STALE_SECONDS = 10.0


def snapshot() -> Snapshot:
    """The last snapshot; an empty one before the controller's first."""
    settings = context().settings
    return resources().snapshot or Snapshot(
        taken_epoch=0.0,
        controller_started_epoch=0.0,
        worker_type=settings.worker_type,
        max_concurrent_per_worker=settings.max_concurrent_tasks,
        target_workers=settings.worker_count,
    )


def status() -> Status:
    """State of the service, `degraded` where the figures cannot be current."""
    here, view = context(), snapshot()
    reason = _degraded_reason()
    figures = view.figures
    return Status(
        service=SERVICE,
        status="degraded" if reason else "running",
        uptime_seconds=uptime_seconds(),
        version=VERSION,
        environment=here.settings.environment,
        port=here.settings.port,
        features=Features(),
        worker_summary=_summary(view),
        nats_info=NatsInfo(
            url=mask_text(here.resources.url),
            connected=here.resources.nats_connected,
            connection_count=sum(each.nats_connected for each in view.workers),
        ),
        statistics=Statistics(
            tasks_processed=figures.tasks_processed,
            tasks_failed=figures.tasks_failed,
            current_active_tasks=len(view.active),
            average_task_duration=figures.average_duration_seconds or 0.0,
        ),
        degraded_reason=reason,
    )


def uptime_seconds() -> float:
    """Seconds since the service was started."""
    return round(max(0.0, time.time() - context().started_epoch), 2)


def _degraded_reason() -> str | None:
    here = resources()
    if not here.nats_connected:
        return "NATS is not connected: the figures are the last known. Check NATS_URL."
    age = here.snapshot_age_seconds()
    if age is None:
        return "The controller has not reported yet. Start it (python -m bridge controller)."
    if age > STALE_SECONDS:
        return (
            f"The controller has not reported for {age:.0f} s: the figures are the last known. "
            "Start it (python -m bridge controller)."
        )
    return None


def _summary(view: Snapshot) -> WorkerSummary:
    return WorkerSummary(
        total_workers=len(view.workers),
        running_workers=sum(each.state == "running" for each in view.workers),
        worker_type=view.worker_type,
        max_concurrent_per_worker=view.max_concurrent_per_worker,
        total_max_concurrent=_capacity(view.workers),
    )


def _capacity(workers: list[WorkerState]) -> int:
    return sum(each.max_concurrent for each in workers if each.state == "running")


def _utilisation(active: int, capacity: int) -> float:
    return round(active / capacity, 4) if capacity else 0.0


def _taken_at(view: Snapshot) -> str | None:
    return from_epoch(view.taken_epoch) if view.taken_epoch else None


def workers_status() -> WorkersStatus:
    """State of every worker."""
    view = snapshot()
    states = msgspec.convert(view.workers, list[WorkerStatus], from_attributes=True)
    return WorkersStatus(summary=_summary(view), workers=states, taken_at=_taken_at(view))


def workers_stats() -> WorkersStats:
    """Figures of every worker."""
    view = snapshot()
    rows = [
        WorkerStats(
            worker_id=each.worker_id,
            tasks_processed=each.tasks_processed,
            tasks_failed=each.tasks_failed,
            active_tasks=each.active_tasks,
            max_concurrent=each.max_concurrent,
            utilisation=_utilisation(each.active_tasks, each.max_concurrent),
        )
        for each in view.workers
    ]
    capacity, active = _capacity(view.workers), len(view.active)
    return WorkersStats(
        utilisation=_utilisation(active, capacity),
        active_tasks=active,
        total_max_concurrent=capacity,
        workers=rows,
        taken_at=_taken_at(view),
    )


def scaling() -> Scaling:
    """What the fleet shall be and why. Raises ServiceUnavailable, NatsConnectionError."""
    here = context()
    state = here.resources.scaling_state()
    if state is None:
        raise ServiceUnavailable(
            "The controller has not decided anything yet. Start it (python -m bridge controller)."
        )
    until = state.manual_until_epoch
    limits = here.settings.scaling
    return Scaling(
        mode=state.mode,
        worker_count=state.workers,
        concurrency=state.concurrency,
        manual_worker_count=state.pinned_workers,
        manual_concurrency=state.pinned_concurrency,
        manual_until_at=None if until is None else from_epoch(until),
        blind_reason=state.blind_reason,
        limits=ScalingLimits(
            min_workers=limits.min_workers,
            max_workers=limits.max_workers,
            max_concurrent_tasks=here.settings.max_concurrent_tasks,
        ),
        decisions=state.decisions,
    )


def task_stats() -> TaskStats:
    """Key figures and queue depths."""
    view = snapshot()
    active = len(view.active)
    return TaskStats(
        figures=view.figures,
        utilisation=_utilisation(active, _capacity(view.workers)),
        active_tasks=active,
        queues=view.queues,
        taken_at=_taken_at(view),
    )
