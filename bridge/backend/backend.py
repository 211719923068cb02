"""Celery result backend `nats://`: one message per task in a KV bucket with a TTL.

``nats://[user:password@|token@]host[:4222][,host…][/vhost]`` or ``tls://…``. ``replicas``,
``retry_policy`` and the options of `bridge.wire.options.TRANSPORT_OPTIONS` may stand in
``result_backend_transport_options``.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from celery import states
from celery.backends.asynchronous import AsyncBackendMixin
from celery.utils.serialization import get_pickled_exception
from kombu.exceptions import EncodeError
from kombu.utils.encoding import bytes_to_str, str_to_bytes
from kombu.utils.functional import retry_over_time

from bridge.backend.chord import ChordBackend
from bridge.backend.waiter import ResultConsumer
from bridge.errors import NatsConnectionError, NatsPermissionError
from bridge.masking import mask_text
from bridge.names import Names, escape
from bridge.records import (
    CANCELLED_START,
    JSON_CONTENT_TYPE,
    RESULT_CONTENT_TYPE,
    RESULT_META,
)
from bridge.wire import (
    Bucket,
    ConnectionPool,
    ConnectOptions,
    JetStream,
    KeyExists,
    PayloadTooLarge,
)
from bridge.wire.options import TRANSPORT_OPTIONS, vhost_of

logger = logging.getLogger("nats")

T = TypeVar("T")
_DEFAULT_URL = "nats://localhost:4222"
#: A failure that does not fit into one message keeps this much of its text ...
_TRUNCATED_CHARACTERS = 10_000
#: ... in each of the exception's first arguments.
_TRUNCATED_ARGUMENTS = 10
#: What stays of a failure that is cut, and what a header tells of a result whose payload is not
#: plain JSON; of an error's text the header keeps
_DESCRIBED = ("status", "date_done", "name", "worker", "queue", "retries", "started_epoch")
_DESCRIBED_CHARACTERS = 1_000


class NatsBackend(AsyncBackendMixin, ChordBackend):
    """Results in the bucket `results`; thread-, greenlet- and fork-safe."""

    ResultConsumer = ResultConsumer
    supports_native_join = True
    supports_autoexpire = True
    supports_result_compression = True
    persistent = True

    #: A server that restarts is back within a minute; until then a finished task waits here. The
    #: time is limited and not the tries: one alone takes seconds where a cluster has no leader.
    retry_policy = {
        "timeout": 60.0,
        "interval_start": 0.1,
        "interval_step": 0.3,
        "interval_max": 1,
    }

    def __init__(self, url: str | None = None, expires: Any = None, **kwargs: Any) -> None:
        # Celery passes "nats" alone when the backend is named without a URL.
        self.url = url if url and "://" in url else _DEFAULT_URL
        super().__init__(url=self.url, **kwargs)
        self.expires = self.prepare_expires(expires, type=int)
        options = self.app.conf.get("result_backend_transport_options") or {}
        self.retry_policy = {**self.retry_policy, **options.get("retry_policy", {})}
        self.connect_options = ConnectOptions.from_url(
            self.url,
            name="celery-results",
            **{key: options[key] for key in TRANSPORT_OPTIONS if key in options},
        )
        names = Names(vhost_of(self.url))
        self._names = names
        self._replicas = int(options.get("replicas") or os.environ.get("NATS_REPLICAS") or 1)
        self.bucket_name = names.bucket("results")
        self._pool = ConnectionPool(self.connect_options)
        self._topology_known = False
        self._is_plain_json = self.content_type == JSON_CONTENT_TYPE and not self.compression
        self.result_consumer = self.ResultConsumer(
            self, self.app, self.accept, self._pending_results, self._pending_messages
        )

    def __reduce__(self, args: Any = (), kwargs: Any = None) -> Any:
        """A copy, also one in another process, asks the same server."""
        own = {"url": self.url, "expires": self.expires}
        return super().__reduce__(args, {**(kwargs or {}), **own})

    def as_uri(self, include_password: bool = False) -> str:
        return self.url if include_password else mask_text(self.url)

    def close(self) -> None:
        """Close the connections. A backend that is used again opens one for every call."""
        self.result_consumer.stop()
        self._pool.close()

    def exception_safe_to_retry(self, exc: BaseException) -> bool:
        return isinstance(exc, NatsConnectionError) and not isinstance(exc, NatsPermissionError)

    def result_key(self, task_id: str) -> str:
        """Return the key a task's result is stored under."""
        return self._key(self.get_key_for_task(task_id))

    @staticmethod
    def _key(key: str | bytes) -> str:
        return escape(bytes_to_str(key))

    # -- the key-value store -----------------------------------------------------------

    def _with_bucket(self, work: Callable[[Bucket, JetStream], T]) -> T:
        """Run `work`, again when NATS was away. Raises NatsConnectionError in the end.

        Raises NatsPermissionError at once: trying for a minute would give nobody the permission.
        """

        def once() -> T:
            with self._pool.connection() as connection:
                js = JetStream(connection, timeout=5.0)
                if not self._topology_known:
                    js.ensure_topology(self._names, self._replicas)
                    self._topology_known = True
                return work(Bucket(js, self.bucket_name), js)

        def pause_unless_refused(error: Exception, pauses: Iterator[float], tries: int) -> float:
            if isinstance(error, NatsPermissionError):
                raise error
            if not tries:
                seconds = self.retry_policy["timeout"] or math.inf
                logger.warning("results wait up to %.0f s: %s", seconds, error)
            # What nobody listens for may be a bucket that was removed.
            self._topology_known = False
            return next(pauses)

        result: T = retry_over_time(
            once, (NatsConnectionError,), errback=pause_unless_refused, **self.retry_policy
        )
        return result

    def get(self, key: str | bytes) -> bytes | None:
        return self._with_bucket(lambda bucket, _: bucket.get(self._key(key)))

    def mget(self, keys: Iterable[str | bytes]) -> list[bytes | None]:
        names = [self._key(key) for key in keys]

        def work(bucket: Bucket, js: JetStream) -> list[bytes | None]:
            subjects = [bucket.subject(name) for name in names]
            messages = js.get_last_many(bucket.stream, subjects)
            return [None if message is None else message.payload for message in messages]

        return self._with_bucket(work)

    def set(
        self, key: str | bytes, value: str | bytes, headers: Mapping[str, str] | None = None
    ) -> None:
        data = str_to_bytes(value)
        self._with_bucket(
            lambda bucket, _: bucket.put(self._key(key), data, self._ttl, headers or {})
        )

    @property
    def _ttl(self) -> float | None:
        return self.expires or None

    def delete(self, key: str | bytes) -> None:
        # A purge leaves nothing behind, a KV delete would leave its marker for ever.
        self._with_bucket(
            lambda bucket, js: js.purge((bucket.stream, bucket.subject(self._key(key))))
        )

    # -- results -----------------------------------------------------------------------

    def on_task_call(self, producer: Any, task_id: str) -> None:
        """Nothing: waiting starts in `get()`, which also sees what came before it."""

    def _get_result_meta(
        self, result: Any, state: str, traceback: Any, request: Any, **kwargs: Any
    ) -> dict[str, Any]:
        meta: dict[str, Any] = super()._get_result_meta(result, state, traceback, request, **kwargs)
        if request:
            # Few and small, so they are kept even where `result_extended` is off.
            meta["name"] = getattr(request, "task", None)
            meta["worker"] = getattr(request, "hostname", None)
            meta["retries"] = getattr(request, "retries", None)
            meta["started_epoch"] = getattr(request, "started_epoch", None)
            meta["finished_epoch"] = time.time() if state in states.READY_STATES else None
        return meta

    def _store_result(
        self,
        task_id: str,
        result: Any,
        state: str,
        traceback: Any = None,
        request: Any = None,
        **_: Any,
    ) -> Any:
        """Store one state, unless `_is_overtaken`; a success always, which saves a round trip.

        Raises EncodeError for a result larger than NATS takes.
        """
        key = self.get_key_for_task(task_id)
        meta = self._get_result_meta(result, state, traceback, request)
        meta["task_id"] = bytes_to_str(task_id)
        headers = {} if self._is_plain_json else self._described(meta)
        try:
            if state == states.SUCCESS:
                self.set(key, self.encode(meta), headers)
            else:
                self._set_unless_overtaken(key, meta, headers)
        except PayloadTooLarge as error:
            if state not in states.EXCEPTION_STATES:
                raise EncodeError(f"the result of task {task_id} is too large: {error}") from error
            self._set_unless_overtaken(key, _truncated(meta), headers)
        return result

    def _set_unless_overtaken(
        self, key: str | bytes, meta: Mapping[str, Any], headers: Mapping[str, str]
    ) -> None:
        """Store a state, one round trip where it is the task's first."""
        data = str_to_bytes(self.encode(meta))

        def work(bucket: Bucket, _: JetStream) -> None:
            name = self._key(key)
            revision: int | None = None
            while revision is None:
                try:
                    revision = bucket.create(name, data, self._ttl, headers)
                except KeyExists:
                    [entry] = bucket.entries([name])
                    if entry is None:  # deleted meanwhile
                        continue
                    if _is_overtaken(meta, self.decode_result(entry.value)):
                        return
                    revision = bucket.update(name, data, entry.revision, self._ttl, headers)

        self._with_bucket(work)

    def _described(self, meta: dict[str, Any]) -> dict[str, str]:
        """Return the headers by which the API follows a task whose result it cannot read."""
        told = {name: meta[name] for name in _DESCRIBED if meta.get(name) is not None}
        if meta["status"] in states.EXCEPTION_STATES:
            told["result"] = _named(meta["result"], _DESCRIBED_CHARACTERS)
        return {RESULT_CONTENT_TYPE: self.content_type, RESULT_META: json.dumps(told)}

    def decode(self, payload: Any) -> Any:
        """Return what was encoded; also the JSON that the API writes of a task it cancelled."""
        if not self._is_plain_json and payload and payload.startswith(CANCELLED_START):
            return json.loads(payload)
        return super().decode(payload)


