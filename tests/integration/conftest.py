"""Connections and clients that are closed in the end."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery
from kombu import Connection

from bridge.wire import Connection as WireConnection
from bridge.wire import ConnectOptions, JetStream
from tests.support.celery_client import close_app, make_app
from tests.support.celery_worker import CeleryWorker
from tests.support.nats import NatsServer

Connect = Callable[..., Connection]
#: Virtual host of `foreign_worker`, on the shared server.
FOREIGN_VHOST = "foreign-worker"


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


@pytest.fixture(scope="module")
def foreign_worker(
    shared_nats: NatsServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CeleryWorker]:
    """One prefork worker of the foreign app for all tests of a module."""
    url = f"{shared_nats.url}/{FOREIGN_VHOST}"
    worker = CeleryWorker(url, tmp_path_factory.mktemp("worker"), name="foreign", concurrency=3)
    worker.start()
    yield worker
    worker.stop()


@pytest.fixture
def js(foreign_worker: CeleryWorker) -> Iterator[JetStream]:
    """JetStream in the virtual host of `foreign_worker`."""
    connection = WireConnection(ConnectOptions.from_url(foreign_worker.url))
    connection.connect()
    yield JetStream(connection)
    connection.close()
