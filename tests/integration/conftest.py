"""Fixtures for tests of the transport: kombu connections that are closed in the end."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kombu import Connection

from tests.support.nats import NatsServer

Connect = Callable[..., Connection]


@pytest.fixture
def connect(shared_nats: NatsServer) -> Iterator[Connect]:
    """A function that opens connections to the shared server; arguments are kombu's."""
    opened: list[Connection] = []

    def connect(url: str = "", **options: Any) -> Connection:
        connection = Connection(url or shared_nats.url, **options)
        opened.append(connection)
        connection.connect()
        return connection

    yield connect
    for connection in opened:
        connection.release()


@pytest.fixture
def name() -> str:
    """A name for queues and exchanges that no other test uses."""
    return f"test-{uuid.uuid4().hex[:12]}"
