"""Somebody's Celery app that does without JSON: how it serializes comes from the environment."""

from __future__ import annotations

import os
import time
from typing import Any

from celery import Celery, Task

app = Celery("serializers")
app.conf.update(
    task_default_queue="serializers",
    task_track_started=True,
    result_extended=True,
    result_serializer=os.environ.get("APP_RESULT_SERIALIZER", "json"),
    result_compression=os.environ.get("APP_RESULT_COMPRESSION"),
    accept_content=os.environ.get("APP_ACCEPT_CONTENT", "json").split(),
    result_accept_content=["json", "pickle", "yaml"],
    broker_connection_retry_on_startup=True,
)


@app.task(name="serializers.doubled", bind=True)
def doubled(self: Task, words: list[str]) -> list[str]:
    """Report a state of its own, then return every word twice."""
    self.update_state(state="PROGRESS", meta={"done": len(words)})
    time.sleep(0.1)
    return [word * 2 for word in words]


@app.task(name="serializers.fail")
def fail(message: str) -> Any:
    raise ValueError(message)
