"""Queues that die with their connection: control mailboxes, replies, event receivers, broadcasts.

They are core NATS subscriptions and leave nothing in the server (ADR 0002).
"""

from __future__ import annotations

import heapq
import threading
import time
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

from bridge.names import MAX_PRIORITY
from bridge.transport.exchange import key_matches
from bridge.wire import Message

if TYPE_CHECKING:
    from bridge.transport.broker import BrokerConnection

#: Core NATS watches no time to live: when a message ends (ms since the epoch).
EXPIRES_AT = "Expires-At"
#: Control traffic overtakes tasks that wait in this process.
_PRIORITY = MAX_PRIORITY + 1


def expiry_headers(ttl_seconds: float | None) -> dict[str, str]:
    """Return what lets the receiver tell that a message has outlived its time."""
    return {} if ttl_seconds is None else {EXPIRES_AT: str(int((time.time() + ttl_seconds) * 1e3))}


def _priority_of(message: Message) -> int:
    """Return a message's priority; 0, as in AMQP, for one without."""
    text = message.headers.get("Priority", "")
    return min(int(text), MAX_PRIORITY) if text.isdecimal() else 0


class Waiting(NamedTuple):
    """A message and its place in line: before the less urgent, before what came later."""

    #: minus the priority
    rank: int
    number: int
    message: Message
    #: somebody had it before and gave it back
    redelivered: bool = False


def _is_expired(message: Message) -> bool:
    text = message.headers.get(EXPIRES_AT, "")
    return text.isdecimal() and time.time() * 1e3 >= int(text)


class TransientQueue:
    """One queue, filled by subscriptions; it holds messages until somebody takes them.

    The channels of a connection share it, as AMQP's exclusive queues, and so may its threads.
    """

    def __init__(self, broker: BrokerConnection, name: str, *, auto_delete: bool) -> None:
        self.name = name
        self.auto_delete = auto_delete
        self._broker = broker
        #: a heap
        self._waiting: list[Waiting] = []
        self._numbers = count()
        #: channel and tag -> what takes a message, and how many more it may take now
        self._consumers: dict[
            tuple[int, str], tuple[Callable[[Waiting], None], Callable[[], float]]
        ] = {}
        self._turns = count()
        #: one for each call of `_hand_over` that the connection is to make
        self._announced: deque[None] = deque()
        #: exchange -> type and key of each binding; several may match one message
        self._bindings: dict[str, list[tuple[str, str]]] = {}
        self._bind_lock = threading.RLock()
        self._sids: dict[tuple[str, str, str], list[int]] = {}

    def bind(self, exchange: str, exchange_type: str, key: str) -> None:
        """Listen for one binding; done when the server knows. Idempotent, as AMQP's."""
        self._broker.wire.require_usable()
        with self._bind_lock:  # nobody may take for done what another thread has begun
            bindings = self._bindings.setdefault(exchange, [])
            if (exchange_type, key) not in bindings:
                self._listen(exchange, exchange_type, key, bindings)

    def _listen(
        self, exchange: str, exchange_type: str, key: str, bindings: list[tuple[str, str]]
    ) -> None:
        binding = (exchange_type, key)
        bindings.append(binding)

        def receive(message: Message) -> None:
            # Bindings overlap ("#" and "task.#"): only the first that matches takes the message.
            routing_key = self._broker.names.routing_key_of(message.subject)
            first = next((b for b in bindings if key_matches(*b, routing_key)), None)
            if first == binding:
                self.put(Waiting(-_priority_of(message), next(self._numbers), message))

        wire = self._broker.wire
        subjects = self._broker.names.binding_subjects(exchange, exchange_type, key)
        sids = [wire.subscribe(subject, receive) for subject in subjects]
        self._sids[exchange, exchange_type, key] = sids
        try:
            # Whoever is told of this queue may publish on another connection at once.
            wire.flush()
        except BaseException:
            # Tried again, it must not be taken for done.
            self._stop_listening(exchange, binding)
            raise

    def unbind(self, exchange: str, key: str) -> None:
        self._broker.wire.require_usable()
        with self._bind_lock:
            for binding in [b for b in self._bindings.get(exchange, []) if b[1] == key]:
                self._stop_listening(exchange, binding)

    def _stop_listening(self, exchange: str, binding: tuple[str, str]) -> None:
        bindings = self._bindings.get(exchange, [])
        if binding in bindings:  # and not where another thread has closed this queue
            bindings.remove(binding)
        for sid in self._sids.pop((exchange, *binding), []):
            self._broker.wire.unsubscribe(sid)

    @property
    def message_count(self) -> int:
        return len(self._waiting)

    @property
    def consumer_count(self) -> int:
        return len(self._consumers)

    def consume(
        self,
        consumer: tuple[int, str],
        take: Callable[[Waiting], None],
        room: Callable[[], float],
    ) -> None:
        """Hand over what lies here and what is to come, in turn with other consumers.

        Where `room` has grown, `announce` is to be called.
        """
        self._consumers[consumer] = take, room
        self.announce()

    def cancel(self, consumer: tuple[int, str]) -> bool:
        """Forget a consumer; False where it had none here."""
        return self._consumers.pop(consumer, None) is not None

    def forget_consumers(self) -> None:
        """Hand nothing over any more."""
        self._consumers.clear()

    def put(self, waiting: Waiting) -> None:
        """Take in a message, or take it back to its place."""
        heapq.heappush(self._waiting, waiting)
        self.announce()

    def announce(self) -> None:
        """Have as many messages handed over as wait here and find room."""
        # Threads may do so once too often, which does no harm, and never too seldom: a call leaves
        # the count before its message does.
        room = sum(room() for _, room in list(self._consumers.values()))
        while len(self._announced) < min(len(self._waiting), room):
            self._announced.append(None)
            self._broker.add_ready(_PRIORITY, self._hand_over, alone=True)

    def _hand_over(self) -> bool:
        self._announced.pop()
        takes = [take for take, room in list(self._consumers.values()) if room() > 0]
        waiting = self.get() if takes else None
        if waiting is None:
            return False
        takes[next(self._turns) % len(takes)](waiting)
        return True

    def get(self) -> Waiting | None:
        """Return the next message, the highest priority first, and none that has expired."""
        try:
            while self._waiting:
                waiting = heapq.heappop(self._waiting)
                if not _is_expired(waiting.message):
                    return waiting
        except IndexError:  # another thread was faster
            return None
        return None

    def purge(self) -> int:
        """Remove what waits; return how many that were."""
        purged = len(self._waiting)
        self._waiting.clear()
        return purged

    def close(self) -> None:
        for sids in list(self._sids.values()):
            for sid in sids:
                self._broker.wire.unsubscribe(sid)
        self._sids.clear()
        self._bindings.clear()
        self._consumers.clear()
        self._waiting.clear()
