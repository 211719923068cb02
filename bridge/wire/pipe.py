"""The socket of one connection: who may use it when, and what happens when it breaks."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator

from bridge.errors import NatsConnectionError
from bridge.wire import wait

#: More than a TLS record, so that nothing stays behind in OpenSSL where poll() cannot see it; less
#: than what malloc maps anew for every call (128 KiB), which took longer than the rest of a read.
_READ_BYTES = 64 * 1024
_WOULD_BLOCK = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Pipe:
    """Sends from any thread, receives in one at a time; whoever sees it break closes it.

    Belongs to the process that made it; in a forked child it can only be closed, and that says
    nothing to the server.
    """

    def __init__(self, sock: socket.socket, write_timeout: float) -> None:
        """`sock` is non-blocking; `write_timeout` (seconds) is how long it may stay full."""
        self._socket: socket.socket | None = sock
        self._write_timeout = write_timeout
        self._answers = wait.Answers()
        self._pid = os.getpid()
        # Writes of several threads must not mix, and TLS state is shared by both directions.
        self._lock = threading.RLock()
        #: what waits for the end of `together`; only its thread can hold the lock meanwhile
        self._gathered: list[bytes] | None = None

    @property
    def is_open(self) -> bool:
        return self._socket is not None

    def usable(self) -> socket.socket:
        """Return the socket. Raises NatsConnectionError once closed, and after a fork."""
        if self._socket is None:
            raise NatsConnectionError("the connection to NATS is closed")
        if os.getpid() != self._pid:
            raise NatsConnectionError("this connection to NATS was opened before a fork")
        return self._socket

    def send(self, data: bytes) -> None:
        """Send all of `data`. Raises NatsConnectionError."""
        # Before the lock, which a thread of our parent may have held when we were forked.
        self.usable()
        with self._lock:
            if self._gathered is not None:
                self._gathered.append(data)
                return
            sock = self.usable()
            view = memoryview(data)
            deadline = 0.0
            while view:
                try:
                    view = view[sock.send(view) :]
                except _WOULD_BLOCK as error:
                    deadline = deadline or time.monotonic() + self._write_timeout
                    tls_reads = isinstance(error, ssl.SSLWantReadError)
                    wait_for = wait.readable if tls_reads else wait.writable
                    if not wait_for(sock, deadline - time.monotonic()):
                        raise self.broken("the server takes no more data") from None
                except OSError as error:
                    raise self.broken(str(error)) from error

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Send in one write, at the end, what this thread sends meanwhile; other threads wait.

        Nothing is sent where the block raises. Raises NatsConnectionError.
        """
        self.usable()
        with self._lock:
            gathered: list[bytes] = []
            self._gathered = gathered
            try:
                yield
            finally:
                self._gathered = None
            if gathered:
                self.send(b"".join(gathered))

    def receive(self, timeout: float | None, *, answer: bool = False) -> bytes | None:
        """Return what comes within `timeout` seconds (None: for ever), None when nothing does.

        `answer` says that the server has just been asked for it. Raises NatsConnectionError
        when the connection broke or the server closed it.
        """
        sock = self.usable()
        readable = self._answers.readable if answer else wait.readable
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if deadline is None else deadline - time.monotonic()
            if timeout != 0 and not readable(sock, left):
                return None
            data = self._receive(sock)
            if data:
                return data
            if data is not None:
                raise self.broken("the server closed it")
            if timeout == 0:
                return None

    def _receive(self, sock: socket.socket) -> bytes | None:
        """Return what lies there, None when it is nothing or not yet a whole TLS record."""
        try:
            # Only TLS needs the lock; without it a keeper may write while we read.
            if isinstance(sock, ssl.SSLSocket):
                with self._lock:
                    return sock.recv(_READ_BYTES)
            return sock.recv(_READ_BYTES)
        except _WOULD_BLOCK:
            return None
        except (OSError, ValueError) as error:  # ValueError: TLS, closed by another thread
            raise self.broken(str(error)) from error

    def has_unread(self) -> bool:
        """True when data lies there that nobody has read."""
        return wait.readable(self.usable(), 0)

    def broken(self, reason: str) -> NatsConnectionError:
        """Close, and return the exception to raise."""
        self.close()
        return NatsConnectionError(f"the connection to NATS broke: {reason}")

    def close(self) -> None:
        """Close the socket and wake who waits for it. Safe to call twice, from any thread."""
        held, self._socket = self._socket, None
        if held is None:
            return
        if os.getpid() != self._pid:
            # Without the lock, which a thread of the parent may have held when we were forked.
            held.close()
            return
        with contextlib.suppress(OSError):
            # Wakes a thread that waits in poll(); close() alone would not.
            if isinstance(held, ssl.SSLSocket):
                # The base class's, since its own first makes a plain socket of itself, and
                # another thread might then write to it in clear text.
                super(ssl.SSLSocket, held).shutdown(socket.SHUT_RDWR)
            else:
                held.shutdown(socket.SHUT_RDWR)
        with self._lock:
            wait.wake(held)
            held.close()
