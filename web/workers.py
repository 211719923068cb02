"""Workers: list, state, figures, scale."""

from __future__ import annotations

import msgspec
from flask import Blueprint, Response

from bridge.errors import InvalidWorkerConfig, ScalingError, WorkerNotFound
from bridge.submission.request import field_message
from web import figures, parameters
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


@blueprint.post("/scale")
def scale() -> Response:
    parameters.only()
    try:
        wanted = msgspec.convert(parameters.json_body(), ScaleRequest).worker_count
    except msgspec.ValidationError as error:
        raise InvalidWorkerConfig(field_message(str(error))) from error
    scaling = context().settings.scaling
    if not scaling.min_workers <= wanted <= scaling.max_workers:
        raise InvalidWorkerConfig(
            f"worker_count: send {scaling.min_workers} to {scaling.max_workers}, or change "
            "MIN_WORKERS and MAX_WORKERS."
        )
    raise ScalingError(
        "Scaling is not available yet. Set WORKER_COUNT and restart the controller.", status=503
    )
