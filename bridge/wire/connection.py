"""A blocking NATS connection: one socket, fork-checked, pollable, never buffering over a reconnect.

Any thread may write and wait; one at a time reads, for all of them. A broken connection stays
broken: its owner opens another (ADR 0002). Nothing is sent again by itself, so what failed did not
happen later.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from bridge.errors import NatsAuthError, NatsConnectionError, NatsTimeout
from bridge.wire.answers import NO_ANSWER, answered
from bridge.wire.handshake import complaint, greet
from bridge.wire.options import ConnectOptions
from bridge.wire.pipe import Pipe
from bridge.wire.protocol import (
    PING,
    PONG,
    Control,
    Frame,
    Info,
    Message,
    Parser,
    ProtocolError,
    ServerError,
    encode_publish,
    encode_subscribe,
    encode_unsubscribe,
)
from bridge.wire.refusals import Refusals, Waiter, is_operation_refused
from bridge.wire.replies import Replies
from bridge.wire.turns import Turns

logger = logging.getLogger("nats")

Callback = Callable[[Message], None]
#: subject, payload, headers
Outgoing = tuple[str, bytes, Mapping[str, str] | None]

#: A server that has not answered a PING for this long is gone; see `Connection.check_peer`.
SILENCE_SECONDS = 10.0
#: What is asked for at once: a server cuts off a client that leaves 64 MB unread. It says nothing
#: at the end of a pull that brought just what it might, so that this is no round number.
_UNREAD_BYTES = 2**25 - 39
#: Longest subject and reply subject of a message, which count in its size.
_LONGEST_LINE_BYTES = 4096
#: An answer that lies there when time is up is an answer, to as much as a socket can hold.
_LATE_READS = 32


class Connection:
    """One connection to one of the servers of `options`; see `connect`."""

    def __init__(self, options: ConnectOptions) -> None:
        self.options = options
        #: the server's INFO
        self.server_info: dict[str, Any] = {}
        self._pipe: Pipe | None = None
        self._parser = Parser()
        #: read and not yet dispatched
        self._frames: deque[Frame] = deque()
        self._callbacks: dict[int, Callback] = {}
        self._sids = itertools.count(1)
        self._replies = Replies()
        self._replies_sid = 0
        self._turns = Turns()
        # Reentrant: a signal handler of the thread that holds it may ping too.
        self._order_lock = threading.RLock()
        self._pongs_awaited = 0
        self._pongs_seen = 0
        self._refusals = Refusals()
        #: when something came last
        self.heard_at = self._silent_since = time.monotonic()

    # -- life cycle --------------------------------------------------------------------

    def connect(self) -> None:
        """Connect to the first server that lets us in.

        Raises NatsAuthError when one refused us and none let us in, NatsConnectionError when
        none answered, ConfigError when a file of the options cannot be used.
        """
        failures: list[NatsConnectionError] = []
        for host, port in self.options.servers:
            try:
                greeted = greet(self.options, host, port)
            except NatsConnectionError as error:
                failures.append(error)
                continue
            sock, self.server_info, self._parser, self._frames = greeted
            self._pipe = Pipe(sock, self.options.write_timeout)
            return
        refused = [error for error in failures if isinstance(error, NatsAuthError)]
        raise (refused or failures)[0]

    def close(self) -> None:
        """Close the socket; what waits in `drain` or `request` fails. Safe to call twice.

        Sends nothing, so that a forked child that closes an inherited connection cannot end
        its parent's.
        """
        if self._pipe is not None:
            self._pipe.close()

    @property
    def is_clustered(self) -> bool:
        """True when the server is one of several: leaders may change, and copies be behind."""
        return "cluster" in self.server_info

    @property
    def connected(self) -> bool:
        """False once the connection is known to be closed or broken."""
        return self._pipe is not None and self._pipe.is_open

    def require_usable(self) -> None:
        """Raise NatsConnectionError once closed, and after a fork.

        To be called before taking any lock, which a thread of our parent may have held at the fork.
        """
        self._opened().usable()

    def fileno(self) -> int:
        return self._opened().usable().fileno()

    def _opened(self) -> Pipe:
        if self._pipe is None:
            raise NatsConnectionError("not connected to NATS yet")
        return self._pipe

    # -- sending -----------------------------------------------------------------------

    def publish(
        self,
        subject: str,
        payload: bytes = b"",
        headers: Mapping[str, str] | None = None,
        reply: str = "",
    ) -> None:
        """Send one message and wait for nothing. Raises NatsConnectionError, PayloadTooLarge."""
        self._write(encode_publish(subject, payload, headers, reply, self._max_payload))

    def publish_many(self, messages: Iterable[tuple[str, bytes, str]]) -> None:
        """Send messages without headers (subject, payload, reply subject or "") in one write."""
        limit = self._max_payload
        self._write(
            b"".join(
                encode_publish(subject, payload, None, reply, limit)
                for subject, payload, reply in messages
            )
        )

    def together(self) -> AbstractContextManager[None]:
        """Return a context in which publishes and subscriptions of this thread make one write.

        Nothing may wait for an answer in it. Raises NatsConnectionError at its end.
        """
        return self._opened().together()

    @property
    def _max_payload(self) -> int:
        return int(self.server_info.get("max_payload", 0))

    @property
    def most_at_once(self) -> int:
        """How many messages may be asked for at once, however large each of them is."""
        return max(1, _UNREAD_BYTES // max(1, self._max_payload))

    def most_bytes_at_once(self, askers: int) -> int:
        """How many bytes of messages each of `askers` may ask for at once; any one fits in."""
        # One more: what the others have asked for may be from a time when they were fewer.
        share = _UNREAD_BYTES // (askers + 1)
        return max(share, self._max_payload + _LONGEST_LINE_BYTES)

    def subscribe(self, subject: str, callback: Callback) -> int:
        """Call `callback` with every message on `subject` while somebody drains; return the sid."""
        sid = next(self._sids)
        self._callbacks[sid] = callback
        self._write(encode_subscribe(subject, sid))
        return sid

    def unsubscribe(self, sid: int) -> None:
        if self._callbacks.pop(sid, None) and self.connected:
            self._write(encode_unsubscribe(sid))

    def unsubscribe_and_flush(self, sid: int) -> None:
        """Unsubscribe; the callback still gets every message the server had sent before."""
        try:
            if self.connected:
                self._write(encode_unsubscribe(sid))
                self.flush()
        finally:
            self._callbacks.pop(sid, None)

    def new_inbox(self) -> str:
        """Return a subject nobody else uses."""
        return self._replies.new_inbox()

    @property
    def unheard(self) -> str:
        """Subject for answers that are not wanted, where the server must find a listener."""
        self._ensure_replies()
        return self._replies.unheard

    def _write(self, data: bytes) -> None:
        self._opened().send(data)

    # -- receiving ---------------------------------------------------------------------

    def drain(self, timeout: float | None = None, done: Callable[[], object] = bool) -> None:
        """Wait up to `timeout` seconds (None: for ever) for data and dispatch what came.

        What another thread reads and dispatches meanwhile counts too; where it may have done so
        before, `done` tells that there is nothing to wait for any more. Raises TimeoutError when
        nothing came, NatsConnectionError when the connection broke.
        """
        if not self._fill(timeout, done):
            raise TimeoutError(f"nothing from NATS for {timeout} s")

    def _fill(
        self, timeout: float | None, done: Callable[[], object] = bool, *, answer: bool = False
    ) -> bool:
        self.require_usable()
        read = self._read_answer if answer else self._read_and_dispatch
        return self._turns.read(read, timeout, done)

    def _read_answer(self, timeout: float | None) -> bool:
        return self._read_and_dispatch(timeout, answer=True)

    def _read_and_dispatch(self, timeout: float | None, *, answer: bool = False) -> bool:
        """Dispatch what was read before, else read once; False when nothing came in time."""
        if not self._frames and not self._read(timeout, answer=answer):
            return False
        # A callback may read too, for a request of its own, or fail: frames keep their order
        # and none is lost.
        while self._frames:
            self._dispatch(self._frames.popleft())
        return True

    def _read(self, timeout: float | None, *, answer: bool) -> bool:
        pipe = self._opened()
        data = pipe.receive(timeout, answer=answer)
        if data is None:
            return False
        self.heard_at = time.monotonic()
        try:
            self._frames.extend(self._parser.feed(data))
        except ProtocolError as error:
            raise pipe.broken(str(error)) from error
        return True

    def _dispatch(self, frame: Frame) -> None:
        if isinstance(frame, Message):
            callback = self._callbacks.get(frame.sid)
            if callback is not None:
                callback(frame)
        elif isinstance(frame, Control):
            if frame.verb == b"PING":
                self._write(PONG)
            elif frame.verb == b"PONG":
                self._pongs_seen += 1
        elif isinstance(frame, Info):
            self.server_info = frame.fields
        else:
            self._complaint(frame)

    def _complaint(self, error: ServerError) -> None:
        if is_operation_refused(error.text):
            self._refusals.tell(error.text)
            logger.warning("NATS refused an operation: %s", error.text)
            return
        self.close()
        raise complaint(error.text)

    def _read_until(self, done: Callable[[], object], waiter: Waiter, deadline: float) -> None:
        """Read and dispatch until `done()` is true. Raises NatsTimeout, NatsPermissionError."""

        def ended() -> object:
            return done() or waiter.refusal

        late_reads = _LATE_READS
        while not done():
            waiter.check()
            left = deadline - time.monotonic()
            if left > 0:
                self._fill(left, ended, answer=True)
            elif late_reads and self._fill(0, ended):
                late_reads -= 1
            else:
                raise NatsTimeout(NO_ANSWER)

    # -- asking ------------------------------------------------------------------------

    def request(
        self,
        subject: str,
        payload: bytes = b"",
        headers: Mapping[str, str] | None = None,
        timeout: float = 2.0,
    ) -> Message:
        """Send a request and return the first reply; see `request_many`."""
        return self.request_many([(subject, payload, headers)], timeout)[0]

    def request_many(self, requests: Iterable[Outgoing], timeout: float = 2.0) -> list[Message]:
        """Send all requests in one write and return their replies in the same order.

        Raises NatsTimeout when not every reply came within `timeout` seconds,
        NatsConnectionError when the connection broke or nobody listens on a subject. A request
        may have been done even so.
        """
        return [answered(reply) for reply in self.ask_many(requests, timeout)]

    def ask_many(self, requests: Iterable[Outgoing], timeout: float) -> list[Message | None]:
        """Like `request_many`, but return what came: None for what did not within `timeout`.

        Messages for other subscriptions that arrive meanwhile go to their callbacks. Raises
        NatsConnectionError when the connection broke.
        """
        requests = list(requests)
        replies, limit = self._replies, self._max_payload
        subjects = replies.expect(len(requests))
        try:
            frames = b"".join(
                encode_publish(*request, subject, limit)
                for request, subject in zip(requests, subjects, strict=True)
            )
            asked = [subject for subject, _, _ in requests]
            with self._refusals.waiting(replies.subjects, *asked) as waiter:
                self._ensure_replies()
                self._write(frames)
                deadline = time.monotonic() + timeout
                with contextlib.suppress(NatsTimeout):
                    for subject in subjects:
                        self._read_until(partial(replies.on, subject), waiter, deadline)
            return [replies.on(subject) for subject in subjects]
        finally:
            replies.forget(subjects)

    def collect(
        self,
        subject: str,
        payload: bytes,
        is_last: Callable[[Message], bool],
        timeout: float = 5.0,
    ) -> list[Message]:
        """Send a request that many messages answer; return them, the last included."""
        answers: list[Message] = []
        ended = False

        def receive(message: Message) -> None:
            nonlocal ended
            if not ended:
                answers.append(message)
                ended = is_last(message)

        inbox = self.new_inbox()
        with self._refusals.waiting(inbox, subject) as waiter:
            sid = self.subscribe(inbox, receive)
            try:
                self.publish(subject, payload, reply=inbox)
                self._read_until(lambda: ended, waiter, time.monotonic() + timeout)
            finally:
                self.unsubscribe(sid)
        return answers

    def flush(self, timeout: float = 2.0) -> None:
        """Return when the server has processed everything sent so far. Raises NatsTimeout."""
        with self._refusals.waiting() as waiter:
            target = self._ping()
            deadline = time.monotonic() + timeout
            self._read_until(lambda: self._pongs_seen >= target, waiter, deadline)

    def refusals(self) -> Waiter:
        """Return a context that is told, while it lasts, of refusals that concern no request."""
        return self._refusals.waiting()

    def check_peer(self, silence_seconds: float) -> bool:
        """Ping; close the connection when nothing came for `silence_seconds`. Any thread.

        True when every earlier PING was answered, so what was sent before them has arrived.

        Data that lies unread is a sign of life too: the reader may be busy with a long task.
        """
        now = time.monotonic()
        pipe = self._opened()
        all_answered = self._pongs_seen >= self._pongs_awaited
        if all_answered or pipe.has_unread():
            self._silent_since = now
        elif now - max(self._silent_since, self.heard_at) > silence_seconds:
            raise pipe.broken(f"no sign of life for {silence_seconds:.0f} s")
        self._ping()
        return all_answered

    def _ping(self) -> int:
        """Send PING; return how many PONGs will have been seen when it is answered."""
        self.require_usable()
        with self._order_lock:  # counted in the order in which they go out
            self._pongs_awaited += 1
            self._write(PING)
            return self._pongs_awaited

    @property
    def has_unread(self) -> bool:
        """True where something came that was not dispatched yet."""
        return bool(self._frames) or self._opened().has_unread()

    def is_alive(self) -> bool:
        """Read what lies there; False when the server has gone."""
        try:
            while self._fill(0):
                pass
        except NatsConnectionError:
            return False
        return True

    def _ensure_replies(self) -> None:
        if not self._replies_sid:
            self.require_usable()
            with self._order_lock:  # no request of another thread may overtake the subscription
                self._replies_sid = self._replies_sid or self.subscribe(
                    self._replies.subjects, self._replies.receive
                )
