"""Stores messages in JetStream; what callers send at the same time goes out in one write.

A system call and a wake-up of the server cost more than a message. So whoever's turn it is
takes along all that wait (group commit); nobody waits for company.
"""

from __future__ import annotations

import threading
from collections import deque

from bridge.errors import NatsConnectionError, NatsTimeout
from bridge.submission.deadline import CONNECT_SECONDS, Deadline
from bridge.wire import ConnectionPool, JetStream, JetStreamError, PayloadTooLarge, PubAck
from bridge.wire.connection import Outgoing

#: Bounds the memory of one write: this many of the largest messages.
_BATCH = 64

Acks = list[PubAck | JetStreamError]


class _Entry:
    """One caller's messages and what became of them."""

    def __init__(self, outgoing: list[Outgoing]) -> None:
        self.outgoing = outgoing
        self.acks: Acks = []
        self.failure: NatsConnectionError | PayloadTooLarge | None = None
        #: it is this caller's turn to send
        self.leads = False
        # Held until the messages are settled or the caller leads. One for each caller: with
        # one for all, whoever comes new could overtake those who wait, again and again.
        self.wake = threading.Lock()
        self.wake.acquire()

    @property
    def done(self) -> bool:
        return bool(self.acks) or self.failure is not None

    def result(self) -> Acks:
        failure = self.failure
        if isinstance(failure, NatsConnectionError):
            # An exception of its own for each caller: they raise it at the same time.
            raise type(failure)(str(failure)) from failure
        if failure is not None:
            raise failure
        return self.acks


class Outbox:
    """Safe for threads and greenlets. Nothing stays in it: what failed is not sent later."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        self._guard = threading.Lock()
        #: the first of them leads, unless a batch is on its way
        self._waiting: deque[_Entry] = deque()
        self._sending = False

    def store(self, outgoing: list[Outgoing], deadline: Deadline) -> Acks:
        """Send messages and return one PubAck or refusal for each.

        Raises:
            NatsConnectionError: NATS is not there or did not answer before the deadline.
            PayloadTooLarge: a message is larger than the server takes.
        """
        entry = _Entry(outgoing)
        with self._guard:
            self._waiting.append(entry)
            entry.leads = not self._sending
            self._sending = True
        if not entry.leads and not entry.wake.acquire(timeout=deadline.remaining()):
            self._give_up(entry)
        if entry.leads:
            self._lead(deadline)
        return entry.result()

    def _give_up(self, entry: _Entry) -> None:
        """Raise NatsTimeout, unless the entry's turn has just come: it must be taken."""
        with self._guard:
            if entry.leads or entry.done:
                return
            if entry in self._waiting:
                self._waiting.remove(entry)
        # Where it is on its way already, whether it was stored is unknown.
        raise NatsTimeout("NATS did not answer in time. Try again shortly.")

    def _lead(self, deadline: Deadline) -> None:
        in_time = deadline.allows(CONNECT_SECONDS)
        batch = self._batch(_BATCH if in_time else 1)
        try:
            if in_time:
                self._send(batch, deadline)
            else:
                # Only ourselves: who comes after us may have the time.
                _fail(batch, NatsTimeout("NATS did not answer in time. Try again shortly."))
        finally:
            for entry in batch:
                if not entry.leads:
                    entry.wake.release()
            with self._guard:
                self._sending = bool(self._waiting)
                if self._waiting:
                    self._waiting[0].leads = True
                    self._waiting[0].wake.release()

    def _batch(self, most: int) -> list[_Entry]:
        """Take the first ones; the first of all is who leads."""
        with self._guard:
            return [self._waiting.popleft() for _ in range(min(len(self._waiting), most))]

    def _send(self, batch: list[_Entry], deadline: Deadline) -> None:
        try:
            self._publish(batch, deadline)
        except NatsConnectionError as error:
            _fail(batch, error)
        except PayloadTooLarge as error:
            # Nothing was sent. One too large message must not fail the others.
            if len(batch) == 1:
                _fail(batch, error)
            for entry in batch if len(batch) > 1 else ():
                self._send([entry], deadline)
        finally:
            # Also where this greenlet is killed: the others must not wait for ever.
            _fail(batch, NatsTimeout("Whether NATS stored it is unknown. Look it up or try again."))

    def _publish(self, batch: list[_Entry], deadline: Deadline) -> None:
        messages = [message for entry in batch for message in entry.outgoing]
        with self._pool.connection() as connection:
            acks = iter(JetStream(connection, deadline.remaining()).publish_many(messages))
        for entry in batch:
            entry.acks = [next(acks) for _ in entry.outgoing]


def _fail(batch: list[_Entry], failure: NatsConnectionError | PayloadTooLarge) -> None:
    for entry in batch:
        if not entry.done:
            entry.failure = failure
