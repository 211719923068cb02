"""Takes messages of one durable queue from its consumers, as many as there is credit for.

Each priority has a JetStream consumer of its own (ADR 0003). A pull on every one of them lies
open at the server, so a message of any priority arrives at once; the reply subject of each
delivery tells how many more wait behind it, and nothing is asked of a lower priority while a
higher one is known to have some. Who never sets a priority uses one consumer; the other pulls
are one small request each every PULL_EXPIRES_SECONDS.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from bridge.names import PRIORITIES, Names
from bridge.wire import Connection, Message
from bridge.wire.jetstream import delivered

logger = logging.getLogger("nats")

#: The server ends an open pull after this long, and we open the next.
PULL_EXPIRES_SECONDS = 20.0
#: A pull the server has not ended this long after its time was lost (leader change, restart).
_OVERDUE_SECONDS = 5.0
#: Wait this long before asking again after an error, such as a deleted consumer.
_ERROR_PAUSE_SECONDS = 1.0
#: Nobody listens where a consumer was deleted, and while a cluster elects its leader: 4 to 9 s.
_ELECTION_SECONDS = 15.0
_WATCH = b'{"batch":1,"expires":%d}' % int(PULL_EXPIRES_SECONDS * 1e9)
#: In a cluster a consumer's leader may die alone, and with it the pulls that lie open there.
_CLUSTER_WATCH = b'{"batch":1,"expires":%d,"idle_heartbeat":%d}' % (
    int(PULL_EXPIRES_SECONDS * 1e9),
    int(_OVERDUE_SECONDS / 2 * 1e9),
)
#: Counts as use of a consumer and brings nothing: no message has a single byte.
_SIGN_OF_LIFE = b'{"batch":1,"no_wait":true,"max_bytes":1}'
#: One pull asks for at most this many messages, however large the prefetch.
MAX_BATCH = 256
#: The next message would be more than the bytes of the pull allow.
_FULL = "Message Size Exceeds MaxBytes"
#: Follows the last message of a pull with such a limit; another one may lie open by then.
_COMPLETED = "Batch Completed"


class Delivery:
    """One message as JetStream delivered it, with what the reply subject says about it."""

    __slots__ = (
        "__weakref__",
        "ack_subject",
        "message",
        "num_delivered",
        "num_pending",
        "priority",
        "stream",
        "stream_seq",
    )

    def __init__(self, message: Message) -> None:
        self.message = message
        self.ack_subject = message.reply
        self.stream, _, times, sequence, _, _, pending = delivered(message.reply)
        self.num_delivered = int(times)
        self.stream_seq = int(sequence)
        self.num_pending = int(pending)
        #: the level the message was stored under
        self.priority = int(message.subject.rsplit(".", 1)[1])


class _Level:
    """One priority: the pull that lies open at the server and what is known to wait."""

    __slots__ = (
        "asked",
        "batch",
        "deadline",
        "fetching",
        "leaderless_since",
        "num_pending",
        "paused_until",
    )

    def __init__(self) -> None:
        #: messages the open pull may still bring
        self.asked = 0
        #: how many that were at first
        self.batch = 0
        #: the open pull takes what is there and ends, instead of waiting for the next message
        self.fetching = False
        self.deadline = 0.0
        #: None: not known
        self.num_pending: int | None = None
        self.paused_until = 0.0
        #: nobody listened for pulls of this consumer at that time; 0 while somebody does
        self.leaderless_since = 0.0


class QueuePull:
    """The open pulls of one queue. `credit()` says how many more messages may come.

    A level known to be dry is watched: a pull for one message waits there. Any other is fetched
    from, and until that is settled nothing is asked of the levels below it.
    """

    def __init__(
        self,
        connection: Connection,
        names: Names,
        queue: str,
        *,
        credit: Callable[[], int],
        send: Callable[[str, bytes, str], None],
        on_delivery: Callable[[Delivery], bool],
        together: set[QueuePull],
    ) -> None:
        """`send` takes subject, payload and reply subject of a pull, to be sent shortly.

        `on_delivery` returns False for a message it gave back. `together` are all of the
        connection: they share what a server holds for it.
        """
        self.queue = queue
        self._connection = connection
        self._credit = credit
        self._send = send
        self._on_delivery = on_delivery
        self._levels = {priority: _Level() for priority in PRIORITIES}
        self._endpoints = {
            priority: f"$JS.API.CONSUMER.MSG.NEXT.{names.task_stream}."
            f"{names.consumer(queue, priority)}"
            for priority in PRIORITIES
        }
        self._inbox = connection.new_inbox()
        self._sid = connection.subscribe(f"{self._inbox}.*", self._on_message)
        self._unlimited = connection.most_at_once
        self._together = together
        together.add(self)
        clustered = connection.is_clustered
        self._watch = _CLUSTER_WATCH if clustered else _WATCH
        #: so long nothing may come of a pull
        self._patience = _OVERDUE_SECONDS + (0.0 if clustered else PULL_EXPIRES_SECONDS)
        self._election_seconds = _ELECTION_SECONDS if clustered else 0.0
        # Outside Celery's hub, acks and with them refills come from the pool's threads.
        self._lock = threading.RLock()
        #: the server no longer knows a consumer: declare the queue before the next pull
        self.consumer_missing = False
        #: why a pull ended last, and when
        self._told = "", 0.0

    @property
    def fetching(self) -> int:
        """Messages that fetches may still bring; they will be there or not within a round trip."""
        return sum(level.asked for level in self._levels.values() if level.fetching)

    def refill(self) -> bool:
        """Ask for what there is credit for, the highest priority first; True for a new fetch.

        Any thread may call it.
        """
        with self._lock:
            return self._refill(time.monotonic())

    def _refill(self, now: float) -> bool:
        for priority, level in self._levels.items():
            if now < level.paused_until:
                continue
            # What lies unread may be the sign of life that is missed.
            if level.asked and now > level.deadline and not self._connection.has_unread:
                level.asked = 0
                level.fetching = False
            if level.num_pending == 0 and not level.fetching:
                if not level.asked and self._credit() > 0:
                    self._pull(priority, level, 1, now, fetch=False)
                continue
            free = self._credit()
            if level.asked or free <= 0:
                return False
            self._pull(priority, level, min(free, level.num_pending or free), now, fetch=True)
            return True
        return False

    def _pull(self, priority: int, level: _Level, count: int, now: float, *, fetch: bool) -> None:
        level.batch = level.asked = min(count, MAX_BATCH)
        level.fetching = fetch
        level.deadline = now + self._patience
        request = self._fetch(level.asked) if fetch else self._watch
        self._send(self._endpoints[priority], request, f"{self._inbox}.{priority}")

    def _fetch(self, count: int) -> bytes:
        askers = len(self._together)
        limit = b""
        if count > 1 and count * askers > self._unlimited:
            limit = b',"max_bytes":%d' % self._connection.most_bytes_at_once(askers)
        return b'{"batch":%d,"no_wait":true%b}' % (count, limit)

    def _on_message(self, message: Message) -> None:
        with self._lock:
            self._take(message)

    def _take(self, message: Message) -> None:
        # The subject ends in the priority, be it the queue's or our inbox.
        level = self._levels[int(message.subject.rsplit(".", 1)[1])]
        level.deadline = time.monotonic() + self._patience
        if message.status is not None:
            self._on_status(message, level)
            return
        delivery = Delivery(message)
        level.asked = max(0, level.asked - 1)
        level.fetching = level.fetching and level.asked > 0
        level.num_pending = delivery.num_pending
        if not self._on_delivery(delivery):
            level.num_pending = None

    def on_requeue(self, priority: int) -> None:
        """One of our deliveries went back: there is something to fetch again."""
        self._levels[priority].num_pending = None

    def _on_status(self, message: Message, level: _Level) -> None:
        status = message.status
        if status != 503:
            level.leaderless_since = 0.0
        if status == 100 or message.description == _COMPLETED:  # 100: heartbeat
            return
        is_full = message.description == _FULL and level.asked < level.batch
        level.asked = 0
        level.fetching = False
        level.num_pending = None if is_full else 0
        if is_full or status in {404, 408}:  # there may be more, nothing there, time is up
            return
        now = time.monotonic()
        level.paused_until = now + _ERROR_PAUSE_SECONDS
        if status == 503:
            self.consumer_missing |= now - (level.leaderless_since or now) >= self._election_seconds
            if level.leaderless_since:
                return  # told before
            level.leaderless_since = now
        elif "Consumer Deleted" in message.description:
            self.consumer_missing = True
        self._warn(f"{status} {message.description or 'no such consumer, or it has no leader'}")

    def _warn(self, reason: str) -> None:
        """Log why a pull ended, once for all priorities: a server that stops ends them all."""
        now = time.monotonic()
        told, told_at = self._told
        if reason != told or now - told_at > _ERROR_PAUSE_SECONDS:
            self._told = reason, now
            logger.warning("pull on queue %s ended: %s", self.queue, reason)

    def keep_queue(self) -> None:
        """Show that the queue is in use where no pull does: the server drops it else in time."""
        for priority, level in self._levels.items():
            if not level.asked:
                self._send(self._endpoints[priority], _SIGN_OF_LIFE, self._connection.unheard)

    def stop(self) -> None:
        """End the pulls. Deliveries already on their way still reach `on_delivery`."""
        self._together.discard(self)
        self._connection.unsubscribe_and_flush(self._sid)
        # The server drops a pull that nobody listens for when it is asked about the consumer. If
        # it found out with a message that comes back, that one would go to the end of the line.
        self._connection.request_many(
            (self._endpoints[priority].replace("MSG.NEXT", "INFO"), b"", None)
            for priority, level in self._levels.items()
            if level.asked
        )
