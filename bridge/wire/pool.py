"""Connections to borrow, for programs whose threads or greenlets come and go."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Iterator

from bridge.errors import NatsTimeout
from bridge.wire.connection import Connection
from bridge.wire.options import ConnectOptions


class ConnectionPool:
    """Lends connections, the most recently used first; opens one when none is idle.

    Fork-safe: a child starts with an empty pool. A connection that broke while lent is dropped,
    and the idle ones with it, as they are where the server said nothing at all in time.
    """

    def __init__(self, options: ConnectOptions, max_idle: int = 32) -> None:
        self.options = options
        self._max_idle = max_idle
        self._idle: deque[Connection] = deque()
        self._pid = os.getpid()

    @contextlib.contextmanager
    def connection(self) -> Iterator[Connection]:
        """Lend a connected connection. Raises NatsConnectionError when none can be opened."""
        connection = self._take()
        heard_at = connection.heard_at
        try:
            yield connection
        except BaseException as error:
            was_silent = isinstance(error, NatsTimeout) and connection.heard_at == heard_at
            if was_silent or not connection.connected:
                # Of a host that died no packet tells: each would cost another time limit.
                self._close_idle()
            # Whatever went wrong, the state of its replies and subscriptions is unknown.
            connection.close()
            raise
        if connection.connected and len(self._idle) < self._max_idle:
            self._idle.append(connection)
        else:
            connection.close()

    def _take(self) -> Connection:
        if os.getpid() != self._pid:
            inherited, self._idle = self._idle, deque()
            self._pid = os.getpid()
            for connection in inherited:
                connection.close()
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                break
            if connection.is_alive():
                return connection
        connection = Connection(self.options)
        connection.connect()
        return connection

    def close(self) -> None:
        """Close what is idle; what is lent closes when it is given back."""
        self._max_idle = 0
        self._close_idle()

    def _close_idle(self) -> None:
        with contextlib.suppress(IndexError):  # other threads take from there as well
            while True:
                self._idle.pop().close()
