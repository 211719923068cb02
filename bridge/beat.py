"""A scheduler for `celery beat` of which several may run: one sends, the others stand by.

``celery -A app beat -S bridge.beat:NatsScheduler``. The one that sends holds a lease in the bucket
`status`; when it dies another has it within LEASE_SECONDS. The times of the last runs are kept
in NATS too, so the next beat, on whatever host, sends neither twice nor what was sent before.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from datetime import datetime
from typing import Any

import msgspec
from celery.beat import Scheduler
from celery.utils.log import get_logger

from bridge.errors import NatsConnectionError
from bridge.names import DEFAULT_VHOST, Names, escape
from bridge.wire import (
    Bucket,
    ConnectionPool,
    ConnectOptions,
    JetStream,
    JetStreamError,
    KeyExists,
)

logger = get_logger("celery.beat")

#: A beat that died is followed by another after this long.
LEASE_SECONDS = 6.0
#: How often the lease is renewed, and how often the others try for it.
_RENEW_SECONDS = 2.0
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class LastRun(msgspec.Struct, frozen=True):
    """What is kept of one entry: when it was sent last, and how often it was."""

    at: datetime
    count: int


class NatsScheduler(Scheduler):
    """Sends due entries while it holds the lease; see the module."""

    def __init__(self, app: Any, *args: Any, lazy: bool = False, **kwargs: Any) -> None:
        broker = app.connection_for_write()
        options = broker.transport.connect_options()
        if broker.alt:  # several servers: the lease outlives the first as well
            servers = ConnectOptions.from_url(",".join(broker.alt)).servers
            options = msgspec.structs.replace(options, servers=servers)
        self._pool = ConnectionPool(options, max_idle=1)
        self._names = Names(broker.virtual_host or DEFAULT_VHOST)
        self._status = self._names.bucket("status")
        # Beats of different apps do not stand in for one another.
        self._lease_key = f"beat.{escape(str(app.main))}.lease"
        self._runs_key = f"beat.{escape(str(app.main))}.runs"
        #: value of the lease, for whoever asks why another beat stands by
        self._holder = msgspec.json.encode({"host": socket.gethostname(), "pid": os.getpid()})
        #: revision of the lease while it is ours
        self._revision: int | None = None
        #: revision of the stored runs that ours follow, None while there are none
        self._runs_revision: int | None = None
        self._is_told_to_wait = False
        self._valid_until = 0.0
        self._renew_at = 0.0
        super().__init__(app, *args, lazy=lazy, **kwargs)

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Send what is due, if it is ours to send; return the seconds until the next look."""
        try:
            if not self._hold_lease():
                return _RENEW_SECONDS
            return min(float(super().tick(*args, **kwargs)), _RENEW_SECONDS)
        except (NatsConnectionError, JetStreamError) as error:
            # Unless renewed in time the lease is another's: nothing may be sent meanwhile. Whoever
            # has it next starts from the runs that were stored.
            logger.warning("beat: NATS is away, nothing is sent until it is back: %s", error)
            self._revision = None
            return _RENEW_SECONDS

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        """Store that the entry runs, then send it, so that nobody sends it a second time."""
        self.sync()
        if not self._is_leading():
            logger.warning("beat: %s is left to the beat that took over", entry.name)
            return
        super().apply_entry(entry, producer=producer)

    def sync(self) -> None:
        """Store the times of the last runs, and lose the lease where another beat did meanwhile.

        Raises NatsConnectionError, JetStreamError.
        """
        if not self._is_leading():
            return
        runs = msgspec.json.encode(
            {
                name: LastRun(entry.last_run_at, entry.total_run_count)
                for name, entry in self.schedule.items()
            }
        )
        with self._pool.connection() as connection:
            bucket = self._bucket(connection)
            # No clock is to be trusted after a pause of the machine: this is what decides.
            if self._runs_revision is not None:
                self._runs_revision = bucket.update(self._runs_key, runs, self._runs_revision)
            else:
                with contextlib.suppress(KeyExists):
                    self._runs_revision = bucket.create(self._runs_key, runs)
        if self._runs_revision is None:
            self._lose()

    def close(self) -> None:
        """Give the lease back, so that another beat goes on at once."""
        super().close()
        if self._is_leading():
            with self._pool.connection() as connection:
                self._bucket(connection).delete(self._lease_key)
        self._revision = None
        self._pool.close()

    @property
    def info(self) -> str:
        return f"    . lease -> {self._status} / {self._lease_key}"

    # -- the lease ---------------------------------------------------------------------

    def _is_leading(self) -> bool:
        return self._revision is not None and _now() < self._valid_until

    def _hold_lease(self) -> bool:
        now = _now()
        if self._is_leading() and now < self._renew_at:
            return True
        with self._pool.connection() as connection:
            bucket = self._bucket(connection)
            if self._revision is None:
                JetStream(connection).ensure_topology(self._names)
                self._take(bucket)
            else:
                self._renew(bucket)
        if self._revision is None:
            return False
        # Counted from before the write: the server cannot have ended the lease any earlier.
        self._valid_until, self._renew_at = now + LEASE_SECONDS, now + _RENEW_SECONDS
        return True

    def _take(self, bucket: Bucket) -> None:
        try:
            self._revision = bucket.create(self._lease_key, self._holder, LEASE_SECONDS)
        except KeyExists:
            self._tell_who_leads(bucket)
            return
        self._is_told_to_wait = False
        logger.info("beat: this one sends now for app %s", self.app.main)
        self._load_runs(bucket)

    def _tell_who_leads(self, bucket: Bucket) -> None:
        if self._is_told_to_wait:
            return
        [lease] = bucket.entries([self._lease_key])
        if lease is not None:
            self._is_told_to_wait = True
            logger.info(
                "beat: this one stands by, the lease of app %s is held by %s",
                self.app.main,
                lease.value.decode(errors="replace"),
            )

    def _renew(self, bucket: Bucket) -> None:
        assert self._revision is not None
        revision = bucket.update(self._lease_key, self._holder, self._revision, LEASE_SECONDS)
        if revision is None:
            self._lose()
        else:
            self._revision = revision

    def _lose(self) -> None:
        self._revision = None
        self._is_told_to_wait = True
        logger.warning("beat: the lease is another's now, this one stands by")

    def _load_runs(self, bucket: Bucket) -> None:
        [stored] = bucket.entries([self._runs_key])
        self._runs_revision = None if stored is None else stored.revision
        runs = msgspec.json.decode(stored.value, type=dict[str, LastRun]) if stored else {}
        for name, run in runs.items():
            entry = self.schedule.get(name)
            if entry is not None:
                entry.last_run_at, entry.total_run_count = run.at, run.count
        # Times have changed under the heap: build it anew.
        self._heap = None

    def _bucket(self, connection: Any) -> Bucket:
        return Bucket(JetStream(connection), self._status)


def _now() -> float:
    """Seconds that also pass while the machine is suspended, where the system counts them."""
    return time.clock_gettime(_CLOCK)
