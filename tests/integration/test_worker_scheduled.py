"""`inspect scheduled` sees what waits in the server."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from bridge.names import Names
from bridge.wire import Connection, ConnectOptions, JetStream
from tests.support.celery_client import close_app, make_app
from tests.support.celery_worker import CeleryWorker
from tests.support.nats import NatsServer
from tests.support.waiting import wait_until

VHOST = "scheduled"


@pytest.fixture
def url(nats_server: NatsServer) -> str:
    return f"{nats_server.url}/{VHOST}"


@pytest.fixture(params=["prefork", "gevent"])
def app(request: pytest.FixtureRequest, url: str, tmp_path: Path) -> Iterator[Celery]:
    """A client of a worker that consumes the queue `foreign`."""
    worker = CeleryWorker(url, tmp_path, name="scheduled", pool=request.param, concurrency=1)
    worker.start()
    app = make_app(url, task_default_queue="foreign")
    yield app
    close_app(app)
    worker.stop()


def _scheduled(app: Celery) -> dict[str, Any]:
    """Ask until there is an answer: on gevent a worker listens a moment after it consumes."""
    return dict(wait_until(app.control.inspect(timeout=2, limit=1).scheduled))


def test_scheduled_shows_tasks_that_wait_in_the_server(app: Celery, url: str) -> None:
    """Tasks that are due later are listed by their time; what is no task is passed over."""
    names = Names(VHOST)
    connection = Connection(ConnectOptions.from_url(url))
    connection.connect()
    later = datetime.now(UTC) + timedelta(hours=1)
    last = app.send_task("foreign.add", (1, 2), eta=later + timedelta(hours=1))
    first = app.send_task("foreign.add", (3, 4), {}, eta=later, priority=7)
    due = f"@at {later.isoformat(timespec='seconds')}".replace("+00:00", "Z")
    target = names.task_subject("foreign", 5)
    JetStream(connection).publish(
        names.schedule_subject("foreign", "noise", "1"),
        b"noise",
        {"Nats-Schedule": due, "Nats-Schedule-Target": target},
    )
    connection.close()

    [shown] = _scheduled(app).values()

    assert [entry["request"]["id"] for entry in shown] == [first.id, last.id]
    assert shown[0]["eta"] == later.isoformat()
    assert shown[0]["request"]["args"] == [3, 4]
    assert shown[0]["request"]["name"] == "foreign.add"
    assert shown[0]["request"]["delivery_info"]["priority"] == 7
