"""Connections and clients that are closed in the end."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery
from kombu import Connection

from tests.support.celery_client import close_app, make_app
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


@pytest.fixture
def app(nats_server: NatsServer) -> Iterator[Celery]:
    """A client of the foreign app that talks to the test's own server."""
    app = make_app(nats_server.url, task_default_queue="foreign")
    yield app
    close_app(app)
