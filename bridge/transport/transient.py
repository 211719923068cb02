"""Queues that die with their connection: control mailboxes, replies, event receivers, broadcasts.

They are core NATS subscriptions and leave nothing in the server (ADR 0002).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from bridge.names import MAX_PRIORITY, Names
from bridge.transport.exchange import key_matches
from bridge.wire import Connection, Message

#: Core NATS watches no time to live: when a message ends (ms since the epoch).
EXPIRES_AT = "Expires-At"


def expiry_headers(ttl_seconds: float | None) -> dict[str, str]:
    """Return what lets the receiver tell that a message has outlived its time."""
    return {} if ttl_seconds is None else {EXPIRES_AT: str(int((time.time() + ttl_seconds) * 1e3))}


def priority_of(message: Message) -> int:
    """Return a message's priority; 0, as in AMQP, for one without."""
    text = message.headers.get("Priority", "")
    return min(int(text), MAX_PRIORITY) if text.isdecimal() else 0


def _is_expired(message: Message) -> bool:
    text = message.headers.get(EXPIRES_AT, "")
    return text.isdecimal() and time.time() * 1e3 >= int(text)


class TransientQueue:
    """One queue, filled by subscriptions; it holds messages until somebody takes them."""

    def __init__(
        self, connection: Connection, names: Names, name: str, *, auto_delete: bool
    ) -> None:
        self.name = name
        self.auto_delete = auto_delete
        self.messages: deque[Message] = deque()
        #: takes over from `messages` while there is a consumer
        self.on_message: Callable[[Message], None] | None = None
        self._connection = connection
        self._names = names
        #: exchange -> type and key of each binding; several may match one message
        self._bindings: dict[str, list[tuple[str, str]]] = {}
        self._sids: dict[tuple[str, str, str], list[int]] = {}
        self.bind("", "direct", name)

    def bind(self, exchange: str, exchange_type: str, key: str) -> None:
        """Listen for one binding; done when the server knows. Idempotent, as AMQP's."""
        binding = (exchange_type, key)
        bindings = self._bindings.setdefault(exchange, [])
        if binding in bindings:
            return
        bindings.append(binding)

        def receive(message: Message) -> None:
            # Bindings overlap ("#" and "task.#"): only the first that matches takes the message.
            routing_key = self._names.routing_key_of(message.subject)
            first = next((b for b in bindings if key_matches(*b, routing_key)), None)
            if first == binding:
                self._receive(message)

        subjects = self._names.binding_subjects(exchange, exchange_type, key)
        self._sids[exchange, exchange_type, key] = [
            self._connection.subscribe(subject, receive) for subject in subjects
        ]
        # Whoever is told of this queue may publish on another connection at once.
        self._connection.flush()

    def unbind(self, exchange: str, key: str) -> None:
        for binding in [b for b in self._bindings.get(exchange, []) if b[1] == key]:
            self._bindings[exchange].remove(binding)
            for sid in self._sids.pop((exchange, *binding)):
                self._connection.unsubscribe(sid)

    def _receive(self, message: Message) -> None:
        if _is_expired(message):
            return
        if self.on_message is not None:
            self.on_message(message)
        else:
            self.messages.append(message)

    def consume(self, on_message: Callable[[Message], None]) -> None:
        """Hand over everything that lies here and everything to come."""
        self.on_message = on_message
        while (message := self.take()) is not None:
            on_message(message)

    def take(self) -> Message | None:
        """Return the next message, the highest priority first, and none that has expired."""
        while self.messages:
            message = max(self.messages, key=priority_of)
            self.messages.remove(message)
            if not _is_expired(message):
                return message
        return None

    def close(self) -> None:
        for sids in self._sids.values():
            for sid in sids:
                self._connection.unsubscribe(sid)
        self._sids.clear()
        self._bindings.clear()
        self.messages.clear()
