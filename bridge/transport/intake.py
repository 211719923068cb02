"""What one channel takes from durable queues, and what it has not settled yet."""

from __future__ import annotations

import contextlib
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable
from itertools import count
from typing import NamedTuple

from amqp.exceptions import NotFound

from bridge.errors import NatsConnectionError
from bridge.transport.broker import BrokerConnection
from bridge.transport.keeper import NAK
from bridge.transport.pull import Delivery, QueuePull
from bridge.transport.stored import CONSUMER_NOT_FOUND
from bridge.wire import JetStreamError, Message

#: Messages on their way to a consumer whose prefetch is unlimited (AMQP: 0).
_UNLIMITED_CREDIT = 1000
#: Between two looks whether a consumer has a leader again
_PAUSE_SECONDS = 0.1


class _Held(NamedTuple):
    ack_subject: str
    priority: int
    consumer_tag: str
    delivery: weakref.ref[Delivery]


class Intake:
    """Deliveries of one channel: asked for within the prefetch, held until settled."""

    def __init__(self, connection: BrokerConnection) -> None:
        #: unsettled messages allowed at a time; 0 is no limit
        self.prefetch = 0
        #: how many more its owner has a use for now; None: as many as the prefetch allows
        self.room: Callable[[], int] | None = None
        #: messages of stored queues that came and were not handed over yet
        self.waiting = 0
        self._connection = connection
        self._tags = count(1)
        self._unacked: dict[int, _Held] = {}
        #: consumer tag -> pull, in turn
        self._pulls: OrderedDict[str, QueuePull] = OrderedDict()

    def next_tag(self) -> int:
        return next(self._tags)

    def hold(self, delivery_tag: int, delivery: Delivery, consumer_tag: str) -> None:
        """Keep a delivery ours until it is settled."""
        if not self._unacked:
            self._connection.keeper.start()
        self._unacked[delivery_tag] = _Held(
            delivery.ack_subject, delivery.priority, consumer_tag, weakref.ref(delivery)
        )

    def subjects(self) -> list[str]:
        """Return the ack subjects of all that is held. Any thread."""
        return [held.ack_subject for held in list(self._unacked.values())]

    # -- taking ------------------------------------------------------------------------

    def consume(self, consumer_tag: str, queue: str, take: Callable[[Delivery], None]) -> None:
        """Have `take` called with messages of a durable queue until `cancel`."""

        def on_delivery(delivery: Delivery) -> bool:
            if self._is_full():
                # Came by an open watch: another worker may have a free slot for it.
                self._connection.send_ack(delivery.ack_subject, NAK)
                return False
            take(delivery)
            return True

        self._connection.start_consuming()
        self._pulls[consumer_tag] = QueuePull(
            self._connection.wire,
            self._connection.names,
            queue,
            credit=self._credit,
            send=self._connection.send_soon,
            on_delivery=on_delivery,
            together=self._connection.pulls,
        )
        self.refill()

    def cancel(self, consumer_tag: str) -> None:
        pull = self._pulls.pop(consumer_tag, None)
        if pull is not None:
            pull.stop()

    def _is_full(self) -> bool:
        if self.prefetch and len(self._unacked) >= self.prefetch:
            return True
        return self.room is not None and self.room() <= self.waiting

    def _credit(self) -> int:
        coming = sum(pull.fetching for pull in list(self._pulls.values()))
        if self.prefetch:
            kept = sum(len(broken.held()) for broken in self._connection.taken_over)
            credit = self.prefetch - len(self._unacked) - kept - coming
        else:
            # What was handed over no longer counts: fetching goes on as fast as it is taken.
            credit = _UNLIMITED_CREDIT - self.waiting - coming
        return credit if self.room is None else min(credit, self.room() - self.waiting - coming)

    @property
    def is_half_free(self) -> bool:
        """True where something is consumed and at least half of the prefetch is free."""
        return bool(self._pulls) and 2 * self._credit() >= self.prefetch

    def refill(self) -> bool:
        """Ask the server for more.

        True while messages known to wait are on their way to who takes any number of them.
        """
        for pull in list(self._pulls.values()):
            if pull.consumer_missing:
                pull.consumer_missing = False
                self._declare_again(pull.queue)
        self.ask_for_more()
        return not self.prefetch and any(pull.fetching for pull in list(self._pulls.values()))

    def ask_for_more(self) -> None:
        """Ask the server for as many messages as there is room for. Any thread."""
        for tag, pull in list(self._pulls.items()):
            if not pull.refill():
                continue
            with contextlib.suppress(KeyError):  # another thread has cancelled it
                # Last in turn for the next free slot, so that no queue starves behind another.
                self._pulls.move_to_end(tag)

    def keep_queues(self) -> None:
        """Show that the queues which expire are in use, also while nothing is asked of them."""
        arguments = self._connection.stored_queues.arguments
        for pull in list(self._pulls.values()):
            if pull.queue in arguments and arguments[pull.queue].expires is not None:
                pull.keep_queue()

    def _declare_again(self, queue: str) -> None:
        """Make the lost consumers of a queue anew.

        Where that is refused the connection counts as broken, and NatsConnectionError is raised:
        its owner opens another, which makes a lost stream again, and keeps what runs meanwhile.
        """
        try:
            self._connection.stored_queues.declare(queue, consume=True)
            self._connection.bindings.restore(queue)
        except JetStreamError as error:
            self._connection.wire.close()
            raise NatsConnectionError(f"queue {queue} has been lost: {error}") from error

    def fetch_one(self, queue: str) -> Delivery | None:
        """Take one message, the highest priority first.

        Raises amqp's NotFound, and NatsConnectionError where a cluster takes too long to elect.
        """
        for endpoint in self._connection.stored_queues.endpoints("MSG.NEXT", queue):
            message = self._next(endpoint, queue)
            if message.status is None:
                return Delivery(message)
        return None

    def _next(self, endpoint: str, queue: str) -> Message:
        """Return a message of one priority, or the status that tells why there is none."""
        deadline = time.monotonic() + self._connection.js.timeout
        while True:
            [message] = self._connection.wire.collect(
                f"$JS.API.{endpoint}", b'{"batch":1,"no_wait":true}', lambda _: True
            )
            if message.status != 503:
                return message
            # Nobody listens where there is no consumer, and while a cluster elects its leader.
            self._make_again(endpoint.replace("MSG.NEXT", "INFO", 1), queue)
            if time.monotonic() > deadline:
                raise NatsConnectionError(f"queue {queue} has no leader just now: try again")
            time.sleep(_PAUSE_SECONDS)

    def _make_again(self, endpoint: str, queue: str) -> None:
        """See that a queue has one of its consumers: the server drops those that nobody uses.

        Raises amqp's NotFound where it has none at all.
        """
        queues = self._connection.stored_queues
        try:
            self._connection.js.api(endpoint)
        except JetStreamError as error:
            if error.err_code != CONSUMER_NOT_FOUND:
                raise
            if not queues.is_there(queue):
                raise NotFound(f"no queue {queue!r}", (60, 70), "Basic.get") from error
            queues.declare(queue)

    # -- settling ----------------------------------------------------------------------

    def settle(self, delivery_tag: int, verdict: bytes, *, multiple: bool = False) -> None:
        """Answer for one delivery, or for all up to it. Unknown tags are ignored."""
        tags = [t for t in list(self._unacked) if t <= delivery_tag] if multiple else [delivery_tag]
        for tag in tags:
            held = self._unacked.pop(tag, None)
            if held is None:
                continue
            self._connection.send_ack(held.ack_subject, verdict)
            pull = self._pulls.get(held.consumer_tag)
            if pull is None:
                continue
            if verdict is NAK:
                pull.on_requeue(held.priority)
            if self._connection.connected and not self._connection.has_loop:
                # No tick will do it, and the reader may wait for what only this makes come.
                self.ask_for_more()

    def give_back(self, *, forgotten: bool = False) -> None:
        """Requeue everything that is held, or only what belongs to messages that are no more."""
        for tag, held in list(self._unacked.items()):
            if not forgotten or held.delivery() is None:
                self.settle(tag, NAK)

    def abandon(self) -> None:
        """Ask for no more: the connection is broken."""
        self._pulls.clear()
        self._connection.pulls.clear()
