"""A live copy of a KV bucket."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

from bridge.errors import BridgeError, NatsConnectionError
from bridge.wire.connection import Connection
from bridge.wire.jetstream import JetStream, is_gone
from bridge.wire.kv import Bucket
from bridge.wire.options import ConnectOptions
from bridge.wire.protocol import Message

logger = logging.getLogger("nats")

T = TypeVar("T")


class BucketMirror(Generic[T]):
    """A live copy of a bucket, kept by a thread with a connection of its own.

    `values` is replaced, never changed, so readers need no lock. It is read anew every
    `resync_seconds`, since the server tells subscribers nothing of what expires.

    `decode` turns a stored value into what readers get, and raises ValueError or MsgspecError
    on one it does not know.
    """

    _BACK_OFF_SECONDS = (0.1, 0.5, 1.0, 2.0)

    def __init__(
        self,
        options: ConnectOptions,
        bucket: str,
        decode: Callable[[bytes], T],
        resync_seconds: float = 15.0,
    ) -> None:
        self.values: dict[str, T] = {}
        self.connected = False
        #: notified after every change of `values` or `connected`
        self.changed = threading.Condition()
        self._options = options
        self._bucket = bucket
        self._decode = decode
        self._resync_seconds = resync_seconds
        self._stopping = threading.Event()
        self._connection: Connection | None = None
        self._thread = threading.Thread(target=self._run, name=f"mirror-{bucket}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread and wait for it."""
        self._stopping.set()
        connection = self._connection
        if connection is not None:
            connection.close()
        if self._thread.is_alive():
            self._thread.join()

    def wait_for(self, condition: Callable[[dict[str, T]], bool], timeout: float) -> bool:
        """True when `condition(values)` holds within `timeout` seconds."""
        with self.changed:
            return self.changed.wait_for(lambda: condition(self.values), timeout)

    def wait_until_connected(self, timeout: float) -> bool:
        """True once the bucket has been read, False when it is not within `timeout` seconds."""
        with self.changed:
            return self.changed.wait_for(lambda: self.connected, timeout)

    def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            try:
                self._follow()
            except BridgeError as error:
                failures = failures + 1 if not self.connected else 1
                if failures == 1 and not self._stopping.is_set():
                    logger.warning("mirror of %s lost NATS: %s", self._bucket, error)
            self._set(self.values, connected=False)
            back_off = self._BACK_OFF_SECONDS[min(failures, len(self._BACK_OFF_SECONDS)) - 1]
            self._stopping.wait(back_off)

    def _follow(self) -> None:
        connection = Connection(self._options)
        self._connection = connection
        try:
            connection.connect()
            bucket = Bucket(JetStream(connection), self._bucket)
            changes: list[Message] = []
            connection.subscribe(bucket.change_subject(">"), changes.append)
            while not self._stopping.is_set():
                changes.clear()
                raw = bucket.items()
                self._set(self._decoded(raw), connected=True)
                self._apply_until_resync(connection, bucket, changes)
        finally:
            connection.close()

    def _apply_until_resync(
        self, connection: Connection, bucket: Bucket, changes: list[Message]
    ) -> None:
        resync_at = time.monotonic() + self._resync_seconds
        while not self._stopping.is_set():
            if changes:
                self._set(self._changed(bucket, changes), connected=True)
                changes.clear()
            left = resync_at - time.monotonic()
            if left <= 0:
                return
            try:
                connection.drain(left)
            except NatsConnectionError:
                raise
            except TimeoutError:
                return

    def _changed(self, bucket: Bucket, changes: list[Message]) -> dict[str, T]:
        prefix = bucket.change_subject("")
        values = dict(self.values)
        for message in changes:
            key = message.subject.removeprefix(prefix)
            if is_gone(message):
                values.pop(key, None)
            else:
                values.update(self._decoded({key: message.payload}))
        return values

    def _decoded(self, raw: dict[str, bytes]) -> dict[str, T]:
        values = {}
        for key, payload in raw.items():
            try:
                values[key] = self._decode(payload)
            except (msgspec.MsgspecError, ValueError) as error:
                # Written by a newer or foreign program: one bad value must not blind us to others.
                logger.warning("%s in %s is not readable: %s", key, self._bucket, error)
        return values

    def _set(self, values: dict[str, T], *, connected: bool) -> None:
        with self.changed:
            self.values, self.connected = values, connected
            self.changed.notify_all()
