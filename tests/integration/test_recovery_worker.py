"""A real worker is frozen, or told to stop, at the wrong moment."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from celery import Celery

from bridge.worker.plugin import WORKER_ID_VARIABLE
from tests.support.celery_client import close_app, make_app
from tests.support.celery_worker import CeleryWorker
from tests.support.nats import NatsServer
from tests.support.recovery import (
    ACK_WAIT_SECONDS,
    BACK_SECONDS,
    IN_FLIGHT,
    PATIENCE_SECONDS,
    Notebook,
    worker_on,
)
from tests.support.slow_app import SLOW_START_VARIABLE
from tests.support.waiting import wait_until


@pytest.mark.parametrize("children_too", [True, False], ids=["whole", "parent"])
def test_worker_frozen_for_longer_than_ack_wait(
    nats_server: NatsServer, app: Celery, tmp_path: Path, children_too: bool
) -> None:
    """Another worker runs what it held; let go on, it works, and its late acks do no harm."""
    notebook = Notebook(app, tmp_path / "ran")
    with (
        worker_on(nats_server.url, tmp_path, name="frozen") as frozen,
        worker_on(nats_server.url, tmp_path, name="other") as other,
    ):
        notebook.send_many(60, 0.1)
        notebook.wait_for("end t9")

        parent = psutil.Process(frozen.pid)
        family = [*parent.children(), parent] if children_too else [parent]
        for process in family:
            process.suspend()
        stopped = time.monotonic()
        notebook.assert_none_lost(IN_FLIGHT)
        assert time.monotonic() - stopped > ACK_WAIT_SECONDS
        for process in family:
            process.resume()
        # Alone now, with its old connection or a new one.
        other.stop()
        notebook.send("afterwards").get(timeout=20)

        notebook.assert_none_lost(IN_FLIGHT)
        frozen.stop()


def test_worker_told_to_stop_while_its_answer_finds_no_server(
    nats_server: NatsServer, app: Celery, tmp_path: Path
) -> None:
    """kombu sends an answer again for ever, on the worker's event loop: SIGTERM ends that."""
    begun, until = tmp_path / "begun", tmp_path / "until"
    arguments = {"begun": str(begun), "until": str(until)}
    with worker_on(nats_server.url, tmp_path, app="tests.support.slow_app") as worker:
        # kombu keeps the connection of an earlier answer, and with that one it never gives up.
        assert app.control.ping(timeout=PATIENCE_SECONDS, limit=1)
        app.control.broadcast("answer_when", arguments=arguments, reply=True, timeout=0.1)
        wait_until(begun.exists)

        nats_server.kill()
        until.touch()
        worker.terminate()

        assert worker.wait(timeout=10) == os.EX_OK


def authorization(password: str) -> str:
    return f'authorization {{ user: "me", password: "{password}" }}'


@pytest.fixture
def closed_server(tmp_path: Path) -> Iterator[NatsServer]:
    """A server that lets in user `me` with password `right`."""
    server = NatsServer(tmp_path / "closed", extra=authorization("right"))
    server.start()
    yield server
    server.kill()


def test_worker_started_with_a_wrong_password(closed_server: NatsServer, tmp_path: Path) -> None:
    """It ends at once, as on RabbitMQ, and its last line says what to correct."""
    worker = CeleryWorker(closed_server.url.replace("//", "//me:wrong@"), tmp_path)
    worker.spawn()
    try:
        assert worker.wait(timeout=10) == os.EX_CONFIG
    finally:
        worker.kill()

    [line] = [line for line in worker.output.splitlines() if "refused the login" in line]
    assert "check the login in the URL or in NATS_USER" in line
    assert "wrong" not in worker.output.partition("refused the login")[2]


def test_password_changed_under_a_running_worker(closed_server: NatsServer, tmp_path: Path) -> None:
    """What worked before may work again: it tries on, and says what is wrong."""
    url = closed_server.url.replace("//", "//me:right@")
    app = make_app(url, task_default_queue="foreign")
    changed = NatsServer(closed_server.directory, extra=authorization("new"))
    changed.port = closed_server.port
    try:
        with worker_on(url, tmp_path) as worker:
            worker.wait_for_log(" ready.")
            closed_server.kill()
            changed.start()
            worker.wait_for_log("refused the login")
            changed.kill()
            closed_server.start()
            back = time.monotonic()

            Notebook(app, tmp_path / "ran").send("afterwards").get(timeout=20)

            assert time.monotonic() - back < BACK_SECONDS
            worker.stop()
    finally:
        changed.kill()
        close_app(app)


def test_slow_pool_process_of_the_fleet_is_waited_for(
    nats_server: NatsServer, app: Celery, tmp_path: Path
) -> None:
    """A new one that takes longer than Celery allows by default is not killed for that."""
    notebook = Notebook(app, tmp_path / "ran")
    slow = tmp_path / "slow"
    environ = {WORKER_ID_VARIABLE: "one", SLOW_START_VARIABLE: str(slow)}
    with worker_on(
        nats_server.url, tmp_path, app="tests.support.slow_app", environ=environ
    ) as worker:
        worker.wait_for_log(" ready.")
        slow.touch()

        for child in psutil.Process(worker.pid).children():
            child.kill()
        notebook.send("first").get(timeout=20)

        notebook.assert_none_lost(again_at_most=0)
        assert "Timed out waiting for UP message" not in worker.output
        worker.stop()
