"""The OpenAPI document, made from the types that decode requests and encode answers. Pure."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from bridge.envelope import Failure
from bridge.records import ScalingResult, WorkerChange, WorkerState
from bridge.submission.cancel import Cancellation
from bridge.submission.idempotency import MAX_KEY_CHARACTERS
from bridge.submission.request import Accepted, Submission
from bridge.submission.view import TaskView
from web import models
from web.figures import VERSION

MAX_WAIT_SECONDS: Final = 60.0
_REF_TEMPLATE = "#/components/schemas/{name}"
#: Every endpoint may answer with these.
_COMMON = (400, 404, 405, 500)


class Endpoint(msgspec.Struct, frozen=True):
    """One operation, as the document tells it."""

    method: str
    path: str
    summary: str
    #: type of the answer's `data`
    data: Any
    #: type of the request's body
    body: Any = None
    parameters: tuple[dict[str, Any], ...] = ()
    #: statuses beyond `_COMMON`
    refusals: tuple[int, ...] = ()
    open: bool = False

    @property
    def tag(self) -> str:
        """Heading under which the document shows it."""
        return next((tag for tag in ("tasks", "workers") if f"/{tag}" in self.path), "service")


def _query(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": schema, "description": description}


def _path(name: str, description: str, taken: tuple[str, ...]) -> dict[str, Any]:
    """A path parameter; `taken` are the words that are addresses of their own there."""
    return {
        "name": name,
        "in": "path",
        "required": True,
        "schema": {"type": "string", "minLength": 1, "not": {"enum": list(taken)}},
        "description": description,
    }


_WAIT = _query(
    "wait",
    {"type": "number", "minimum": 0, "maximum": MAX_WAIT_SECONDS, "default": 0},
    "Seconds to wait for the end of the task; the answer comes as soon as it has ended.",
)
_TERMINATE = _query(
    "terminate", {"type": "boolean", "default": False}, "End the task even if it runs."
)
_IDEMPOTENCY = {
    "name": "Idempotency-Key",
    "in": "header",
    "schema": {
        "type": "string",
        "pattern": f"^[ -~]{{1,{MAX_KEY_CHARACTERS}}}$",
    },
    "description": "The same key with the same body submits one task only, for at least 24 hours.",
}
_TASK_ID = _path("task_id", "As the submission answered it.", ("submit", "types", "stats"))
_WORKER_ID = _path(
    "worker_id", "As GET /api/v1/workers lists it.", ("status", "stats", "scale", "scaling")
)

ENDPOINTS: Final = (
    Endpoint(
        "post",
        "/api/v1/tasks/submit",
        "Submit a task. Answered once NATS has stored it.",
        Accepted,
        body=Submission,
        parameters=(_IDEMPOTENCY,),
        refusals=(409, 413, 415, 503),
    ),
    Endpoint(
        "get",
        "/api/v1/tasks/types",
        "What can be submitted now, with the JSON Schema of its arguments.",
        models.TaskTypes,
    ),
    Endpoint(
        "get",
        "/api/v1/tasks/stats",
        "Throughput, success rate, durations, utilisation, queue depths.",
        models.TaskStats,
    ),
    Endpoint(
        "get",
        "/api/v1/tasks/{task_id}",
        "State and result of a task. A failed task is a 200 that says FAILURE.",
        TaskView,
        parameters=(_TASK_ID, _WAIT),
        refusals=(503,),
    ),
    Endpoint(
        "delete",
        "/api/v1/tasks/{task_id}",
        "Cancel a task.",
        Cancellation,
        parameters=(_TASK_ID, _TERMINATE),
        refusals=(503,),
    ),
    Endpoint("get", "/api/v1/workers", "List the workers.", models.Workers),
    Endpoint("get", "/api/v1/workers/status", "State of the workers.", models.WorkersStatus),
    Endpoint("get", "/api/v1/workers/stats", "Figures of the workers.", models.WorkersStats),
    Endpoint(
        "get", "/api/v1/workers/{worker_id}", "One worker.", WorkerState, parameters=(_WORKER_ID,)
    ),
    Endpoint(
        "post",
        "/api/v1/workers/scale",
        "Change the size of the fleet. Answered once the workers are there, or gone.",
        ScalingResult,
        body=models.ScaleRequest,
        refusals=(409, 413, 415, 503),
    ),
    Endpoint(
        "get",
        "/api/v1/workers/scaling",
        "What the fleet shall be, and the last decisions with their reasons.",
        models.Scaling,
        refusals=(503,),
    ),
    Endpoint(
        "post",
        "/api/v1/workers/{worker_id}/restart",
        "Let a worker finish its tasks and start it again. Answered once it is up.",
        WorkerChange,
        parameters=(_WORKER_ID,),
        refusals=(409, 503),
    ),
    Endpoint(
        "delete",
        "/api/v1/workers/{worker_id}",
        "Let a worker finish its tasks and have one less. Answered once it is gone.",
        ScalingResult,
        parameters=(_WORKER_ID,),
        refusals=(409, 503),
    ),
    Endpoint("get", "/api/v1/status", "State of the service.", models.Status),
    Endpoint("get", "/health", "The process is alive.", models.Health, open=True),
    Endpoint(
        "get",
        "/ready",
        "NATS answers and at least one worker is alive.",
        models.Readiness,
        refusals=(503,),
        open=True,
    ),
)


def build(*, keys_required: bool) -> bytes:
    """Return the document (OpenAPI 3.1) as JSON."""
    types = [each for point in ENDPOINTS for each in (point.data, point.body) if each]
    refs, components = msgspec.json.schema_components([*types, Failure], ref_template=_REF_TEMPLATE)
    schemas = dict(zip([*types, Failure], refs, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for point in ENDPOINTS:
        operation = _operation(point, schemas, keys_required=keys_required)
        paths.setdefault(point.path, {})[point.method] = operation
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "Task Worker Service",
            "version": VERSION,
            "description": "Celery tasks on NATS JetStream, over HTTP.",
        },
        "paths": paths,
        "components": {"schemas": components},
    }
    if keys_required:
        document["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
        document["security"] = [{"bearer": []}, {"apiKey": []}]
    return msgspec.json.encode(document)


def _operation(
    point: Endpoint, schemas: dict[Any, dict[str, Any]], *, keys_required: bool
) -> dict[str, Any]:
    responses = {"200": _success(schemas[point.data])}
    statuses = {*_COMMON, *point.refusals}
    if keys_required and not point.open:
        statuses.add(401)
    refused = {"description": "Refused", "content": _json(schemas[Failure])}
    responses.update({str(status): refused for status in sorted(statuses)})
    operation: dict[str, Any] = {
        "operationId": f"{point.method} {point.path}",
        "summary": point.summary,
        "tags": [point.tag],
        "responses": responses,
    }
    if point.parameters:
        operation["parameters"] = list(point.parameters)
    if point.body is not None:
        operation["requestBody"] = {"required": True, "content": _json(schemas[point.body])}
    if point.open and keys_required:
        operation["security"] = []
    return operation


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _success(data: dict[str, Any]) -> dict[str, Any]:
    envelope = {
        "type": "object",
        "required": ["status", "message", "data", "timestamp"],
        "properties": {
            "status": {"const": "success"},
            "message": {"type": "string"},
            "data": data,
            "timestamp": {"type": "string", "format": "date-time"},
        },
    }
    return {"description": "Done", "content": _json(envelope)}
