"""A blocking NATS connection: one socket, fork-checked, pollable, never buffering over a reconnect.

Any thread may write; one thread at a time reads. A broken connection stays broken: its owner
opens another (ADR 0002). Nothing is sent again by itself, so what failed did not happen later.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from bridge.errors import NatsAuthError, NatsConnectionError, NatsTimeout
from bridge.wire import wait
from bridge.wire.auth import login_fields
from bridge.wire.options import ConnectOptions
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
    encode_connect,
    encode_publish,
    encode_subscribe,
    encode_unsubscribe,
)

logger = logging.getLogger("nats")

Callback = Callable[[Message], None]
#: subject, payload, headers
Outgoing = tuple[str, bytes, Mapping[str, str] | None]

_READ_BYTES = 256 * 1024
_AUTH_ERRORS = ("authorization", "authentication", "user authentication")
_WOULD_BLOCK = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Connection:
    """One connection to one of the servers of `options`; see `connect`."""

    def __init__(self, options: ConnectOptions) -> None:
        self.options = options
        #: the server's INFO
        self.server_info: dict[str, Any] = {}
        self.connected = False
        self._pid = os.getpid()
        self._socket: socket.socket | None = None
        self._parser = Parser()
        # TLS state is shared by reads and writes, so the same lock guards both.
        self._io_lock = threading.RLock()
        self._callbacks: dict[int, Callback] = {}
        #: sid -> messages until it ends, for subscriptions that end by themselves
        self._remaining: dict[int, int] = {}
        self._next_sid = 1
        self._inbox = f"_INBOX.{os.urandom(11).hex()}"
        self._inbox_sid = 0
        self._next_reply = 0
        self._inboxes = itertools.count()
        #: reply token -> the reply, None while it is awaited
        self._replies: dict[str, Message | None] = {}
        self._pongs_awaited = 0
        self._pongs_seen = 0
        self._violation = ""
        self._silent_since = time.monotonic()

    # -- life cycle --------------------------------------------------------------------

    def connect(self) -> None:
        """Connect to the first server that lets us in.

        Raises NatsAuthError when one refused the credentials and none took them,
        NatsConnectionError when none answered.
        """
        failures: list[NatsConnectionError] = []
        for host, port in self.options.servers:
            try:
                self._greet(host, port)
            except NatsConnectionError as error:
                self.close()
                failures.append(error)
            except (OSError, ProtocolError) as error:
                self.close()
                failures.append(NatsConnectionError(f"no NATS server at {host}:{port}: {error}"))
            else:
                return
        refused = [error for error in failures if isinstance(error, NatsAuthError)]
        raise (refused or failures)[0]

    def _greet(self, host: str, port: int) -> None:
        options = self.options
        deadline = time.monotonic() + options.connect_timeout
        raw = socket.create_connection((host, port), options.connect_timeout)
        self._socket = raw
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._parser = Parser()
        if options.tls_handshake_first:
            self._wrap_tls(host)
        self._socket.setblocking(False)
        self._read_until(lambda: bool(self.server_info), deadline)
        if not options.tls_handshake_first and (options.tls or self._server_wants_tls()):
            if not (self.server_info.get("tls_required") or self.server_info.get("tls_available")):
                raise NatsConnectionError(
                    f"{host}:{port} offers no TLS; use nats:// or switch TLS on in the server"
                )
            self._socket.settimeout(options.connect_timeout)
            self._wrap_tls(host)
            self._socket.setblocking(False)
        self._login(host, port, deadline)

    def _server_wants_tls(self) -> bool:
        return bool(self.server_info.get("tls_required"))

    def _wrap_tls(self, host: str) -> None:
        assert self._socket is not None
        try:
            self._socket = self.options.ssl_context().wrap_socket(
                self._socket, server_hostname=host
            )
        except ssl.SSLError as error:
            raise NatsConnectionError(f"TLS with {host} failed: {error}") from error

    def _login(self, host: str, port: int, deadline: float) -> None:
        fields = {
            "verbose": False,
            "pedantic": False,
            "lang": "python-celery-nats-bridge",
            "version": "1",
            "protocol": 1,
            "headers": True,
            "no_responders": True,
            "name": self.options.name,
            **login_fields(self.options, self.server_info.get("nonce", "")),
        }
        self.connected = True
        self._pongs_awaited, self._pongs_seen = 1, 0
        self._write(encode_connect(fields) + PING)
        try:
            self._read_until(lambda: self._pongs_seen > 0, deadline)
        except NatsTimeout as error:
            raise NatsConnectionError(f"{host}:{port} does not answer") from error

    def close(self) -> None:
        """Close the socket; what waits in `drain` or `request` fails. Safe to call twice.

        Sends nothing, so that a forked child that closes an inherited connection cannot end
        its parent's.
        """
        self.connected = False
        held, self._socket = self._socket, None
        if held is None:
            return
        if os.getpid() == self._pid:
            # Wakes a thread that waits in poll(); close() alone would not.
            with contextlib.suppress(OSError):
                held.shutdown(socket.SHUT_RDWR)
        held.close()

    def fileno(self) -> int:
        return self._usable().fileno()

    def _usable(self) -> socket.socket:
        if self._socket is None or not self.connected:
            raise NatsConnectionError("the connection to NATS is closed")
        if os.getpid() != self._pid:
            raise NatsConnectionError("this connection to NATS was opened before a fork")
        return self._socket

    # -- sending -----------------------------------------------------------------------

    def publish(
        self,
        subject: str,
        payload: bytes = b"",
        headers: Mapping[str, str] | None = None,
        reply: str = "",
    ) -> None:
        """Send one message and wait for nothing. Raises NatsConnectionError."""
        self._check_size(payload, headers)
        self._write(encode_publish(subject, payload, headers, reply))

    def publish_many(self, messages: Iterable[tuple[str, bytes]]) -> None:
        """Send messages without headers in one write."""
        self._write(b"".join(encode_publish(subject, payload) for subject, payload in messages))

    def subscribe(self, subject: str, callback: Callback, max_messages: int = 0) -> int:
        """Call `callback` with every message on `subject` while somebody drains; return the sid.

        The subscription ends by itself after `max_messages`, where that is not 0.
        """
        with self._io_lock:
            sid = self._next_sid
            self._next_sid += 1
        frames = encode_subscribe(subject, sid)
        if max_messages:
            self._remaining[sid] = max_messages
            frames += encode_unsubscribe(sid, max_messages)
        self._callbacks[sid] = callback
        self._write(frames)
        return sid

    def unsubscribe(self, sid: int) -> None:
        if self._callbacks.pop(sid, None) and self.connected:
            self._write(encode_unsubscribe(sid))

    def unsubscribe_and_flush(self, sid: int) -> None:
        """Unsubscribe; the callback still gets every message the server had sent before."""
        if self.connected:
            self._write(encode_unsubscribe(sid))
            self.flush()
        self._callbacks.pop(sid, None)

    def new_inbox(self) -> str:
        """Return a subject nobody else uses."""
        return f"{self._inbox}.s{next(self._inboxes)}"

    def _check_size(self, payload: bytes, headers: Mapping[str, str] | None) -> None:
        limit = self.server_info.get("max_payload", 0)
        size = len(payload)
        if headers:
            size += 12 + sum(len(name) + len(value) + 4 for name, value in headers.items())
        if limit and size > limit:
            # The server would cut the connection, and with it everything in flight.
            raise PayloadTooLarge(size, limit)

    def _write(self, data: bytes) -> None:
        if not data:
            return
        view = memoryview(data)
        deadline = 0.0
        with self._io_lock:
            sock = self._usable()
            while True:
                try:
                    view = view[sock.send(view) :]
                    if not view:
                        return
                except _WOULD_BLOCK:
                    deadline = deadline or time.monotonic() + self.options.write_timeout
                    if not wait.writable(sock, deadline - time.monotonic()):
                        raise self._broken("NATS takes no more data") from None
                except OSError as error:
                    raise self._broken(str(error)) from error

    # -- receiving ---------------------------------------------------------------------

    def drain(self, timeout: float | None = None) -> None:
        """Wait up to `timeout` seconds (None: for ever) for data and dispatch what came.

        Raises TimeoutError when nothing came, NatsConnectionError when the connection broke.
        """
        if not self._fill(timeout):
            raise TimeoutError(f"nothing from NATS for {timeout} s")

    def _fill(self, timeout: float | None) -> bool:
        """Read once and dispatch; False when nothing came in time."""
        sock = self._usable()
        pending = sock.pending() if isinstance(sock, ssl.SSLSocket) else 0
        if timeout != 0 and not pending and not wait.readable(sock, timeout):
            return False
        try:
            # Only TLS needs the lock; without it a keeper may write while we read.
            if isinstance(sock, ssl.SSLSocket):
                with self._io_lock:
                    data = sock.recv(_READ_BYTES)
            else:
                data = sock.recv(_READ_BYTES)
        except _WOULD_BLOCK:
            return False
        except OSError as error:
            raise self._broken(str(error)) from error
        if not data:
            raise self._broken("NATS closed the connection")
        try:
            frames = self._parser.feed(data)
        except ProtocolError as error:
            raise self._broken(str(error)) from error
        for frame in frames:
            self._dispatch(frame)
        return True

    def _dispatch(self, frame: Frame) -> None:
        if isinstance(frame, Message):
            callback = self._callbacks.get(frame.sid)
            if callback is not None:
                if frame.sid in self._remaining:
                    self._count_down(frame.sid)
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

    def _count_down(self, sid: int) -> None:
        self._remaining[sid] -= 1
        if not self._remaining[sid]:
            del self._remaining[sid], self._callbacks[sid]

    def _complaint(self, error: ServerError) -> None:
        text = error.text.lower()
        if "permissions violation" in text:
            # The connection stays up; whoever waits for an answer learns the reason.
            self._violation = error.text
            logger.warning("NATS refused an operation: %s", error.text)
            return
        self.close()
        if text.startswith(_AUTH_ERRORS):
            raise NatsAuthError(f"NATS refused the credentials ({error.text})")
        raise NatsConnectionError(f"NATS ended the connection: {error.text}")

    def _broken(self, reason: str) -> NatsConnectionError:
        self.close()
        return NatsConnectionError(f"the connection to NATS broke: {reason}")

    def _read_until(self, done: Callable[[], bool], deadline: float) -> None:
        while not done():
            left = deadline - time.monotonic()
            if self._violation:
                raise NatsAuthError(f"NATS refused the operation: {self._take_violation()}")
            # Sockets are read even when time is up: an answer that lies there is an answer.
            if left <= 0 and not self._read_leftover():
                raise NatsTimeout("NATS did not answer in time")
            if left > 0:
                self._fill_before_info(left)

    def _read_leftover(self) -> bool:
        return self._fill(0) if self.connected else False

    def _fill_before_info(self, timeout: float) -> None:
        if self.connected:
            self._fill(timeout)
            return
        # Before CONNECT only INFO may come.
        self.connected = True
        try:
            self._fill(timeout)
        finally:
            self.connected = self._socket is not None

    def _take_violation(self) -> str:
        text, self._violation = self._violation, ""
        return text

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

        Messages for other subscriptions that arrive meanwhile go to their callbacks. Raises
        NatsTimeout when not every reply came within `timeout` seconds, NatsConnectionError when
        the connection broke or nobody listens on a subject. A request may have been done even so.
        """
        self._ensure_inbox()
        frames: list[bytes] = []
        tokens: list[str] = []
        for subject, payload, headers in requests:
            self._check_size(payload, headers)
            self._next_reply += 1
            token = f"{self._inbox}.{self._next_reply}"
            frames.append(encode_publish(subject, payload, headers, token))
            tokens.append(token)
        replies = self._replies
        replies.update(dict.fromkeys(tokens))
        self._violation = ""
        try:
            self._write(b"".join(frames))
            deadline = time.monotonic() + timeout
            for token in tokens:
                if replies[token] is None:
                    self._read_until(lambda token=token: replies[token] is not None, deadline)  # type: ignore[misc]
            return [_answered(replies[token]) for token in tokens]
        finally:
            for token in tokens:
                replies.pop(token, None)

    def collect(
        self,
        subject: str,
        payload: bytes,
        is_last: Callable[[Message], bool],
        timeout: float = 5.0,
    ) -> list[Message]:
        """Send a request that many messages answer; return them, the last included."""
        answers: list[Message] = []
        inbox = self.new_inbox()
        sid = self.subscribe(inbox, answers.append)
        try:
            self.publish(subject, payload, reply=inbox)
            self._read_until(
                lambda: bool(answers) and is_last(answers[-1]), time.monotonic() + timeout
            )
        finally:
            self.unsubscribe(sid)
        return answers

    def flush(self, timeout: float = 2.0) -> None:
        """Return when the server has processed everything sent so far. Raises NatsTimeout."""
        target = self._ping()
        self._read_until(lambda: self._pongs_seen >= target, time.monotonic() + timeout)

    def check_peer(self, silence_seconds: float) -> None:
        """Ping; close the connection when nothing came for `silence_seconds`. Any thread.

        Data that lies unread is a sign of life too: the reader may be busy with a long task.
        """
        now = time.monotonic()
        sock = self._usable()
        if self._pongs_seen >= self._pongs_awaited or wait.readable(sock, 0):
            self._silent_since = now
        elif now - self._silent_since > silence_seconds:
            raise self._broken(f"no sign of life for {silence_seconds:.0f} s")
        self._ping()

    def _ping(self) -> int:
        """Send PING; return how many PONGs will have been seen when it is answered."""
        with self._io_lock:
            self._pongs_awaited += 1
            self._write(PING)
            return self._pongs_awaited

    def is_alive(self) -> bool:
        """Read what lies there; False when the server has gone."""
        try:
            while self._fill(0):
                pass
        except NatsConnectionError:
            return False
        return True

    def _ensure_inbox(self) -> None:
        if not self._inbox_sid:
            self._inbox_sid = self.subscribe(f"{self._inbox}.*", self._on_reply)

    def _on_reply(self, message: Message) -> None:
        # A reply nobody awaits any more belongs to a request that has timed out.
        if message.subject in self._replies:
            self._replies[message.subject] = message


class PayloadTooLarge(ValueError):
    """A message is larger than the server takes; it was not sent. Sizes in bytes."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(
            f"the message has {size} bytes and the NATS server takes {limit}: send less, or raise "
            "max_payload in the server's configuration"
        )
        self.size = size
        self.limit = limit


def _answered(reply: Message | None) -> Message:
    assert reply is not None
    # Only bare status replies have headers and no payload; skip decoding all others.
    if not reply.payload and reply.status == 503:
        raise NatsConnectionError(
            "nobody answers at NATS: is JetStream switched on, and are the streams there?"
        )
    return reply
