"""Exchanges: which durable queues a message goes to, told through a KV bucket.

Transient queues need no entry here: they listen on the exchange's core subject themselves.
"""

from __future__ import annotations

import contextlib
import threading

import msgspec

from bridge.names import EVENT_EXCHANGE, Names, escape
from bridge.wire import Bucket, JetStream, KeyExists, Message
from bridge.wire.jetstream import is_gone

EXCHANGE_TYPES = frozenset({"direct", "topic", "fanout"})


class Binding(msgspec.Struct, frozen=True):
    """Bucket `bindings`: messages of an exchange with a matching key go to a durable queue."""

    exchange: str
    exchange_type: str
    queue: str
    binding_key: str

    def matches(self, routing_key: str) -> bool:
        return key_matches(self.exchange_type, self.binding_key, routing_key)

    @property
    def bucket_key(self) -> str:
        return f"{escape(self.exchange)}.{escape(self.queue)}.{escape(self.binding_key)}"


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


class BindingTable:
    """The durable bindings of a virtual host, kept current while the connection is read."""

    def __init__(self, js: JetStream, names: Names) -> None:
        self._js = js
        self._bucket = Bucket(js, names.bucket("bindings"))
        #: None: deleted while the table was being read
        self._bindings: dict[str, Binding | None] = {}
        self._is_loaded = False
        self._load_lock = threading.RLock()

    def _loaded(self) -> dict[str, Binding | None]:
        if not self._is_loaded:
            self._js.connection.require_usable()
            with self._load_lock:  # nobody may take a table for complete that is being read
                if not self._is_loaded:
                    self._load()
        return self._bindings

    def _load(self) -> None:
        # Subscribe first, so that nothing changes unseen between the two.
        self._js.connection.subscribe(self._bucket.change_subject(">"), self._on_change)
        for key, value in self._bucket.items().items():
            # What was told meanwhile, a deletion too, is newer than this list.
            self._bindings.setdefault(key, _decode(value))
        self._is_loaded = True

    def _on_change(self, message: Message) -> None:
        key = message.subject.removeprefix(self._bucket.change_subject(""))
        if not is_gone(message):
            self._bindings[key] = _decode(message.payload)
        elif self._is_loaded:
            self._bindings.pop(key, None)
        else:
            self._bindings[key] = None

    def queues_for(self, exchange: str, routing_key: str) -> set[str]:
        """Return the durable queues a message goes to, each once.

        Costs a round trip, after which no binding that anybody was told of is missing. Events
        are sent by the thousand and their receivers' queues are transient: for them it must do
        to read what has come already.
        """
        if self._is_loaded and exchange == EVENT_EXCHANGE:
            self._read_changes()
        elif self._is_loaded:
            self._js.connection.flush()
        return {
            binding.queue
            for binding in self.all()
            if binding.exchange == exchange and binding.matches(routing_key)
        }

    def _read_changes(self) -> None:
        with contextlib.suppress(TimeoutError):
            while True:
                self._js.connection.drain(0)

    def add(self, binding: Binding) -> None:
        if self._loaded().get(binding.bucket_key) == binding:
            return
        try:
            self._bucket.create(binding.bucket_key, msgspec.json.encode(binding))
        except KeyExists:
            # Another process was first, or the exchange changed its type.
            self._bucket.put(binding.bucket_key, msgspec.json.encode(binding))
        self._loaded()[binding.bucket_key] = binding

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
        self._bucket.delete(binding.bucket_key)
        self._bindings.pop(binding.bucket_key, None)

    def all(self) -> list[Binding]:
        # A list at once: another thread may read of a change meanwhile.
        return [binding for binding in list(self._loaded().values()) if binding is not None]

    def for_exchange(self, exchange: str) -> list[Binding]:
        return [b for b in self.all() if b.exchange == exchange]


def _decode(value: bytes) -> Binding:
    return msgspec.json.decode(value, type=Binding)
