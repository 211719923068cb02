"""What broken connections of this process held, and which connection answers for it now.

JetStream knows a delivery by its ack subject: on whatever connection that is used, and after the
server was restarted too. So a task that runs while its worker connects again needs no second run:
the next connection keeps its delivery ours and brings its acknowledgement to the server. What
Celery threw away when the connection broke is given back instead, at once.

Which is which the messages tell. Only who has kombu's message can settle it, and in a worker
nobody has it but the request of a task in the pool, in the pipe to it, or in the queue of a thread
pool. So a delivery is kept as long as its message exists, and given back once it is gone. That is
exact for every pool and needs no knowledge of where each of them keeps its tasks.

A consumer that is not Celery's may have a message and no use for it (a variable of a loop that
waits for the next one). There everything comes back at the reconnect, as AMQP has it.
"""

from __future__ import annotations

import math
import os
import threading
import time
from typing import TYPE_CHECKING

from bridge.errors import NatsConnectionError
from bridge.transport.keeper import IN_PROGRESS, NAK
from bridge.wire import Connection, JetStream

if TYPE_CHECKING:
    from bridge.transport.broker import BrokerConnection


class Leftovers:
    """Of the consuming connections of one process to one stream. Any thread.

    The first that works answers for all that are broken.
    """

    def __init__(self, stream: str, created: str) -> None:
        self._pid = os.getpid()
        self._stream = stream
        self._created = created
        self._lock = threading.Lock()
        self._connections: list[BrokerConnection] = []
        #: ack subject and verdict of what no connection could send yet
        self._verdicts: list[tuple[str, bytes]] = []

    def join(self, connection: BrokerConnection) -> bool:
        """`connection` consumes from now on. True where earlier ones have broken."""
        with self._lock:
            self._connections.append(connection)
            return not all(one.connected for one in self._connections)

    def leave(self, connection: BrokerConnection) -> None:
        """`connection` closes and holds nothing."""
        with self._lock:
            self._connections = [one for one in self._connections if one is not connection]

    def settle(self, subject: str, verdict: bytes) -> None:
        """Send the verdict on a delivery whose connection is broken, once there is another.

        Raises NatsConnectionError in a forked child: the delivery is its parent's.
        """
        if os.getpid() != self._pid:
            raise NatsConnectionError("what was delivered before a fork is settled by the parent")
        with self._lock:
            heir = self._heir()
            if heir is None:
                self._verdicts.append((subject, verdict))
                return
        heir.send_ack(subject, verdict)

    def _heir(self) -> BrokerConnection | None:
        return next((one for one in self._connections if one.connected), None)

    def answer(self, connection: BrokerConnection) -> list[str]:
        """Do what is due for broken connections, if that is the part of `connection`.

        Gives back what nobody will settle, sends the verdicts that wait, and returns the ack
        subjects of the rest, which is to be kept ours.
        """
        with self._lock:
            if connection is not self._heir():
                return []
            broken = [one for one in self._connections if not one.connected]
            verdicts, self._verdicts = self._verdicts, []
        now = time.monotonic()
        lapsed = any(one.keeper.ours_until < now for one in broken)
        for one in broken:
            one.lapsed = one.lapsed or lapsed
            one.keeper.ours_until = math.inf  # as long as `connection` is there
            verdicts += one.settled
            one.settled.clear()
            one.give_back(forgotten=one.survived_by_messages)
            if not one.held():
                self.leave(one)
        for subject, verdict in verdicts:
            if verdict is not NAK or not lapsed:
                connection.send_ack(subject, verdict)
        connection.taken_over = [one for one in broken if one.held()]
        return [subject for one in connection.taken_over for subject in one.held()]

    def keep_over_another(self, broken: BrokerConnection) -> bool:
        """Keep ours what a broken connection holds while its reader is too busy to have the next.

        False where there is nothing to keep. Raises NatsConnectionError or
        JetStreamError while no server tells of the stream.
        """
        held = broken.held()
        if not held:
            return False
        wire = Connection(broken.wire.options)
        wire.connect()
        try:
            info = JetStream(wire, broken.js.timeout).api(f"STREAM.INFO.{self._stream}")
            if info["created"] != self._created:
                return False
            wire.publish_many((subject, IN_PROGRESS, "") for subject in held)
            wire.flush()
        finally:
            wire.close()
        return True

    def close(self, connection: BrokerConnection) -> None:
        """Give back what is left if `connection`, about to close, is the last that works."""
        with self._lock:
            is_last = connection.connected and sum(one.connected for one in self._connections) == 1
            broken = [one for one in self._connections if not one.connected]
        if is_last:
            for one in broken:
                one.give_back()


_of_streams: dict[tuple[int, str, str], Leftovers] = {}


def leftovers_of(stream: str, created: str) -> Leftovers:
    """Return the leftovers of one stream in this process.

    A stream is known by its time of creation: the one of that name on another server, or made
    anew, has other messages under the same sequences.
    """
    return _of_streams.setdefault((os.getpid(), stream, created), Leftovers(stream, created))