def _is_overtaken(meta: Mapping[str, Any], stored: Mapping[str, Any]) -> bool:
    """True where `meta` comes too late to be the state of a task.

    A lost worker's late report does not undo a success. A worker sends the next try before it
    stores RETRY, so that one may have begun by then, or ended.
    """
    if stored["status"] == states.SUCCESS:
        return True
    is_retry = meta["status"] == states.RETRY
    return is_retry and (stored.get("retries") or 0) > (meta.get("retries") or 0)


def _truncated(meta: dict[str, Any]) -> dict[str, Any]:
    """Return a failure's meta with its texts cut to what surely fits."""
    traceback = meta["traceback"]
    return {
        **{key: meta[key] for key in ("task_id", *_DESCRIBED) if key in meta},
        "result": _named(meta["result"], _TRUNCATED_CHARACTERS),
        "traceback": traceback and str(traceback)[-_TRUNCATED_CHARACTERS:],
        "children": [],
    }


def _named(error: Any, characters: int) -> Any:
    """Return type and first arguments of an error as Celery's JSON has them, each text cut."""
    if isinstance(error, BaseException):
        error = get_pickled_exception(error)
        kind = type(error)
        error = {
            "exc_type": kind.__qualname__,
            "exc_message": error.args,
            "exc_module": kind.__module__,
        }
    if not isinstance(error, dict) or "exc_message" not in error:
        return None if error is None else _cut(str(error), characters)
    texts = error["exc_message"]
    texts = texts if isinstance(texts, list | tuple) else [texts]
    cut = [_cut(str(text), characters) for text in texts[:_TRUNCATED_ARGUMENTS]]
    return {**error, "exc_message": cut}


def _cut(text: str, characters: int) -> str:
    return text if len(text) <= characters else f"{text[:characters]}… (cut)"
