"""Tasks: submit, look up, cancel, types, figures."""

from __future__ import annotations

from flask import Blueprint, Response, g, request

from bridge.submission import request as submissions
from web import figures, parameters
from web.context import resources
from web.models import TaskTypes
from web.openapi import MAX_WAIT_SECONDS
from web.responses import answer

blueprint = Blueprint("tasks", __name__, url_prefix="/api/v1/tasks")


@blueprint.post("/submit")
def submit() -> Response:
    parameters.only()
    submission = submissions.parse(parameters.json_body())
    key, client = request.headers.get("Idempotency-Key"), g.get("client", "")
    accepted = resources().submitter.submit(submission, key, client)
    return answer("Task submitted successfully", accepted)


@blueprint.get("/types")
def types() -> Response:
    parameters.only()
    return answer("Task types retrieved successfully", TaskTypes(types=resources().types.all()))


@blueprint.get("/stats")
def stats() -> Response:
    parameters.only()
    return answer("Task statistics retrieved successfully", figures.task_stats())


@blueprint.get("/<task_id>")
def look_up(task_id: str) -> Response:
    parameters.only(["wait"])
    wait_seconds = parameters.seconds("wait", MAX_WAIT_SECONDS)
    return answer("Task retrieved successfully", resources().lookup.wait(task_id, wait_seconds))


@blueprint.delete("/<task_id>")
def cancel(task_id: str) -> Response:
    parameters.only(["terminate"])
    terminate = parameters.flag("terminate")
    cancellation = resources().canceller.cancel(task_id, terminate=terminate)
    return answer(cancellation.detail, cancellation)
