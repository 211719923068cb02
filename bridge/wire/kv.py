"""KV buckets (ADR-8 of NATS) over JetStream."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import msgspec

from bridge.errors import BridgeError
from bridge.names import bucket_change_subject, bucket_stream, bucket_subject
from bridge.wire.jetstream import (
    WRONG_LAST_SEQUENCE,
    JetStream,
    JetStreamError,
    Stored,
    is_gone,
)
from bridge.wire.protocol import Message

_DELETE = {"KV-Operation": "DEL"}
_NO_HEADERS: Mapping[str, str] = {}


#: Requests in one write; the answers stay well below what a server holds for a client where they
#: are some kilobytes each.
_REQUESTS = 500


class KeyExists(BridgeError):
    """`Bucket.create` found a value already there."""


class Entry(msgspec.Struct, frozen=True):
    """A value and the revision it was stored under."""

    value: bytes
    revision: int


def whole_seconds(ttl: float) -> str:
    """Return a time to live as the server knows it: whole seconds from 1, rounded up."""
    return str(max(1, math.ceil(ttl)))


def ttl_headers(ttl_seconds: float | None) -> dict[str, str]:
    """Return the header that makes a message expire."""
    return {} if ttl_seconds is None else {"Nats-TTL": whole_seconds(ttl_seconds)}


def _entry(stored: Stored | None) -> Entry | None:
    if stored is None or is_gone(Message("", 0, "", stored.hdrs, stored.data)):
        return None
    return Entry(stored.data, stored.seq)


class Bucket:
    """One KV bucket. Keys must already be legal (`bridge.names.escape`)."""

    def __init__(self, js: JetStream, name: str) -> None:
        self._js = js
        self.name = name
        self.stream = bucket_stream(name)

    def subject(self, key: str) -> str:
        return bucket_subject(self.name, key)

    def change_subject(self, key: str) -> str:
        """Subject to subscribe to for changes of a key; what comes there is already stored."""
        return bucket_change_subject(self.name, key)

    def get(self, key: str) -> bytes | None:
        message = self._js.get_last(self.stream, self.subject(key))
        return None if message is None else message.payload

    def put(
        self,
        key: str,
        value: bytes,
        ttl_seconds: float | None = None,
        headers: Mapping[str, str] = _NO_HEADERS,
    ) -> int:
        """Store, with further `headers`, and return the revision."""
        fields = {**ttl_headers(ttl_seconds), **headers}
        return self._js.publish(self.subject(key), value, fields).seq

    def create(
        self,
        key: str,
        value: bytes,
        ttl_seconds: float | None = None,
        headers: Mapping[str, str] = _NO_HEADERS,
    ) -> int:
        """Store, with further `headers`, only where there is no value. Raises KeyExists."""
        headers = {
            "Nats-Expected-Last-Subject-Sequence": "0",
            **ttl_headers(ttl_seconds),
            **headers,
        }
        try:
            return self._js.publish(self.subject(key), value, headers).seq
        except JetStreamError as error:
            if error.err_code != WRONG_LAST_SEQUENCE:
                raise
        return self._create_over_marker(key, value, headers)

    def _create_over_marker(self, key: str, value: bytes, headers: Mapping[str, str]) -> int:
        """A deleted key still holds its marker: replace exactly that."""
        [last] = self._js.get_stored(self.stream, [self.subject(key)])
        if _entry(last) is not None:
            raise KeyExists(f"{key} is already in {self.name}")
        sequence = "0" if last is None else str(last.seq)
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

    def update(
        self,
        key: str,
        value: bytes,
        revision: int,
        ttl_seconds: float | None = None,
        headers: Mapping[str, str] = _NO_HEADERS,
    ) -> int | None:
        """Store where the key is still at `revision`; return the new one, None where it is not."""
        expected = {"Nats-Expected-Last-Subject-Sequence": str(revision)}
        fields = {**expected, **ttl_headers(ttl_seconds), **headers}
        try:
            return self._js.publish(self.subject(key), value, fields).seq
        except JetStreamError as error:
            if error.err_code != WRONG_LAST_SEQUENCE:
                raise
        return None

    def entries(self, keys: Iterable[str], at_once: int = _REQUESTS) -> list[Entry | None]:
        """Return what is stored, as the stream's leader knows it.

        `get` may be answered by a copy of the stream that has not seen the latest change. Where
        values may be large, `at_once` is the connection's `most_at_once`.
        """
        keys = list(keys)
        found: list[Entry | None] = []
        for start in range(0, len(keys), at_once):
            subjects = [self.subject(key) for key in keys[start : start + at_once]]
            found += map(_entry, self._js.get_stored(self.stream, subjects))
        return found

    def keys(self, pattern: str) -> list[str]:
        """Return the keys a pattern (``*``, ``>``) matches, as the stream's leader knows them."""
        prefix = self.subject("")
        found: list[str] = []
        while True:
            request = {"subjects_filter": self.subject(pattern), "offset": len(found)}
            info = self._js.api(f"STREAM.INFO.{self.stream}", request)
            page = info["state"].get("subjects") or {}
            found += [subject.removeprefix(prefix) for subject in page]
            if not page or len(found) >= info.get("total", 0):
                return found

    def delete(
        self,
        key: str,
        revision: int | None = None,
        ttl_seconds: float | None = None,
        headers: Mapping[str, str] = _NO_HEADERS,
    ) -> None:
        """Remove a value; with a `revision` only where it is still at that.

        `ttl_seconds` is how long the marker stays that stands for it from then on, with further
        `headers`.
        """
        headers = {**_DELETE, **headers}
        if revision is None:
            self.put(key, b"", ttl_seconds, headers)
        else:
            self.update(key, b"", revision, ttl_seconds, headers)

    def items(self) -> dict[str, bytes]:
        """Return all present values by key. Raises JetStreamError, NatsConnectionError."""
        if self._js.connection.is_clustered:
            # A copy of the stream may not know the latest yet.
            keys = self.keys(">")
            return {
                key: entry.value
                for key, entry in zip(keys, self.entries(keys), strict=True)
                if entry is not None
            }
        prefix = self.subject("")
        found: dict[str, bytes] = {}
        first: int | None = 1
        while first is not None:
            messages, first = self._js.page(self.stream, f"{prefix}>", first)
            for message in messages:
                key = message.headers["Nats-Subject"].removeprefix(prefix)
                # A key that changes between two pages comes again in the later one.
                if is_gone(message):
                    found.pop(key, None)
                else:
                    found[key] = message.payload
        return found
