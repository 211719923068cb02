"""Rival: a hand-written Flask front of Celery on Redis, as such fronts are commonly written.

    gunicorn -w 2 -k gthread --threads 8 redis_front:front
    celery -A redis_front:worker_app worker

REDIS_URL names the server; start it with ``--appendonly yes``, so that it, too, keeps what it
accepted.
"""

from __future__ import annotations

import os
from typing import Any

from celery import Celery
from flask import Flask, Response, jsonify, request

REDIS_URL = os.environ.get("REDIS_URL", "redis://localhost:6379/0")

worker_app = Celery("rival", broker=REDIS_URL, backend=REDIS_URL)
worker_app.conf.task_acks_late = True

# Without a result backend: with one, Celery subscribes to the result of every task it sends and
# keeps each subscription, for which a front that reads results by key has no use.
sender = Celery("rival", broker=REDIS_URL)
# As many connections as gunicorn has threads.
sender.conf.broker_pool_limit = 8

front = Flask(__name__)


@worker_app.task(name="noop")
def noop() -> None:
    """Do nothing."""


@front.post("/submit")
def submit() -> tuple[Response, int] | Response:
    """Queue one task; answers its id."""
    body: dict[str, Any] = request.get_json()
    if body.get("task_type") not in worker_app.tasks:
        return jsonify(status="error", message="unknown task_type"), 400
    sent = sender.send_task(body["task_type"], kwargs=body.get("task_data", {}))
    return jsonify(status="success", data={"task_id": sent.id})


@front.get("/tasks/<task_id>")
def result(task_id: str) -> Response:
    """Tell a task's state and result."""
    meta = worker_app.backend.get_task_meta(task_id)
    return jsonify(status="success", data={"state": meta["status"], "result": meta["result"]})
