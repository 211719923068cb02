"""What one web process holds: connections, live copies of buckets, and the calls on them."""

from __future__ import annotations

import logging
import threading
import time

import msgspec

from bridge.errors import NatsConnectionError
from bridge.names import Names
from bridge.records import SCALING_KEY, SNAPSHOT_KEY, ScalingState, Snapshot
from bridge.submission.cancel import Canceller
from bridge.submission.deadline import CONNECT_SECONDS
from bridge.submission.lookup import TaskLookup
from bridge.submission.registry import LiveWorker, TaskTypes, decode_worker
from bridge.submission.submit import Submitter
from bridge.wire import (
    Bucket,
    BucketMirror,
    ConnectionPool,
    ConnectOptions,
    JetStream,
    JetStreamError,
)
from bridge.wire.options import vhost_of
from config.settings import Settings

logger = logging.getLogger("web")

_READY_SECONDS = 1.0
_START_SECONDS = 2.0
_RETRY_SECONDS = 1.0

_decode_snapshot = msgspec.json.Decoder(Snapshot).decode


def decode_status(value: bytes) -> Snapshot | None:
    """Decode a value of bucket `status`; None for what is no snapshot."""
    try:
        return _decode_snapshot(value)
    except msgspec.ValidationError:
        # The controller keeps its own state in the same bucket.
        return None


class Resources:
    """Made once in each process, after it was forked. `start` before use, `stop` at the end."""

    def __init__(self, settings: Settings) -> None:
        self.url = settings.server_url
        options = ConnectOptions.from_url(self.url, name="web", connect_timeout=CONNECT_SECONDS)
        self.names = names = Names(vhost_of(settings.server_url))
        self.pool = pool = ConnectionPool(options)
        self.workers: BucketMirror[LiveWorker] = BucketMirror(
            options, names.bucket("workers"), decode_worker
        )
        self.status: BucketMirror[Snapshot | None] = BucketMirror(
            options, names.bucket("status"), decode_status
        )
        self.types = TaskTypes(self.workers)
        self.submitter = Submitter(pool, names, self.types)
        self.lookup = TaskLookup(pool, names, self.status, show_tracebacks=settings.show_tracebacks)
        self.canceller = Canceller(
            pool, names, self.lookup, result_ttl_seconds=settings.result_expires_seconds
        )
        self._replicas = settings.nats.replicas
        self._stopping = threading.Event()
        self._opening = threading.Thread(target=self._open, name="web-open", daemon=True)

    def start(self) -> None:
        """Connect; returns once the workers are known, or soon where NATS is to come up later."""
        self._opening.start()
        # A process that answered before would refuse what its siblings accept.
        self.workers.wait_until_connected(_START_SECONDS)

    def stop(self) -> None:
        """End the threads and close the connections."""
        self._stopping.set()
        self._opening.join()
        for mirror in (self.workers, self.status):
            mirror.stop()
        self.pool.close()

    def _open(self) -> None:
        """Create what is missing in NATS, then follow the buckets."""
        failed = False
        while not self._stopping.is_set():
            try:
                with self.pool.connection() as connection:
                    JetStream(connection).ensure_topology(self.names, self._replicas)
                break
            except (NatsConnectionError, JetStreamError) as error:
                if not failed:
                    logger.warning("web.nats_unavailable %s", error)
                failed = True
                self._stopping.wait(_RETRY_SECONDS)
        if not self._stopping.is_set():
            self.workers.start()
            self.status.start()

    @property
    def snapshot(self) -> Snapshot | None:
        """The controller's last view, None before the first."""
        return self.status.values.get(SNAPSHOT_KEY)

    def await_snapshot(self, taken_epoch: float, timeout: float) -> None:
        """Wait, no longer than `timeout` seconds, for a snapshot as young as this."""

        def is_there(values: dict[str, Snapshot | None]) -> bool:
            snapshot = values.get(SNAPSHOT_KEY)
            return snapshot is not None and snapshot.taken_epoch >= taken_epoch

        self.status.wait_for(is_there, timeout)

    def scaling_state(self) -> ScalingState | None:
        """What the autoscaler wants, None before it ever ran. Raises NatsConnectionError."""
        with self.pool.connection() as connection:
            stored = Bucket(JetStream(connection), self.names.bucket("status")).get(SCALING_KEY)
        return None if stored is None else msgspec.json.decode(stored, type=ScalingState)

    @property
    def nats_connected(self) -> bool:
        """Whether the live copies are connected."""
        return self.status.connected and self.workers.connected

    def check_nats(self) -> None:
        """Ask NATS for an answer. Raises NatsConnectionError."""
        with self.pool.connection() as connection:
            connection.flush(_READY_SECONDS)

    def live_worker_count(self) -> int:
        """Workers that announced themselves lately."""
        return len(self.types.live_workers())

    def snapshot_age_seconds(self) -> float | None:
        """Age of the snapshot, None without one."""
        snapshot = self.snapshot
        return None if snapshot is None else max(0.0, time.time() - snapshot.taken_epoch)
