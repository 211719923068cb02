"""What kombu calls a connection: one NATS connection, its channels and their deliveries."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from bridge.errors import NatsConnectionError
from bridge.names import Names
from bridge.transport.dead import DeadLetters
from bridge.transport.exchange import BindingTable
from bridge.transport.expiry import Expiry
from bridge.transport.keeper import IN_PROGRESS, NAK, Keeper
from bridge.transport.leftovers import Leftovers, leftovers_of
from bridge.transport.pull import QueuePull
from bridge.transport.stored import StoredQueues
from bridge.transport.transient import TransientQueue
from bridge.transport.waker import Waker
from bridge.wire import Connection, ConnectOptions, JetStream

if TYPE_CHECKING:
    from bridge.transport.channel import Channel

logger = logging.getLogger("nats")

#: At most this many messages are handed over at a time, so that a long backlog cannot keep the
#: reader from looking at anything else; as many may lie here before more are read.
_DRAIN_LIMIT = 100
#: Longest uninterrupted wait, after which pulls are looked after.
_MAX_WAIT_SECONDS = 1.0
#: Under Celery's hub, acks and pulls gather this long and go out in one write; pulls sooner where
#: half of a prefetch is free, so that no process idles. A write costs more than what is in it.
_GATHER_SECONDS = 0.002
#: A broken connection may have taken the last acknowledgements along, and a killed server what it
#: had not stored of them. So many are sent again, which does no harm.
_RESENT_ACKS = 1000


class BrokerConnection:
    """One connection as kombu sees it. Times in seconds.

    `ack_wait` is how long a delivery may go without a sign of life before JetStream gives it to
    another worker; `max_deliveries` how often a message may come before it is set aside (0: for
    ever); `timeout` bounds every request.
    """

    client: Any = None
    #: set by Celery's worker, see `Leftovers`
    survived_by_messages = False
    #: broken, and what it held may be another worker's by now: nothing may be given back
    lapsed = False
    #: called under the hub after messages were handed over; set by Celery's worker
    on_delivered: Callable[[], None] | None = None
    #: None before it consumes
    _leftovers: Leftovers | None = None
    #: messages that `drain_events` has handed over beyond one a call
    _ahead = 0
    #: which called `drain_events` last
    _reading_thread = 0
    _loop: Any = None
    _loop_thread = 0
    #: None without a loop
    _waker: Waker | None = None
    #: the timer that ends the gathering, None when there is none
    _gathering: Any = None

    def __init__(
        self,
        options: ConnectOptions,
        names: Names,
        *,
        ack_wait: float,
        max_deliveries: int,
        timeout: float,
        replicas: int,
    ) -> None:
        self.names = names
        self.wire = Connection(options)
        self.js = JetStream(self.wire, timeout)
        self.wire.connect()
        try:
            self.js.ensure_topology(names, replicas)
        except BaseException:
            self.wire.close()
            raise
        self.bindings = BindingTable(self.js, names)
        self.dead = DeadLetters(self.js, names, max_deliveries)
        self.exchange_types: dict[str, str] = {}
        self.stored_queues = StoredQueues(self.js, names, ack_wait)
        self.expiry = Expiry(self.js, names, self.bindings, self.stored_queues)
        #: queues in memory: they belong to the connection, and its channels share them
        self.transient: dict[str, TransientQueue] = {}
        self.channels: list[Channel] = []
        #: of all channels
        self.pulls: set[QueuePull] = set()
        self.keeper = Keeper(
            self.wire, self._unacked, self._keep_round, self._keep_over_another, ack_wait
        )
        self._ready: list[tuple[int, int, Callable[[], bool], bool]] = []
        self._arrivals = itertools.count()
        #: subject, payload and reply subject of acks and pulls
        self._outgoing: deque[tuple[str, bytes, str]] = deque()
        self._flush_lock = threading.Lock()
        #: ack subjects of the last deliveries that were settled for good, and how
        self.settled: deque[tuple[str, bytes]] = deque(maxlen=_RESENT_ACKS)
        #: broken ones of which this one keeps what still runs
        self.taken_over: list[BrokerConnection] = []

    @property
    def connected(self) -> bool:
        return self.wire.connected

    @property
    def has_loop(self) -> bool:
        """True while Celery's hub drives this connection."""
        return self._loop is not None

    # -- channels ----------------------------------------------------------------------

    def held(self) -> list[str]:
        """Return the ack subjects of everything its channels have not settled. Any thread."""
        return [subject for channel in list(self.channels) for subject in channel.intake.subjects()]

    def give_back(self, *, forgotten: bool = False) -> None:
        """Requeue everything that is held, or only what nobody will settle any more."""
        for channel in list(self.channels):
            channel.intake.give_back(forgotten=forgotten)

    def _unacked(self) -> Iterator[str]:
        yield from self.held()
        if self._leftovers is not None:
            yield from self._leftovers.answer(self)

    def _keep_round(self) -> None:
        """Send what must not wait for a thread that is busy. The keeper's thread."""
        for channel in list(self.channels):
            channel.intake.keep_queues()
        self._flush()

    def _keep_over_another(self) -> bool:
        return self._leftovers is not None and self._leftovers.keep_over_another(self)

    def start_consuming(self) -> None:
        """Answer for what earlier connections of this process held; show signs of life."""
        self._ahead = 0  # whoever begins waits for its own first message
        # At once: a half-open connection must be noticed also where no message ever comes.
        self.keeper.start()
        if self._leftovers is None:
            stream = self.names.task_stream
            created = self.js.api(f"STREAM.INFO.{stream}")["created"]
            self._leftovers = leftovers_of(stream, created)
            if self._leftovers.join(self):
                for subject in self._leftovers.answer(self):
                    self.send_soon(subject, IN_PROGRESS, "")
                # Before we ask for more: what is given back is for an idle worker first.
                self._flush()

    def retire(self) -> None:
        """Give back what nobody will settle; from now on send the rest at once.

        For who has cancelled its consumers and still ends what runs: its loop turns no more.
        """
        for queue in list(self.transient.values()):
            queue.forget_consumers()  # a control command could end the worker before its tasks
        self._deliver(len(self._ready))  # to nobody: it goes back
        self.give_back(forgotten=True)
        self._unregister()
        self._flush()

    def close(self) -> None:
        """Give back what is not acknowledged, then close. Never raises on a broken connection."""
        self.keeper.stop()
        try:
            with contextlib.suppress(NatsConnectionError):
                for channel in list(self.channels):
                    channel.close()
                if self._leftovers is not None:
                    self._leftovers.close(self)
                self._flush()
                # Closing a socket with unread data resets it, and could take our last words along.
                self.wire.flush()
                if self._leftovers is not None:
                    self._leftovers.leave(self)
        finally:
            self.collect()

    def collect(self) -> None:
        """Drop everything without talking to the server.

        What is not settled is for the process's next connection that consumes.
        """
        self.keeper.stop()
        self._unregister()
        self._ready.clear()
        self.wire.close()
        for queue in list(self.transient.values()):
            queue.close()
        self.transient.clear()
        for channel in self.channels:
            channel.abandon()
        if self._leftovers is None:
            self.channels.clear()

    # -- events ------------------------------------------------------------------------

    def add_ready(self, priority: int, deliver: Callable[[], bool], *, alone: bool) -> None:
        """Queue a callback that hands one message over; higher priorities come first. Any thread.

        It returns whether the message is for anybody still. One that goes `alone` would be lost for
        who stops after the message before.
        """
        heapq.heappush(self._ready, (-priority, next(self._arrivals), deliver, alone))
        if self._loop is not None and threading.get_ident() != self._loop_thread:
            self._wake()

    def wake_reader(self) -> None:
        """Without a loop, end the wait of another thread that does not see what is ready here."""
        if self._ready and self._loop is None and threading.get_ident() != self._reading_thread:
            # Who reads from a broken connection meets the same error.
            with contextlib.suppress(NatsConnectionError):
                self.wire.flush()  # the server's answer wakes it

    def _deliver(self, limit: int) -> int:
        count = 0
        while self._ready and count < limit:
            try:
                _, _, deliver, _ = heapq.heappop(self._ready)
            except IndexError:  # another thread took the last one
                break
            count += deliver()
        return count

    def _refill(self) -> bool:
        return any([channel.intake.refill() for channel in list(self.channels)])

    def ask_for_more(self) -> None:
        """Ask for messages although nothing was settled: there is a use for more. Any thread."""
        if self._loop is None:
            # Who reads from a broken connection meets the same error.
            with contextlib.suppress(NatsConnectionError):
                for channel in list(self.channels):
                    channel.intake.ask_for_more()
        elif threading.get_ident() != self._loop_thread:
            self._wake()  # for a tick

    def drain_events(self, timeout: float | None = None) -> None:
        """Hand over a message and what lies behind it; wait up to `timeout` seconds for the first.

        None is for ever. A call counts for one message, as on other brokers (kombu's `eventloop`
        with a limit counts them): for each that was handed over beyond that, another returns at
        once. Raises TimeoutError (socket.timeout) when nothing came, NatsConnectionError.
        """
        self._reading_thread = threading.get_ident()
        if self._ahead > 0:
            self._ahead -= 1
            self._read(0)  # a broken connection is told of all the same
            return
        deadline = None if timeout is None else time.monotonic() + timeout
        if 0 < len(self._ready) < _DRAIN_LIMIT:
            # Remote control and what is more urgent overtake what lies here. Of too much of that,
            # as when events come faster than they are handled, the rest stays with the server.
            self._read(0)
        while not self._deliver(1):
            self._refill()
            self._flush()
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            wait = _MAX_WAIT_SECONDS if left is None else min(left, _MAX_WAIT_SECONDS)
            if not self._read(wait, self._has_ready) and left is not None and left <= wait:
                raise TimeoutError("timed out")
        self._ahead = self._deliver_more(deadline)

    def _deliver_more(self, deadline: float | None) -> int:
        """Hand over what else is here or coming, but for what goes alone; return how many."""
        count = 0
        while count < _DRAIN_LIMIT:
            if self._ready:
                if self._ready[0][-1]:
                    break
                count += self._deliver(1)
            else:
                coming = self._refill()
                self._flush()
                left = _MAX_WAIT_SECONDS if deadline is None else deadline - time.monotonic()
                if not coming or not self._read(max(0.0, left), self._has_ready):
                    break
        return count

    def _has_ready(self) -> bool:
        return bool(self._ready)

    def _read(self, timeout: float, done: Callable[[], object] = bool) -> bool:
        try:
            self.wire.drain(timeout, done)
        except NatsConnectionError:
            raise
        except TimeoutError:
            return False
        return True

    def register_with_event_loop(self, loop: Any) -> None:
        """Let Celery's hub read the socket; `tick` runs before each of its waits.

        Tasks must reach Celery from a reader's callback: what is handed to the pool during
        `on_tick` may miss the pool's own turn there and lie until the next event.
        """
        self._waker = Waker()
        self._loop_thread = threading.get_ident()
        self._loop = loop  # from now on other threads may wake it
        loop.add_reader(self.wire.fileno(), self._on_readable)
        loop.add_reader(self._waker.fileno(), self._on_woken)
        loop.on_tick.add(self.tick)
        if self._ready:
            self._wake()

    def _on_readable(self) -> None:
        self._read(0)
        if self._deliver(_DRAIN_LIMIT) and self.on_delivered is not None:
            self.on_delivered()
        if self._ready:
            self._wake()

    def _on_woken(self) -> None:
        if self._waker is not None:
            self._waker.clear()
        self._on_readable()

    def _wake(self) -> None:
        # A request on this connection may have read deliveries along the way; the socket will
        # not become readable for those again.
        waker = self._waker
        if waker is not None:
            waker.wake()

    def _unregister(self) -> None:
        loop, self._loop = self._loop, None
        waker, self._waker = self._waker, None
        if loop is None or waker is None:
            return
        loop.on_tick.discard(self.tick)
        with contextlib.suppress(NatsConnectionError):  # closed: the hub has dropped it, or will
            loop.remove_reader(self.wire.fileno())
        loop.remove_reader(waker.fileno())

    def tick(self) -> None:
        """Ask for more and send what has gathered. Raises NatsConnectionError."""
        if not self.wire.connected:
            self._unregister()
            raise NatsConnectionError("the connection to NATS is closed")
        gathers = self._gathering is not None
        if not gathers or any(channel.intake.is_half_free for channel in self.channels):
            gathered = len(self._outgoing)
            self._refill()
            # Acknowledgements alone are not worth a write that holds up the task they are about.
            if not gathers or len(self._outgoing) > gathered:
                self._flush()
        if self._ready:
            self._wake()

    def send_soon(self, subject: str, payload: bytes, reply: str) -> None:
        """Send a message; under the hub together with others, at its next tick."""
        if self._loop is None:
            self.wire.publish(subject, payload, reply=reply)
        else:
            self._outgoing.append((subject, payload, reply))

    def send_ack(self, subject: str, verdict: bytes) -> None:
        """Send one acknowledgement, shortly; where this one is broken, on the next connection.

        Any thread. Raises NatsConnectionError where there will be no next: nothing is consumed.
        """
        if verdict is not NAK:
            self.settled.append((subject, verdict))
        try:
            if not self.connected:
                raise NatsConnectionError("the connection to NATS is closed")
            self.send_soon(subject, verdict, "")
        except NatsConnectionError:
            if self._leftovers is None:
                raise
            # Who reads from this connection meets the same error.
            if verdict is not NAK or not self.lapsed:
                self._leftovers.settle(subject, verdict)
            return
        if self._loop is None:
            return
        if threading.get_ident() != self._loop_thread:
            # A thread pool's: the hub sleeps and knows nothing of it.
            self._wake()
        elif self._gathering is None:
            self._gathering = self._loop.call_later(_GATHER_SECONDS, self._end_gathering)

    def _end_gathering(self) -> None:
        # The tick that follows in the same turn of the hub sends.
        self._gathering = None

    def _flush(self) -> None:
        """Send what has gathered; on return all of it is sent. Any thread."""
        self.wire.require_usable()
        with self._flush_lock:
            # Threads may add meanwhile, so one after the other.
            outgoing = [self._outgoing.popleft() for _ in range(len(self._outgoing))]
            if outgoing:
                self.wire.publish_many(outgoing)
