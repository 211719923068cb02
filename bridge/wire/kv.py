"""KV buckets (ADR-8 of NATS) over JetStream, and a live copy of one."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

from bridge.errors import BridgeError, NatsConnectionError
from bridge.names import bucket_stream, bucket_subject
from bridge.wire.connection import Connection
from bridge.wire.jetstream import WRONG_LAST_SEQUENCE, JetStream, JetStreamError, is_gone
from bridge.wire.options import ConnectOptions
from bridge.wire.protocol import Message

logger = logging.getLogger("nats")

#: The server refuses a direct multi-get of more than 1024 subjects (nats-facts, section 1).
_MULTI_GET_KEYS = 1000
_DELETE = {"KV-Operation": "DEL"}

T = TypeVar("T")


class KeyExists(BridgeError):
    """`Bucket.create` found a value already there."""


def ttl_headers(ttl_seconds: float | None) -> dict[str, str]:
    """Return the header that makes a message expire. The server knows whole seconds from 1."""
    return {} if ttl_seconds is None else {"Nats-TTL": str(max(1, math.ceil(ttl_seconds)))}


class Bucket:
    """One KV bucket. Keys must already be legal (`bridge.names.escape`)."""

    def __init__(self, js: JetStream, name: str) -> None:
        self._js = js
        self.name = name
        self.stream = bucket_stream(name)

    def subject(self, key: str) -> str:
        return bucket_subject(self.name, key)

    def get(self, key: str) -> bytes | None:
        message = self._js.get_last(self.stream, self.subject(key))
        return None if message is None else message.payload

    def put(self, key: str, value: bytes, ttl_seconds: float | None = None) -> int:
        """Store and return the revision."""
        return self._js.publish(self.subject(key), value, ttl_headers(ttl_seconds)).seq

    def create(self, key: str, value: bytes, ttl_seconds: float | None = None) -> int:
        """Store only where there is no value. Raises KeyExists."""
        headers = {"Nats-Expected-Last-Subject-Sequence": "0", **ttl_headers(ttl_seconds)}
        try:
            return self._js.publish(self.subject(key), value, headers).seq
        except JetStreamError as error:
            if error.err_code != WRONG_LAST_SEQUENCE:
                raise
        return self._create_over_marker(key, value, headers)

    def _create_over_marker(self, key: str, value: bytes, headers: dict[str, str]) -> int:
        """A deleted key still holds its marker: replace exactly that."""
        [last] = self._js.connection.request_many(
            [(f"$JS.API.DIRECT.GET.{self.stream}.{self.subject(key)}", b"", None)],
            self._js.timeout,
        )
        if not is_gone(last):
            raise KeyExists(f"{key} is already in {self.name}")
        sequence = last.headers.get("Nats-Sequence", "0")
        try:
            return self._js.publish(
                self.subject(key),
                value,
                {**headers, "Nats-Expected-Last-Subject-Sequence": sequence},
            ).seq
        except JetStreamError as error:
            if error.err_code != WRONG_LAST_SEQUENCE:
                raise
            raise KeyExists(f"{key} is already in {self.name}") from error

    def delete(self, key: str) -> None:
        self._js.publish(self.subject(key), b"", _DELETE)

    def items(self) -> dict[str, bytes]:
        """Return all present values by key."""
        prefix = self.subject("")
        info = self._js.api(f"STREAM.INFO.{self.stream}", {"subjects_filter": f"{prefix}>"})
        subjects = list((info["state"].get("subjects") or {}).keys())
        found: dict[str, bytes] = {}
        for start in range(0, len(subjects), _MULTI_GET_KEYS):
            request = {"multi_last": subjects[start : start + _MULTI_GET_KEYS]}
            for message in self._js.connection.collect(
                f"$JS.API.DIRECT.GET.{self.stream}",
                msgspec.json.encode(request),
                lambda message: message.status is not None,
            ):
                if not is_gone(message):
                    found[_subject_of(message).removeprefix(prefix)] = message.payload
        return found


def _subject_of(message: Message) -> str:
    return message.headers.get("Nats-Subject", message.subject)


class BucketMirror(Generic[T]):
    """A live copy of a bucket, kept by a thread with a connection of its own.

    `values` is replaced, never changed, so readers need no lock. It is read anew every
    `resync_seconds`, since the server tells subscribers nothing of what expires.
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

    def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            try:
                self._follow()
            except (NatsConnectionError, JetStreamError) as error:
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
            connection.subscribe(f"{bucket.subject('')}>", changes.append)
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
        prefix = bucket.subject("")
        while not self._stopping.is_set():
            if changes:
                values = dict(self.values)
                for message in changes:
                    key = message.subject.removeprefix(prefix)
                    if is_gone(message):
                        values.pop(key, None)
                    else:
                        values.update(self._decoded({key: message.payload}))
                changes.clear()
                self._set(values, connected=True)
            try:
                connection.drain(self._resync_seconds)
            except TimeoutError as error:
                if isinstance(error, NatsConnectionError):
                    raise
                return

    def _decoded(self, raw: dict[str, bytes]) -> dict[str, T]:
        values = {}
        for key, payload in raw.items():
            try:
                values[key] = self._decode(payload)
            except msgspec.MsgspecError as error:
                # Written by a newer or foreign program: one bad value must not blind us to others.
                logger.warning("%s in %s is not readable: %s", key, self._bucket, error)
        return values

    def _set(self, values: dict[str, T], *, connected: bool) -> None:
        with self.changed:
            self.values, self.connected = values, connected
            self.changed.notify_all()
