"""A TCP proxy that can fail the way networks do, for tests."""

from __future__ import annotations

import select
import selectors
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from tests.support.waiting import wait_until

_READ_BYTES = 65_536
#: SO_LINGER switched on with no time: closing discards everything and sends RST.
_RESET = struct.pack("ii", 1, 0)


class Proxy:
    """Passes connections on to `port` of this machine. A context manager.

    What is done to them concerns those that are open; new ones work.
    """

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._selector = selectors.DefaultSelector()
        #: each end of a connection -> the other
        self._peers: dict[socket.socket, socket.socket] = {}
        #: all that has come from there
        self._heard: dict[socket.socket, bytearray] = {}
        self._silent: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._waker, self._wakes = socket.socketpair()
        self._thread = threading.Thread(target=self._run)

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wakes, selectors.EVENT_READ)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._waker.close()
        self._thread.join()
        for end in [self._listener, self._wakes, *self._peers]:
            end.close()
        self._selector.close()

    def silence(self) -> int:
        """Pass nothing on any more, and close nothing; return how many connections that hit."""
        with self._lock:
            self._silent.update(self._peers)
            return len(self._peers) // 2

    @contextmanager
    def losing(self) -> Iterator[None]:
        """Lose what is sent during the block, and nothing else."""
        self.silence()
        yield
        wait_until(self._has_read_all)
        with self._lock:
            self._silent.clear()

    def _has_read_all(self) -> bool:
        with self._lock:
            return not select.select(list(self._peers), [], [], 0)[0]

    def reset(self, said: bytes = b"") -> int:
        """End connections with RST on both sides; return how many.

        All, or those where one side has `said` something.
        """
        with self._lock:
            ends = [
                end
                for end, peer in self._peers.items()
                if said in self._heard[end] or said in self._heard[peer]
            ]
            for end in ends:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                self._drop(end)
        return len(ends) // 2

    def _run(self) -> None:
        while True:
            ready = [key.fileobj for key, _ in self._selector.select()]
            if self._wakes in ready:
                return
            with self._lock:
                for end in ready:
                    assert isinstance(end, socket.socket)
                    if end is self._listener:
                        self._accept()
                    elif end in self._peers:
                        self._pass_on(end)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        try:
            server = socket.create_connection(self._target)
        except ConnectionError:
            client.close()
            return
        self._peers |= {client: server, server: client}
        self._heard |= {client: bytearray(), server: bytearray()}
        for end in (client, server):
            self._selector.register(end, selectors.EVENT_READ)

    def _pass_on(self, end: socket.socket) -> None:
        try:
            data = end.recv(_READ_BYTES)
            self._heard[end] += data
            if data and end not in self._silent:
                self._peers[end].sendall(data)
        except ConnectionError:
            data = b""
        if data:
            return
        peer = self._peers[end]
        self._drop(end)
        if peer not in self._silent:
            self._drop(peer)

    def _drop(self, end: socket.socket) -> None:
        self._selector.unregister(end)
        del self._peers[end], self._heard[end]
        self._silent.discard(end)
        end.close()
