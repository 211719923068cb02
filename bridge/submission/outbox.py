"""Stores messages in JetStream; what callers send at the same time goes out in one write.

A system call and a wake-up of the server cost more than a message. So whoever's turn it is
takes along all that wait (group commit); nobody waits for company.
"""

from __future__ import annotations

import threading
from collections import deque

from bridge.errors import NatsConnectionError, NatsTimeout
from bridge.submission.deadline import Deadline
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
        self._waiting: deque[_Entry] = deque()
        self._turn = threading.Lock()

    def store(self, outgoing: list[Outgoing], deadline: Deadline) -> Acks:
        """Send messages and return one PubAck or refusal for each.

        Raises:
            NatsConnectionError: NATS is not there or did not answer before the deadline.
            PayloadTooLarge: a message is larger than the server takes.
        """
        entry = _Entry(outgoing)
        self._waiting.append(entry)
        if not self._turn.acquire(timeout=deadline.remaining()):
            self._give_up(entry)
            raise NatsTimeout("NATS did not answer in time. Try again shortly.")
        try:
            # A caller before us may have taken our messages along.
            while not entry.done:
                self._send(self._batch(), deadline)
        finally:
            self._turn.release()
        return entry.result()

    def _give_up(self, entry: _Entry) -> None:
        try:
            self._waiting.remove(entry)
        except ValueError:
            return  # on its way already: whether it was stored is unknown

    def _batch(self) -> list[_Entry]:
        batch: list[_Entry] = []
        while self._waiting and len(batch) < _BATCH:
            batch.append(self._waiting.popleft())
        return batch

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
