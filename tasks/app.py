"""The Celery app of the handlers in this directory.

Nothing here belongs to the bridge: installing it makes ``nats://`` a broker and a result
backend of every Celery app. Celery itself reads CELERY_BROKER_URL and CELERY_RESULT_BACKEND,
which go before the two URLs below.
"""

from __future__ import annotations

import os
from typing import Final

from celery import Celery

#: Where NATS listens when the environment names no other place.
DEFAULT_URL: Final = "nats://localhost:4222"

_SECONDS_PER_DAY: Final = 86_400

app = Celery("tasks", include=["tasks.samples", "tasks.market"])

app.conf.update(
    broker_url=DEFAULT_URL,
    result_backend=DEFAULT_URL,
    broker_connection_retry_on_startup=True,
    # JSON only: a message must never be able to run code, as a pickle could.
    task_serializer="json",
    result_serializer="json",
    accept_content=["json"],
    # A task leaves the stream only when it has ended, so one whose worker dies runs again.
    task_acks_late=True,
    # The same when only its pool process dies: sent again, at most `max_retries` times, so that
    # a task that kills its process ends as FAILURE instead of killing processes for ever.
    task_retry_on_worker_lost=True,
    # Only if sending it again failed: back to the queue.
    task_reject_on_worker_lost=True,
    # Celery waits three minutes by default, too long for a caller who waits for the result.
    task_annotations={"*": {"default_retry_delay": 1}},
    # Per pool process one task that runs and one that waits: no process idles for the way to
    # NATS and back, and little else is held from other workers or overtaken by priority.
    worker_prefetch_multiplier=2,
    # Flower's button "restart pool".
    worker_pool_restarts=True,
    # A task that runs says so: STARTED with its worker, not still queued.
    task_track_started=True,
    result_extended=True,
    result_expires=float(os.environ.get("RESULT_EXPIRES_SECONDS") or _SECONDS_PER_DAY),
    worker_send_task_events=True,
    task_send_sent_event=True,
)
