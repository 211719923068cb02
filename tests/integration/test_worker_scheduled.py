"""`inspect scheduled` sees what waits in the server."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.contrib.migrate import migrate_tasks
from click.testing import CliRunner
from kombu import Connection as Broker

from bridge.names import Names
from bridge.wire import Connection, ConnectOptions, JetStream
from bridge.worker import plugin
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


def test_migration_takes_what_is_due_later_along(shared_nats: NatsServer) -> None:
    """Once it was put into its queue, `celery migrate` finds it there and keeps its time."""
    url = f"{shared_nats.url}/migration"
    app = make_app(url, task_default_queue="foreign")
    eta = datetime.now(UTC) + timedelta(hours=1)
    for priority in range(3):
        app.send_task("foreign.add", (priority, 0), eta=eta, priority=priority)
    with Broker(url) as source, Broker("memory://") as target:
        done = CliRunner().invoke(plugin.nats, ["enqueue-scheduled"], obj=SimpleNamespace(app=app))
        channel = source.default_channel
        wait_until(lambda: channel.queue_declare("foreign", passive=True).message_count == 3)
        migrate_tasks(source, target, app=app, timeout=0.2)
        moved = [target.default_channel.basic_get("foreign") for _ in range(3)]
    close_app(app)

    assert done.output == "foreign: 3\n"
    assert [message.headers["eta"] for message in moved] == [eta.isoformat()] * 3
