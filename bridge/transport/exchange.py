"""Exchanges: which durable queues a message goes to, told through a KV bucket.

Transient queues need no entry here: they listen on the exchange's core subject themselves.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping

import msgspec

from bridge.names import EVENT_EXCHANGE, Names, escape
from bridge.wire import Bucket, JetStream, KeyExists, Message
from bridge.wire.jetstream import is_gone

EXCHANGE_TYPES = frozenset({"direct", "topic", "fanout"})
#: Nobody reads a marker later than with the table; there would be one for each queue ever bound.
_MARKER_SECONDS = 3600.0
#: On the deletion of a binding that nobody removed: its queue has expired.
_EXPIRED = "Celery-expired"


class Binding(msgspec.Struct, frozen=True, omit_defaults=True):
    """Bucket `bindings`: messages of an exchange with a matching key go to a durable queue."""

    exchange: str
    exchange_type: str
    queue: str
    binding_key: str
    #: the server drops the queue when nobody has used it for some time
    expires: bool = False

    def matches(self, routing_key: str) -> bool:
        return key_matches(self.exchange_type, self.binding_key, routing_key)

    @property
    def bucket_key(self) -> str:
        return f"{escape(self.exchange)}.{escape(self.queue)}.{escape(self.binding_key)}"


def is_celerys_own(exchange: str) -> bool:
    """True for Celery's events, remote control and replies, heard by who is there."""
    return exchange == EVENT_EXCHANGE or exchange.endswith(".pidbox")


def key_matches(exchange_type: str, binding_key: str, routing_key: str) -> bool:
    """True when an exchange of this type hands a message with `routing_key` to the binding."""
    if exchange_type == "fanout":
        return True
    if exchange_type == "topic":
        return _topic_matches(binding_key.split("."), routing_key.split("."))
    return binding_key == routing_key


def _topic_matches(pattern: list[str], words: list[str]) -> bool:
    if not pattern:
        return not words
    head, rest = pattern[0], pattern[1:]
    if head == "#":
        return any(_topic_matches(rest, words[skip:]) for skip in range(len(words) + 1))
    return bool(words) and head in ("*", words[0]) and _topic_matches(rest, words[1:])


class _Table:
    """The bucket as it was read at one time, and what was told of it since."""

    def __init__(self, sequence: int | None) -> None:
        #: None: deleted while the table was being read
        self.bindings: dict[str, Binding | None] = {}
        #: of the last change before which none is missing; None where none gets lost
        self.sequence = sequence
        self.is_complete = False

    def change(self, sequence: int, key: str, binding: Binding | None) -> None:
        """Take over what was told of one key, None for its deletion."""
        if self.sequence is not None:
            if sequence <= self.sequence:
                return  # told late: what was read is newer
            if sequence == self.sequence + 1:
                self.sequence = sequence
        if binding is None and self.is_complete:
            self.bindings.pop(key, None)
        else:
            self.bindings[key] = binding


