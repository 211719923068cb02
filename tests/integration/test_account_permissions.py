"""The permissions that docs/operations.md tells are all that anything here needs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery, chord

from tests.support.celery_client import close_app, make_app
from tests.support.celery_worker import CeleryWorker
from tests.support.nats import NatsServer
from tests.support.recovery import PATIENCE_SECONDS

_TOLD = re.compile(r"```\n(permissions: \{.*?\n\})\n```", re.DOTALL)
_VHOST = "shop"


def permissions(vhost: str) -> str:
    """Return the block of the documentation, for a virtual host as it says."""
    found = _TOLD.search(Path("docs/operations.md").read_text(encoding="utf-8"))
    assert found is not None
    return re.sub(r'"(c\w\.>)"', rf'"{vhost}.\1"', found[1]) if vhost else found[1]


@pytest.fixture(params=["", _VHOST], ids=["default", "vhost"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[NatsServer, str]]:
    """A server whose user has just these permissions, and the URL with its virtual host."""
    user = f"user: u, password: p, {permissions(request.param)}"
    account = f"jetstream: enabled, users: [ {{ {user} }} ]"
    server = NatsServer(tmp_path / "nats", extra=f"accounts {{ A: {{ {account} }} }}\n")
    server.start()
    path = f"/{request.param}" if request.param else ""
    yield server, f"nats://u:p@127.0.0.1:{server.port}{path}"
    server.stop()


def _work(app: Celery, worker: CeleryWorker) -> None:
    """Do what clients do: results, schedules, chords, remote control, cleaning up."""
    add = app.signature("foreign.add", (1, 2))
    assert add.apply_async().get(timeout=PATIENCE_SECONDS) == 3
    assert add.apply_async(countdown=1.2).get(timeout=PATIENCE_SECONDS) == 3
    together = chord([add, add])(app.signature("foreign.total"))
    assert together.get(timeout=PATIENCE_SECONDS) == 6
    assert app.control.ping(timeout=PATIENCE_SECONDS, limit=1)
    app.control.revoke("nobody")
    together.forget()
    worker.stop()
    add.apply_async()
    assert app.control.purge() == 1


def test_documented_permissions_suffice(server: tuple[NatsServer, str], tmp_path: Path) -> None:
    """A worker and its clients do all they can, and the server refuses nothing."""
    nats, url = server
    app = make_app(url, task_default_queue="foreign")
    worker = CeleryWorker(url, tmp_path)
    # `start` would listen for the announcement, which only tests do.
    worker.spawn()
    try:
        worker.wait_for_log(" ready.")
        _work(app, worker)
    finally:
        worker.kill()
        close_app(app)

    assert "NATS refused" not in worker.output
    assert not [line for line in nats.log if "Violation" in line]
