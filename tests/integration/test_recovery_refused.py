"""A worker whom JetStream refuses something: it ends with the reason or outlasts it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from celery import Celery

from bridge.errors import NatsPermissionError
from bridge.names import Names
from bridge.wire import Connection, ConnectOptions, JetStream
from tests.support.celery_client import close_app, make_app
from tests.support.celery_worker import CeleryWorker
from tests.support.nats import NatsServer
from tests.support.recovery import PATIENCE_SECONDS, Notebook, worker_on

NO_PURGE = 'permissions: { publish: { deny: "$JS.API.STREAM.PURGE.>" } }'


@contextmanager
def server_of(directory: Path, account: str, user: str = "") -> Iterator[str]:
    """A server with one account; the URL of its only user."""
    users = f"users: [ {{ user: u, password: p, {user} }} ]"
    server = NatsServer(directory / "nats", extra=f"accounts {{ A: {{ {account}, {users} }} }}\n")
    server.start()
    try:
        yield f"nats://u:p@127.0.0.1:{server.port}"
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("account", "user", "reason"),
    [
        ("jetstream: { max_file: 100M }", "", "room on disk"),
        ("jetstream: enabled", NO_PURGE, "give its user this permission"),
    ],
    ids=["limit", "permission"],
)
def test_worker_refused_when_it_starts(
    tmp_path: Path, account: str, user: str, reason: str
) -> None:
    """It ends with status 78, and its last line is the reason and no traceback."""
    with server_of(tmp_path, account, user) as url:
        worker = CeleryWorker(url, tmp_path)
        worker.spawn()
        try:
            assert worker.wait() == os.EX_CONFIG
        finally:
            worker.kill()

    assert "Traceback" not in worker.output
    [last] = [line for line in worker.output.splitlines() if "CRITICAL" in line]
    assert reason in last


def test_refused_result_is_told_at_once(tmp_path: Path) -> None:
    """What the user may not do fails by name, and is not tried for a minute."""
    with server_of(tmp_path, "jetstream: enabled", NO_PURGE) as url:
        app = make_app(url)
        started = time.monotonic()
        with pytest.raises(NatsPermissionError, match="PURGE"):
            app.backend.forget("nobody")
        assert time.monotonic() - started < PATIENCE_SECONDS
        close_app(app)


def test_stream_removed_under_a_running_worker(
    nats_server: NatsServer, app: Celery, tmp_path: Path
) -> None:
    """The worker makes it again, says so, and what runs meanwhile runs once."""
    notebook = Notebook(app, tmp_path / "ran")
    with worker_on(nats_server.url, tmp_path) as worker:
        notebook.send("long", 3.0)
        notebook.wait_for("start long")
        connection = Connection(ConnectOptions.from_url(nats_server.url))
        connection.connect()
        JetStream(connection).api(f"STREAM.DELETE.{Names().task_stream}")
        connection.close()
        worker.wait_for_log("queue foreign has been lost")

        notebook.send("afterwards")

        notebook.assert_none_lost(0)
        worker.stop()
