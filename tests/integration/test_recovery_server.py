"""The server goes away and comes back, or another takes its place: a real worker each time."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
import pytest
from celery import Celery

from tests.support.celery_worker import CeleryWorker
from tests.support.nats import NatsServer
from tests.support.recovery import (
    BACK_SECONDS,
    IN_FLIGHT,
    PATIENCE_SECONDS,
    Notebook,
    worker_on,
)
from tests.support.waiting import wait_until

#: Longer than each of a worker's time limits for one server: 4 s to connect, 5 s for an answer.
#: Its waits between two tries no longer grow by then, so half a minute finds it no other.
OUTAGE_SECONDS = 7.0
_ROUNDS = 5
_MANY = 10


def _assert_back_after(
    seconds: float, server: NatsServer, worker: CeleryWorker, notebook: Notebook
) -> None:
    """Kill the server, start it again after `seconds`, and see the worker consume in time."""
    server.kill()
    worker.wait_for_log("Connection to broker lost")
    time.sleep(seconds)
    server.start()
    back = time.monotonic()
    notebook.send("afterwards").get(timeout=20)
    assert time.monotonic() - back < BACK_SECONDS


@pytest.mark.parametrize("outage", [0.0, OUTAGE_SECONDS], ids=["at-once", "later"])
def test_server_sigkilled_and_restarted(
    nats_server: NatsServer, app: Celery, tmp_path: Path, outage: float
) -> None:
    """Five seconds after its server is back a worker consumes; nothing is lost."""
    notebook = Notebook(app, tmp_path / "ran")
    with worker_on(nats_server.url, tmp_path) as worker:
        notebook.send_many(40, 0.05)
        notebook.wait_for("end t5")

        _assert_back_after(outage, nats_server, worker, notebook)
        notebook.assert_none_lost(IN_FLIGHT)
        worker.stop()


@pytest.mark.parametrize("pool", ["gevent", "threads"])
def test_greenlets_and_threads_come_back(
    nats_server: NatsServer, app: Celery, tmp_path: Path, pool: str
) -> None:
    """Also while tasks end whose events cannot be sent, and others wait for their second."""
    notebook = Notebook(app, tmp_path / "ran")
    with worker_on(nats_server.url, tmp_path, pool=pool, concurrency=_MANY) as worker:
        for number in range(_MANY):
            notebook.send(f"running{number}", 1.0)
        notebook.wait_for("start running0")
        for number in range(_MANY):
            # So soon that the worker keeps it for its time, not the server.
            notebook.send(f"due{number}", countdown=0.9)
        wait_until(lambda: worker.output.count("] received") == 2 * _MANY)

        _assert_back_after(OUTAGE_SECONDS, nats_server, worker, notebook)
        notebook.assert_none_lost(2 * _MANY)
        worker.stop()


def test_server_killed_again_and_again(
    nats_server: NatsServer, app: Celery, tmp_path: Path
) -> None:
    """Already while the worker starts: it consumes each time, and keeps no thread and no file."""
    notebook = Notebook(app, tmp_path / "ran")
    with worker_on(nats_server.url, tmp_path) as worker:
        process = psutil.Process(worker.pid)

        def held() -> tuple[int, int]:
            return process.num_threads(), process.num_fds()

        most = (0, 0)
        for number in range(_ROUNDS):
            nats_server.kill()
            nats_server.start()
            back = time.monotonic()
            notebook.send(f"t{number}").get(timeout=20)
            assert time.monotonic() - back < BACK_SECONDS
            if number == 1:
                most = held()

        wait_until(lambda: all(now <= before for now, before in zip(held(), most, strict=True)))
        notebook.assert_none_lost(_ROUNDS * IN_FLIGHT)
        worker.stop()


def test_next_url_when_the_first_server_dies_for_good(
    nats_server: NatsServer, app: Celery, tmp_path: Path
) -> None:
    """Of several URLs the next that works is used, past a name that DNS no longer knows."""
    doomed = NatsServer(tmp_path / "doomed")
    doomed.start()
    try:
        urls = [doomed.url, "nats://gone.invalid:4222", nats_server.url]
        notebook = Notebook(app, tmp_path / "ran")
        with worker_on(
            doomed.url,
            tmp_path,
            environ={"CELERY_BROKER_URL": ";".join(urls), "CELERY_RESULT_BACKEND": ",".join(urls)},
        ) as worker:
            worker.wait_for_log(" ready.")

            doomed.kill()
            died = time.monotonic()
            notebook.send("afterwards").get(timeout=20)

            assert time.monotonic() - died < BACK_SECONDS
            notebook.assert_none_lost(again_at_most=0)
            worker.stop()
    finally:
        doomed.kill()


def test_processes_killed_in_the_same_moment(
    nats_server: NatsServer, app: Celery, tmp_path: Path
) -> None:
    """A worker that finds its pool and its connection gone at once goes on with both anew."""
    notebook = Notebook(app, tmp_path / "ran")
    with worker_on(nats_server.url, tmp_path) as worker:
        notebook.send("before").get(timeout=PATIENCE_SECONDS)
        os.kill(worker.pid, signal.SIGSTOP)
        for child in psutil.Process(worker.pid).children():
            child.kill()
        nats_server.kill()
        nats_server.start()
        os.kill(worker.pid, signal.SIGCONT)

        notebook.send("afterwards").get(timeout=PATIENCE_SECONDS)
        notebook.assert_none_lost(IN_FLIGHT)
        worker.stop()
