"""A worker tells what it can run, so that the REST front end needs none of its code."""

from __future__ import annotations

import logging
import os
import time
from typing import Any

import msgspec
from celery import bootsteps

from bridge.errors import NatsConnectionError
from bridge.names import escape
from bridge.records import (
    ANNOUNCE_SECONDS,
    JSON_CONTENT_TYPE,
    WORKER_TTL_SECONDS,
    TaskType,
    WorkerRecord,
)
from bridge.wire import Bucket, ConnectionPool, JetStream, JetStreamError, PayloadTooLarge
from bridge.worker.schema import ANYTHING, task_types

logger = logging.getLogger("nats")


class Announce(bootsteps.StartStopStep):
    """Keeps this worker's record in the bucket `workers` while it consumes."""

    requires = ("celery.worker.consumer.tasks:Tasks", "bridge.worker.tombstones:Tombstones")

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        self._started_epoch = time.time()
        self._timer_entry: Any = None
        self._pool: ConnectionPool | None = None
        self._bucket = ""
        self._queues: list[str] = []
        self._types: list[TaskType] = []

    def start(self, consumer: Any) -> None:
        broker = consumer.connection.connection
        # A connection of its own: under thread pools Celery's timer runs beside the consumer.
        self._pool = ConnectionPool(broker.wire.options, max_idle=1)
        self._bucket = broker.names.bucket("workers")
        if not _accepts_json(consumer):
            logger.warning(
                "accept_content lacks json: this worker's tasks cannot be submitted over REST. "
                "Add json to it if they should be."
            )
        self._announce(consumer)
        self._timer_entry = consumer.timer.call_repeatedly(
            ANNOUNCE_SECONDS, self._announce, (consumer,)
        )

    def stop(self, consumer: Any) -> None:
        """Take the record back, so that nobody counts on this worker any more."""
        if self._timer_entry is not None:
            self._timer_entry.cancel()
            self._timer_entry = None
        pool, self._pool = self._pool, None
        if pool is None:
            return
        try:
            with pool.connection() as connection:
                Bucket(JetStream(connection), self._bucket).delete(escape(consumer.hostname))
        except (NatsConnectionError, JetStreamError) as error:
            logger.warning("the announcement stays until it expires: %s", error)
        finally:
            pool.close()

    shutdown = stop

    def _announce(self, consumer: Any) -> None:
        if self._pool is None:
            return
        try:
            with self._pool.connection() as connection:
                self.store(Bucket(JetStream(connection), self._bucket), consumer)
        except (NatsConnectionError, JetStreamError, PayloadTooLarge) as error:
            logger.warning("this worker could not be announced, next try soon: %s", error)

    def store(self, bucket: Bucket, consumer: Any) -> None:
        """Store the worker's record, with less of its tasks where it would be too large.

        Raises NatsConnectionError, JetStreamError, and PayloadTooLarge where nothing is left.
        """
        record = self._record(consumer)
        key = escape(consumer.hostname)
        while True:
            try:
                bucket.put(key, msgspec.json.encode(record), WORKER_TTL_SECONDS)
            except PayloadTooLarge as error:
                if not self._types:
                    raise
                self._leave_out_something(error)
                record = msgspec.structs.replace(record, types=self._types)
            else:
                return

    def _leave_out_something(self, error: PayloadTooLarge) -> None:
        """Drop what can best be done without, until the queues change."""
        if any(each.doc for each in self._types):
            left_out = "descriptions"
            self._types = [msgspec.structs.replace(each, doc="") for each in self._types]
        elif any(each.schema != ANYTHING for each in self._types):
            left_out = "JSON Schemas: over REST they accept any arguments"
            self._types = [msgspec.structs.replace(each, schema=ANYTHING) for each in self._types]
        else:
            left_out = "names: over REST they are not offered"
            self._types = []
        logger.warning(
            "the announcement has %d bytes and the NATS server takes %d: this worker's tasks are "
            "announced without their %s. Raise max_payload in the server's configuration, or have "
            "workers of their own for some queues, if that matters.",
            error.size,
            error.limit,
            left_out,
        )

    def _record(self, consumer: Any) -> WorkerRecord:
        queues = sorted(queue.name for queue in consumer.task_consumer.queues)
        if queues != self._queues:
            self._queues, self._types = queues, task_types(consumer.app, queues)
        return WorkerRecord(
            hostname=consumer.hostname,
            pid=os.getpid(),
            pool=type(consumer.pool).__module__.rsplit(".", 1)[-1],
            concurrency=consumer.pool.num_processes,
            queues=queues,
            types=self._types,
            started_epoch=self._started_epoch,
            announced_epoch=time.time(),
            accepts_json=_accepts_json(consumer),
        )


def _accepts_json(consumer: Any) -> bool:
    # kombu has None for what it always accepts, JSON among it.
    accepted = consumer.task_consumer.accept
    return accepted is None or JSON_CONTENT_TYPE in accepted
