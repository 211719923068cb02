"""Waiting for a result where the server refuses the login or a permission."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from celery import Celery, states

from bridge.errors import NatsAuthError, NatsPermissionError
from tests.support.celery_client import close_app, make_app
from tests.support.nats import NatsServer
from tests.support.recovery import PATIENCE_SECONDS
from tests.support.waiting import wait_until


def login(password: str, permissions: str = "") -> str:
    return f"authorization {{ users: [ {{ user: u, password: {password}, {permissions} }} ] }}"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    """A server that lets in user `u` with password `right`."""
    server = NatsServer(tmp_path / "nats", extra=login("right"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def app(server: NatsServer) -> Iterator[Celery]:
    app = make_app(server.url.replace("//", "//u:right@"))
    yield app
    close_app(app)


def changed(server: NatsServer, extra: str) -> NatsServer:
    """Stop a server and return another one with its port and its store, started."""
    server.kill()
    successor = NatsServer(server.directory, extra=extra)
    successor.port = server.port
    successor.start()
    return successor


def test_refused_login_is_told_to_all_who_wait(
    server: NatsServer, app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    """Each of them, once it is certain; the log tells of the outage and of its end, once."""
    caplog.set_level("INFO", "nats")
    app.backend.store_result("there", "before", states.SUCCESS)
    with ThreadPoolExecutor(3) as threads:
        waiting = [
            threads.submit(app.AsyncResult(name).get, timeout=PATIENCE_SECONDS)
            for name in ("a", "b", "b")
        ]
        wait_until(lambda: all(map(app.backend.result_consumer.is_watching, ("a", "b"))))
        closed = changed(server, login("new"))
        try:
            for wait in waiting:
                with pytest.raises(NatsAuthError, match="refused the login"):
                    wait.result(PATIENCE_SECONDS)
            # Who begins to wait is told as well, and who did before and does again.
            for name in ("late", "late", "a"):
                with pytest.raises(NatsAuthError, match="refused the login"):
                    app.AsyncResult(name).get(timeout=PATIENCE_SECONDS)
        finally:
            closed.kill()
    server.start()

    assert app.AsyncResult("there").get(timeout=PATIENCE_SECONDS) == "before"

    told = [record.message for record in caplog.records if "results" in record.message]
    assert [line.partition(":")[0] for line in told] == [
        "no results from NATS until it is back",
        "results come from NATS again",
    ]


@pytest.mark.parametrize("denied", ["subscribe", "publish"])
def test_missing_permission_is_told_to_who_waits(
    server: NatsServer, app: Celery, denied: str
) -> None:
    """To every call, by the subject, be it of the changes or of the question."""
    subject, told = {
        "subscribe": ("kv.>", "Subscription"),
        "publish": ("$JS.API.DIRECT.GET.>", "Publish"),
    }[denied]
    app.backend.store_result("there", "before", states.SUCCESS)
    limited = changed(
        server, login("right", f'permissions: {{ {denied}: {{ deny: "{subject}" }} }}')
    )
    try:
        for name in ("a", "a", "b"):
            with pytest.raises(NatsPermissionError, match=told):
                app.AsyncResult(name).get(timeout=PATIENCE_SECONDS)
    finally:
        limited.kill()
