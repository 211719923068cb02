"""A Celery app whose workers Flower is tested with."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from celery import Celery
from celery.contrib.abortable import AbortableTask

app = Celery("flower_app")
app.conf.update(
    broker_url=os.environ["CELERY_BROKER_URL"],
    result_backend=os.environ["CELERY_BROKER_URL"],
    task_acks_late=True,
    worker_prefetch_multiplier=1,
    worker_pool_restarts=True,
    task_send_sent_event=True,
    result_extended=True,
)


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.task
def fail(reason: str) -> None:
    raise ValueError(reason)


@app.task
def hold(directory: str) -> str:
    """Run until there is a file ``go`` in `directory`, having made ``begun`` there."""
    Path(directory, "begun").touch()
    while not Path(directory, "go").exists():
        time.sleep(0.02)
    return "went"


@app.task(bind=True, base=AbortableTask)
def until_aborted(self: Any) -> str:
    while not self.is_aborted():
        time.sleep(0.05)
    return "noticed"
