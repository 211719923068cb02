"""Commands to real workers, with and without `pool_resize`, and to none."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bridge.control import Control, Resized
from bridge.errors import NatsConnectionError, WorkerSilent
from tests.support.celery_worker import CeleryWorker, answers
from tests.support.nats import NatsServer
from tests.support.service import free_ports
from tests.support.waiting import wait_until

NOBODY = "nobody@nowhere"
#: A worker that a program starts by itself, so that no plug-in of the command is loaded.
PLAIN_WORKER = """
from tests.support.resize_app import app
app.Worker(hostname="plain@here", concurrency=2, loglevel="WARNING").start()
"""
PLAIN = "plain@here"
START_SECONDS = 30.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """One server for this file, whose workers have names of their own."""
    server = NatsServer(tmp_path_factory.mktemp("control-nats"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def worker(server: NatsServer, tmp_path: Path) -> Iterator[CeleryWorker]:
    """A worker with `pool_resize` and 2 slots."""
    worker = CeleryWorker(server.url, tmp_path, app="tests.support.resize_app")
    worker.start()
    yield worker
    worker.stop()


@pytest.fixture
def plain_worker(server: NatsServer, tmp_path: Path) -> Iterator[str]:
    """A worker with Celery's own commands only; its name."""
    with (tmp_path / "plain.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", PLAIN_WORKER],
            env={**os.environ, "CELERY_BROKER_URL": server.url},
            cwd=Path(__file__).parents[2],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        impatient = Control(server.url, timeout=0.5)
        wait_until(lambda: answers(impatient, PLAIN))
        yield PLAIN
    finally:
        process.terminate()
        process.wait(START_SECONDS)


def test_worker_answers(server: NatsServer, worker: CeleryWorker) -> None:
    """A live worker tells its figures."""
    control = Control(server.url)

    assert control.stats(worker.hostname)["pid"] == worker.pid


def test_silence_ends_in_time(server: NatsServer) -> None:
    """Nobody is waited for longer than was said; the error says what to check."""
    control, started = Control(server.url, timeout=0.3), time.monotonic()

    with pytest.raises(WorkerSilent, match="Check that it runs"):
        control.resize(NOBODY, 3)
    assert time.monotonic() - started < 5


def test_no_broker_is_told_from_no_worker() -> None:
    """Without a broker nothing is known of a worker, and that is said soon."""
    (port,) = free_ports(1)
    control, started = Control(f"nats://127.0.0.1:{port}", timeout=0.5), time.monotonic()

    with pytest.raises(NatsConnectionError, match="cannot be reached"):
        control.stats(NOBODY)
    assert time.monotonic() - started < 5


def test_resizes_of_one_worker_take_turns(server: NatsServer, worker: CeleryWorker) -> None:
    """Of many threads that resize one worker each gets what it asked for, one after the other."""
    control = Control(server.url, timeout=10.0)
    targets = [1, 4, 2, 3]

    with ThreadPoolExecutor(len(targets)) as threads:
        answers = list(threads.map(lambda target: control.resize(worker.hostname, target), targets))

    assert [answer.target for answer in answers] == targets
    assert control.stats(worker.hostname)["pool"]["max-concurrency"] in targets


def test_worker_without_our_command_gets_there(server: NatsServer, plain_worker: str) -> None:
    """The same target is reached with pool_grow and pool_shrink, read back until it is true."""
    control = Control(server.url)

    assert "pool_resize" not in control.stats(plain_worker)
    grown = control.resize(plain_worker, 3)
    assert grown == Resized(before=2, after=3, target=3, pending_shrink=0)
    shrunk = control.resize(plain_worker, 1)
    assert shrunk == Resized(before=3, after=1, target=1, pending_shrink=0)
    assert len(control.stats(plain_worker)["pool"]["processes"]) == 1
