"""Service: health, readiness, status."""

from __future__ import annotations

from flask import Blueprint, Response

from bridge.errors import ServiceUnavailable
from web import figures, parameters
from web.context import resources
from web.models import Health, Readiness
from web.responses import answer

blueprint = Blueprint("status", __name__)


@blueprint.get("/health")
def health() -> Response:
    data = Health(
        service=figures.SERVICE,
        status="healthy",
        version=figures.VERSION,
        uptime_seconds=figures.uptime_seconds(),
    )
    return answer("Service is healthy", data)


@blueprint.get("/ready")
def ready() -> Response:
    here = resources()
    here.check_nats()
    live = here.live_worker_count()
    if not live:
        raise ServiceUnavailable(
            "No worker is running. Start one (python -m bridge controller, or celery worker)."
        )
    return answer("Service is ready", Readiness(nats_connected=True, live_workers=live))


@blueprint.get("/api/v1/status")
def status() -> Response:
    parameters.only()
    return answer("Service status retrieved successfully", figures.status())
