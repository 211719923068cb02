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


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One operation, as the document tells it."""

    method: str
    path: str
    summary: str
    tag: str
    data: Any
    body: Any = None
    parameters: tuple[dict[str, Any], ...] = ()
    #: statuses beyond `_COMMON`
    refusals: tuple[int, ...] = ()
    open: bool = False


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
        method="post",
        path="/api/v1/tasks/submit",
        summary="Submit a task. Answered once NATS has stored it.",
        tag="tasks",
        data=Accepted,
        body=Submission,
        parameters=(_IDEMPOTENCY,),
        refusals=(409, 413, 415, 503),
    ),
    Endpoint(
        method="get",
        path="/api/v1/tasks/types",
        summary="What can be submitted now, with the JSON Schema of its arguments.",
        tag="tasks",
        data=models.TaskTypes,
    ),
    Endpoint(
        method="get",
        path="/api/v1/tasks/stats",
        summary="Throughput, success rate, durations, utilisation, queue depths.",
        tag="tasks",
        data=models.TaskStats,
    ),
    Endpoint(
        method="get",
        path="/api/v1/tasks/{task_id}",
        summary="State and result of a task. A failed task is a 200 that says FAILURE.",
        tag="tasks",
        data=TaskView,
        parameters=(_TASK_ID, _WAIT),
        refusals=(503,),
    ),
    Endpoint(
        method="delete",
        path="/api/v1/tasks/{task_id}",
        summary="Cancel a task.",
        tag="tasks",
        data=Cancellation,
        parameters=(_TASK_ID, _TERMINATE),
        refusals=(503,),
    ),
    Endpoint(
        method="get",
        path="/api/v1/workers",
        summary="List the workers.",
        tag="workers",
        data=models.Workers,
    ),
    Endpoint(
        method="get",
        path="/api/v1/workers/status",
        summary="State of the workers.",
        tag="workers",
        data=models.WorkersStatus,
    ),
    Endpoint(
        method="get",
        path="/api/v1/workers/stats",
        summary="Figures of the workers.",
        tag="workers",
        data=models.WorkersStats,
    ),
    Endpoint(
        method="get",
        path="/api/v1/workers/{worker_id}",
        summary="One worker.",
        tag="workers",
        data=WorkerState,
        parameters=(_WORKER_ID,),
    ),
    Endpoint(
        method="post",
        path="/api/v1/workers/scale",
        summary="Change the size of the fleet. Answered once the workers are there, or gone.",
        tag="workers",
        data=ScalingResult,
        body=models.ScaleRequest,
        refusals=(409, 413, 415, 503),
    ),
    Endpoint(
        method="get",
        path="/api/v1/workers/scaling",
        summary="What the fleet shall be, and the last decisions with their reasons.",
        tag="workers",
        data=models.Scaling,
        refusals=(503,),
    ),
    Endpoint(
        method="post",
        path="/api/v1/workers/{worker_id}/restart",
        summary="Let a worker finish its tasks and start it again. Answered once it is up.",
        tag="workers",
        data=WorkerChange,
        parameters=(_WORKER_ID,),
        refusals=(409, 503),
    ),
    Endpoint(
        method="delete",
        path="/api/v1/workers/{worker_id}",
        summary="Let a worker finish its tasks and have one less. Answered once it is gone.",
        tag="workers",
        data=ScalingResult,
        parameters=(_WORKER_ID,),
        refusals=(409, 503),
    ),
    Endpoint(
        method="get",
        path="/api/v1/status",
        summary="State of the service.",
        tag="service",
        data=models.Status,
    ),
    Endpoint(
        method="get",
        path="/health",
        summary="The process is alive.",
        tag="service",
        data=models.Health,
        open=True,
    ),
    Endpoint(
        method="get",
        path="/ready",
        summary="NATS answers and at least one worker is alive.",
        tag="service",
        data=models.Readiness,
        refusals=(503,),
        open=True,
    ),
)


def build(*, keys_required: bool) -> bytes:
    """Return the document (OpenAPI 3.1) as JSON."""
    types = [each for point in ENDPOINTS for each in (point.data, point.body) if each is not None]
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
    responses = {} if point.data is None else {"200": _success(schemas[point.data])}
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
