"""Our NATS client and the official one, side by side in one test."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import nats
from nats.aio.client import Client

from bridge.errors import NatsConnectionError
from bridge.wire import Connection, ConnectOptions

T = TypeVar("T")

#: Far longer than anything here takes, so only a failure meets it.
PATIENCE_SECONDS = 10.0


@contextmanager
def connected(url: str, **fields: Any) -> Iterator[Connection]:
    """A connection of ours, closed in the end; `fields` are those of ConnectOptions."""
    connection = Connection(ConnectOptions.from_url(url, **fields))
    connection.connect()
    try:
        yield connection
    finally:
        connection.close()


def read_until(connection: Connection, condition: Callable[[], object]) -> None:
    """Read until `condition()` is true. Raises TimeoutError when that does not come."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        connection.drain(max(0.0, deadline - time.monotonic()))


def drain_until_closed(connection: Connection) -> None:
    """Serve the subscriptions of a connection until it ends; a thread's work."""
    try:
        while True:
            connection.drain()
    except NatsConnectionError:
        return


class OfficialClient:
    """nats-py on an event loop in a thread, for tests that block in our client meanwhile."""

    def __init__(self, url: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.client: Client = self.run(nats.connect(url))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop and return its result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_SECONDS)

    def close(self) -> None:
        self.run(self.client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE_SECONDS)
        self._loop.close()
