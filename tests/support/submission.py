"""The submission room on a real server, for tests: a bucket that says a worker lives."""

from __future__ import annotations

import time
from typing import Any, Self

import msgspec

from bridge.names import Names, escape
from bridge.records import SNAPSHOT_KEY, Snapshot, TaskType, WorkerRecord
from bridge.submission.cancel import Canceller
from bridge.submission.deadline import CONNECT_SECONDS
from bridge.submission.keys import result_key
from bridge.submission.lookup import TaskLookup
from bridge.submission.registry import LiveWorker, TaskTypes
from bridge.submission.submit import Submitter
from bridge.wire import Bucket, Connection, ConnectionPool, ConnectOptions, JetStream, Message
from tests.support.waiting import wait_until

QUEUE = "celery"
TASK_TYPE = TaskType(
    name="test",
    queue=QUEUE,
    schema={
        "type": "object",
        "properties": {"message": {"type": "string"}},
        "additionalProperties": False,
    },
)


def worker_record(*types: TaskType) -> WorkerRecord:
    """What a worker announces that stays alive for an hour without saying so again."""
    return WorkerRecord(
        hostname="general-worker-1@host",
        pid=1,
        pool="solo",
        concurrency=1,
        queues=[QUEUE],
        types=list(types or (TASK_TYPE,)),
        started_epoch=time.time(),
        announced_epoch=time.time() + 3600,
    )


class MemoryView:
    """A bucket's live copy that the test fills itself."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values
        self.connected = True


class Room:
    """Submitter, lookup and canceller on one server, and a connection to look behind them."""

    def __init__(self, url: str) -> None:
        options = ConnectOptions.from_url(url, connect_timeout=CONNECT_SECONDS)
        self.names = names = Names()
        self.connection = Connection(options)
        self.connection.connect()
        self.js = JetStream(self.connection)
        self.js.ensure_topology(names)
        self.pool = ConnectionPool(options)
        self.snapshot = MemoryView({})
        worker = LiveWorker(worker_record())
        self.submitter = Submitter(self.pool, names, TaskTypes(MemoryView({"w": worker})))
        self.lookup = TaskLookup(self.pool, names, self.snapshot)
        self.canceller = Canceller(self.pool, names, self.lookup)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.close()
        self.connection.close()

    def announce(self) -> None:
        """Let a worker live, for whoever reads the bucket."""
        record = worker_record()
        self.bucket("workers").put(escape(record.hostname), msgspec.json.encode(record))

    def withdraw(self) -> None:
        """Take back what `announce` and a snapshot left in the buckets."""
        self.bucket("workers").delete(escape(worker_record().hostname))
        self.bucket("status").delete(SNAPSHOT_KEY)

    def reconnect(self) -> None:
        """Look behind the scenes again after the server was restarted."""
        self.connection.close()
        self.connection = Connection(self.connection.options)
        self.connection.connect()
        self.js = JetStream(self.connection)

    def queued(self) -> int:
        """How many messages the task stream holds, schedules included."""
        state = self.js.api(f"STREAM.INFO.{self.names.task_stream}")["state"]
        return int(state["messages"])

    def last(self, subject: str) -> Message | None:
        """The last message of the task stream on a subject."""
        return self.js.get_last(self.names.task_stream, subject)

    def bucket(self, name: str) -> Bucket:
        return Bucket(self.js, self.names.bucket(name))

    def store_result(self, task_id: str, *, ttl_seconds: float | None = None, **meta: Any) -> None:
        """Write a result as a worker does."""
        value = msgspec.json.encode({"task_id": task_id, **meta})
        self.bucket("results").put(result_key(task_id), value, ttl_seconds)

    def wait_until_result_expires(self, task_id: str) -> None:
        """Return when the server has dropped the result."""
        wait_until(lambda: self.bucket("results").get(result_key(task_id)) is None)

    def tombstone(self, task_id: str) -> bytes | None:
        return self.bucket("revoked").get(escape(task_id))

    def set_snapshot(self, snapshot: Snapshot) -> None:
        self.snapshot.values[SNAPSHOT_KEY] = snapshot
