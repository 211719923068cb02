"""Cancelled tasks that no live worker had heard of: read when a worker starts or reconnects."""

from __future__ import annotations

import logging
from typing import Any

from celery import bootsteps
from celery.worker import state

from bridge.names import unescape
from bridge.topology import BUCKET_TTL_SECONDS
from bridge.wire import Bucket

logger = logging.getLogger("nats")

#: Celery keeps 50,000 revoked ids for 3 hours; a cancelled task may wait much longer than that.
_MAX_REVOKED = 1_000_000


class Tombstones(bootsteps.StartStopStep):
    """Revokes what was cancelled while this worker was away.

    Runs once the control mailbox listens and before the first task is looked at, so a
    cancellation is either in the bucket by now or comes as a broadcast.
    """

    requires = ("celery.worker.consumer.control:Control", "celery.worker.consumer.tasks:Tasks")

    def start(self, consumer: Any) -> None:
        """Load the bucket. Raises NatsConnectionError, on which Celery connects again."""
        broker = consumer.connection.connection
        state.revoked.maxlen = _MAX_REVOKED
        state.revoked.expires = BUCKET_TTL_SECONDS["revoked"]
        bucket = Bucket(broker.js, broker.names.bucket("revoked"))
        task_ids = [unescape(key) for key in bucket.items()]
        state.revoked.update(task_ids)
        if task_ids:
            logger.info("%d cancelled tasks are known", len(task_ids))
