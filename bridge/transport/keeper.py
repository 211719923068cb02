"""Keeps unacknowledged deliveries ours, and notices a peer that fell silent.

A thread of its own, since a blocked worker (solo pool, long callback) must not lose its lease.
JetStream gives a delivery to somebody else `ack_wait` after the last sign of life for it, so a
dead worker's tasks come back in that time and a living one's never. A blocked worker does not
connect again either before it is through: what it holds when its connection breaks is kept over
others meanwhile.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable

from bridge.errors import BridgeError, NatsConnectionError
from bridge.wire import SILENCE_SECONDS, Connection

logger = logging.getLogger("nats")

#: What JetStream is told of a delivery
ACK, NAK, TERM, IN_PROGRESS = b"+ACK", b"-NAK", b"+TERM", b"+WPI"


class Keeper:
    """Sends in-progress for everything `unacked()` returns, three times per `ack_wait`.

    At least as often it calls `keep_round`: for what is settled it shows no more signs of life, so
    that the acknowledgement must not wait for a thread that is busy. On a broken connection it
    calls `keep_over_another`, which returns False where nothing is held, until `stop`.
    """

    def __init__(
        self,
        connection: Connection,
        unacked: Callable[[], Iterable[str]],
        keep_round: Callable[[], None],
        keep_over_another: Callable[[], bool],
        ack_wait_seconds: float,
    ) -> None:
        self._connection = connection
        self._unacked = unacked
        self._keep_round = keep_round
        self._keep_over_another = keep_over_another
        self._ack_wait_seconds = ack_wait_seconds
        self._keep_seconds = ack_wait_seconds / 3
        #: by time.monotonic(): so long everything unacknowledged is certainly ours
        self.ours_until = 0.0
        self._stopped = threading.Event()
        self._pid = 0

    def start(self) -> None:
        """Start the thread, once per process."""
        if self._pid == os.getpid():
            return
        self._pid = os.getpid()
        threading.Thread(target=self._run, name="nats-keeper", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def _run(self) -> None:
        try:
            self._keep()
        except NatsConnectionError as error:
            # The reader of the connection sees the same, once it reads, and reports it to Celery.
            logger.warning("keeper: %s", error)
            self._stand_in()

    def _keep(self) -> None:
        interval = min(self._keep_seconds, SILENCE_SECONDS / 2)
        kept_at = time.monotonic()
        self.ours_until = kept_at + self._ack_wait_seconds
        while not self._stopped.wait(interval):
            before = kept_at
            if time.monotonic() >= kept_at + self._keep_seconds:
                kept_at = time.monotonic()
                self._connection.publish_many((s, IN_PROGRESS, "") for s in self._unacked())
            self._keep_round()
            if self._connection.check_peer(SILENCE_SECONDS):
                self.ours_until = before + self._ack_wait_seconds

    def _stand_in(self) -> None:
        """Keep what is held until `stop`, when its reader has seen that the connection broke."""
        pause = at_first = self._keep_seconds / 4
        while not self._stopped.wait(pause):
            kept_at = time.monotonic()
            try:
                if not self._keep_over_another():
                    return
            except BridgeError:
                pause = at_first  # the server may be back, and lead again, any moment
            else:
                self.ours_until = kept_at + self._ack_wait_seconds
                pause = self._keep_seconds