class BindingTable:
    """The durable bindings of a virtual host, kept current while the connection is read."""

    def __init__(self, js: JetStream, names: Names) -> None:
        self._js = js
        self._bucket = Bucket(js, names.bucket("bindings"))
        #: replaced as a whole once it is complete
        self._table = _Table(None)
        #: the one that is being read, or was last
        self._next_table = self._table
        self._is_followed = False
        self._load_lock = threading.RLock()
        #: bucket key -> what this connection has bound of queues that expire, at which revision
        self._own: dict[str, tuple[Binding, int]] = {}

    def _loaded(self) -> dict[str, Binding | None]:
        if not self._table.is_complete:
            self._js.connection.require_usable()
            with self._load_lock:
                if not self._table.is_complete:
                    self._load()
        return self._table.bindings

    def _load(self) -> None:
        # Subscribe first, so that nothing changes unseen between the two.
        if not self._is_followed:
            self._js.connection.subscribe(self._bucket.change_subject(">"), self._on_change)
            self._is_followed = True
        sequence = self._last_sequence() if self._js.connection.is_clustered else None
        self._next_table = table = _Table(sequence)
        for key, value in self._bucket.items().items():
            # What was told meanwhile, a deletion too, is newer than this list.
            table.bindings.setdefault(key, _decode(value))
        table.is_complete = True
        self._table = table

    def _last_sequence(self) -> int:
        """Return the sequence of the bucket's last change, as its leader knows it."""
        # Not of the last message: a marker goes after a while, and with it what it counted.
        return self._js.ends([self._bucket.stream])[self._bucket.stream] - 1

    def _on_change(self, message: Message) -> None:
        key = message.subject.removeprefix(self._bucket.change_subject(""))
        binding = None if is_gone(message) else _decode(message.payload)
        sequence = int(message.headers["Nats-Sequence"])
        for table in {self._table, self._next_table}:
            table.change(sequence, key, binding)
        if "KV-Operation" in message.headers and _EXPIRED not in message.headers:
            own = self._own.get(key)
            if own is not None and own[1] < sequence:  # else it was told late
                self._own.pop(key, None)

    def _catch_up(self) -> None:
        """Have the table hold every change that anybody was told of. One round trip."""
        if not self._js.connection.is_clustered:
            self._js.connection.flush()
        elif self._last_sequence() != self._table.sequence:
            # The word of a change is lost with the route or the node that carried it.
            with self._load_lock:
                self._load()

    def queues_for(self, exchange: str, routing_key: str) -> dict[str, bool]:
        """Return the durable queues a message goes to, and whether each may have expired.

        Costs a round trip, after which no binding that anybody was told of is missing. Not for
        Celery's own exchanges: events are sent by the thousand, and remote control also works while
        a cluster elects a leader for the bindings. What has come already is read.
        """
        if self._table.is_complete and is_celerys_own(exchange):
            self._read_changes()
        elif self._table.is_complete:
            self._catch_up()
        found: dict[str, bool] = {}
        for binding in self.all():
            if binding.exchange == exchange and binding.matches(routing_key):
                found[binding.queue] = found.get(binding.queue, False) or binding.expires
        return found

    def _read_changes(self) -> None:
        with contextlib.suppress(TimeoutError):
            while True:
                self._js.connection.drain(0)

    def add(self, binding: Binding) -> None:
        if self._table.is_complete and self._js.connection.is_clustered:
            self._catch_up()  # its removal may have gone unheard
        if binding.expires:
            # Also where it is there: somebody may be about to remove that revision.
            revision = self._bucket.put(binding.bucket_key, msgspec.json.encode(binding))
            self._own[binding.bucket_key] = binding, revision
        elif self._loaded().get(binding.bucket_key) == binding:
            return
        else:
            self._create(binding)
        self._loaded()[binding.bucket_key] = binding

    def _create(self, binding: Binding) -> None:
        try:
            self._bucket.create(binding.bucket_key, msgspec.json.encode(binding))
        except KeyExists:
            # Another process was first, or the exchange changed its type.
            self._bucket.put(binding.bucket_key, msgspec.json.encode(binding))

    def restore(self, queue: str) -> None:
        """Bind a queue again as this connection had: it was lost, and others may have noticed."""
        for binding, _ in list(self._own.values()):
            if binding.queue == queue:
                self.add(binding)

    def revisions(self, queue: str) -> dict[str, int]:
        """Return the bucket's key and revision of each of a queue's bindings."""
        keys = [binding.bucket_key for binding in self.all() if binding.queue == queue]
        entries = zip(keys, self._bucket.entries(keys), strict=True)
        return {key: entry.revision for key, entry in entries if entry is not None}

    def remove_revisions(self, revisions: Mapping[str, int]) -> bool:
        """Remove bindings that are still at these revisions; return whether all are gone."""
        for key, revision in revisions.items():
            self._bucket.delete(key, revision, _MARKER_SECONDS, {_EXPIRED: "true"})
        return not any(self._bucket.entries(revisions))

    def remove(self, *, queue: str, exchange: str | None = None, key: str | None = None) -> None:
        """Remove a queue's bindings, all of them or those to one exchange and key."""
        for binding in self.all():
            if (
                binding.queue == queue
                and exchange in (None, binding.exchange)
                and key in (None, binding.binding_key)
            ):
                self._remove(binding)

    def remove_exchange(self, exchange: str) -> None:
        for binding in self.for_exchange(exchange):
            self._remove(binding)

    def _remove(self, binding: Binding) -> None:
        self._own.pop(binding.bucket_key, None)
        self._bucket.delete(binding.bucket_key, ttl_seconds=_MARKER_SECONDS)
        self._table.bindings.pop(binding.bucket_key, None)

    def all(self) -> list[Binding]:
        # A list at once: another thread may read of a change meanwhile.
        return [binding for binding in list(self._loaded().values()) if binding is not None]

    def for_exchange(self, exchange: str) -> list[Binding]:
        return [b for b in self.all() if b.exchange == exchange]


def _decode(value: bytes) -> Binding:
    return msgspec.json.decode(value, type=Binding)
