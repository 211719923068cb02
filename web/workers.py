"""Workers: list, state, figures, scale, restart, stop."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response

from bridge.errors import InvalidParameters, InvalidWorkerConfig, WorkerNotFound
from bridge.records import ScaleCommand, ScalingResult, WorkerCommand
from bridge.submission.fields import read_fields
from web import commands, figures, parameters
from web.context import context
from web.models import ScaleRequest, Workers
from web.responses import answer

blueprint = Blueprint("workers", __name__, url_prefix="/api/v1/workers")


@blueprint.get("")
def workers() -> Response:
    parameters.only()
    states = figures.snapshot().workers
    return answer("Workers retrieved successfully", Workers(total=len(states), workers=states))


@blueprint.get("/status")
def status() -> Response:
    parameters.only()
    return answer("Worker status retrieved successfully", figures.workers_status())


@blueprint.get("/stats")
def stats() -> Response:
    parameters.only()
    return answer("Worker statistics retrieved successfully", figures.workers_stats())


@blueprint.get("/<worker_id>")
def worker(worker_id: str) -> Response:
    parameters.only()
    for state in figures.snapshot().workers:
        if state.worker_id == worker_id:
            return answer("Worker retrieved successfully", state)
    raise WorkerNotFound(f"No worker is called {worker_id!r}. GET /api/v1/workers lists them.")


@blueprint.get("/scaling")
def scaling() -> Response:
    parameters.only()
    return answer("Scaling state retrieved successfully", figures.scaling())


@blueprint.post("/scale")
def scale() -> Response:
    parameters.only()
    reply = commands.give("scale", _scale_command(parameters.json_body()))
    assert reply.result is not None
    return answer(_told(reply.result), reply.result)


@blueprint.post("/<worker_id>/restart")
def restart(worker_id: str) -> Response:
    parameters.only()
    reply = commands.give("restart", WorkerCommand(worker_id=worker_id))
    return answer("Worker restarted successfully", reply.worker)


@blueprint.delete("/<worker_id>")
def remove(worker_id: str) -> Response:
    parameters.only()
    reply = commands.give("remove", WorkerCommand(worker_id=worker_id))
    return answer("Worker stopped successfully", reply.result)


def _scale_command(body: Any) -> ScaleCommand:
    """Raises InvalidWorkerConfig, InvalidParameters."""
    wanted = read_fields(body, ScaleRequest, InvalidWorkerConfig)
    workers, concurrency = wanted.worker_count or None, wanted.concurrency or None
    if wanted.mode:
        if workers or concurrency or wanted.hold_seconds:
            raise InvalidParameters("mode: send it alone, it gives everything to the autoscaler.")
        return ScaleCommand(automatic=True)
    if workers is None and concurrency is None:
        raise InvalidParameters(
            'worker_count: send it, or concurrency, or both; or mode, which is "auto".'
        )
    _check_limits(workers, concurrency)
    return ScaleCommand(
        workers=workers, concurrency=concurrency, hold_seconds=wanted.hold_seconds or None
    )


def _check_limits(workers: int | None, concurrency: int | None) -> None:
    settings = context().settings
    least, most = settings.scaling.min_workers, settings.scaling.max_workers
    if workers is not None and not least <= workers <= most:
        raise InvalidWorkerConfig(
            f"worker_count: send {least} to {most}, or change MIN_WORKERS and MAX_WORKERS."
        )
    if concurrency is not None and concurrency > settings.max_concurrent_tasks:
        raise InvalidWorkerConfig(
            f"concurrency: send 1 to {settings.max_concurrent_tasks}, or change "
            "MAX_CONCURRENT_TASKS."
        )


def _told(result: ScalingResult) -> str:
    before, after = result.before, result.after
    if before.worker_count != after.worker_count:
        return f"Workers scaled from {before.worker_count} to {after.worker_count} successfully"
    if before.concurrency != after.concurrency:
        return f"Concurrency scaled from {before.concurrency} to {after.concurrency} successfully"
    return f"{after.worker_count} workers are running"
