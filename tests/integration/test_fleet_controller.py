"""`python -m bridge controller` with real workers, through outages and crashes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import msgspec
import psutil
import pytest

from bridge.errors import NatsConnectionError
from bridge.names import Names
from bridge.records import SNAPSHOT_KEY, Snapshot
from bridge.wire import Bucket, Connection, ConnectOptions, JetStream, JetStreamError
from tests.support.nats import NatsServer
from tests.support.service import free_ports
from tests.support.waiting import wait_until

SENDER = """
import sys
from celery import Celery
result = Celery("sender", broker=sys.argv[1], backend=sys.argv[1]).send_task("noop")
result.get(timeout=30)
print(result.state)
"""


class RunningController:
    """The controller as a process of its own, with one worker, and its snapshot."""

    def __init__(self, url: str, log: IO[str], virtual_host: str = "") -> None:
        self.url = url = f"{url}/{virtual_host}"
        self._names = Names(virtual_host)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bridge", "controller"],
            env={**os.environ, "NATS_URL": url, "WORKER_COUNT": "1", "MAX_CONCURRENT_TASKS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
        )

    def snapshot_where(self, condition: Callable[[Snapshot], bool]) -> Snapshot:
        """Wait for a snapshot that fits; NATS may be away meanwhile."""
        found = wait_until(self._snapshot, lambda last: last is not None and condition(last))
        assert found is not None
        return found

    def _snapshot(self) -> Snapshot | None:
        connection = Connection(ConnectOptions.from_url(self.url))
        try:
            connection.connect()
            stored = Bucket(JetStream(connection), self._names.bucket("status")).get(SNAPSHOT_KEY)
        except (NatsConnectionError, JetStreamError):
            return None
        finally:
            connection.close()
        return None if stored is None else msgspec.json.decode(stored, type=Snapshot)

    def processes(self) -> list[psutil.Process]:
        top = psutil.Process(self.process.pid)
        return [top, *top.children(recursive=True)]

    def clean_up(self) -> None:
        if self.process.poll() is None:
            for process in self.processes():
                with contextlib.suppress(psutil.NoSuchProcess):  # its parent was faster
                    process.kill()
        self.process.wait()


@pytest.fixture
def controller(nats_server: NatsServer, tmp_path: Path) -> Iterator[RunningController]:
    with (tmp_path / "controller.log").open("w") as log:
        running = RunningController(nats_server.url, log)
        yield running
        running.clean_up()


def one_runs(snapshot: Snapshot) -> bool:
    return [worker.state for worker in snapshot.workers] == ["running"]


def run_noop(url: str) -> str:
    """Send a task as any Celery program does, wait for its end and return its state."""
    ended = subprocess.run(
        [sys.executable, "-c", SENDER, url], capture_output=True, text=True, check=True, timeout=60
    )
    return ended.stdout.strip()


def test_outage_of_nats_costs_no_worker(
    controller: RunningController, nats_server: NatsServer
) -> None:
    """The same worker process goes on after the server was killed and came back."""
    before = controller.snapshot_where(one_runs)

    nats_server.kill()
    nats_server.start()

    after = controller.snapshot_where(lambda s: s.taken_epoch > before.taken_epoch and one_runs(s))
    assert after.workers[0].pid == before.workers[0].pid
    assert run_noop(nats_server.url) == "SUCCESS"
    controller.snapshot_where(lambda s: s.figures.tasks_succeeded == 1)


def test_killed_worker_is_replaced(controller: RunningController, nats_server: NatsServer) -> None:
    """A worker killed with SIGKILL is shown as lost with the reason, and soon runs again."""
    [worker] = controller.snapshot_where(one_runs).workers
    assert worker.pid is not None

    os.kill(worker.pid, signal.SIGKILL)

    [again] = controller.snapshot_where(
        lambda s: one_runs(s) and s.workers[0].pid not in {None, worker.pid}
    ).workers
    assert again.restarts == 1
    assert again.last_error is not None
    assert again.last_error.startswith("ended with signal 9")
    assert run_noop(nats_server.url) == "SUCCESS"


def test_sigterm_ends_controller_and_workers(controller: RunningController) -> None:
    """A clean stop ends every process, and the last snapshot shows no worker."""
    controller.snapshot_where(one_runs)
    processes = controller.processes()

    controller.process.terminate()

    assert controller.process.wait(15) == 0
    assert [process for process in processes if process.is_running()] == []
    assert controller.snapshot_where(lambda s: s.workers == []).target_workers == 0


def test_controller_works_where_its_url_says(nats_server: NatsServer, tmp_path: Path) -> None:
    """Of several servers one is enough, and Celery programs meet the workers where it says."""
    (dead,) = free_ports(1)
    with (tmp_path / "controller.log").open("w") as stream:
        url = f"nats://127.0.0.1:{dead},{nats_server.url}"
        controller = RunningController(url, stream, "shop")
    try:
        controller.snapshot_where(one_runs)

        assert run_noop(f"{nats_server.url}/shop") == "SUCCESS"
        controller.snapshot_where(lambda s: s.figures.tasks_succeeded == 1)
    finally:
        controller.clean_up()


def test_controller_waits_for_nats(nats_server: NatsServer, tmp_path: Path) -> None:
    """A controller that is started before NATS holds out, and starts its workers then."""
    nats_server.kill()
    log = tmp_path / "controller.log"
    with log.open("w") as stream:
        controller = RunningController(nats_server.url, stream)
    try:
        wait_until(log.read_text, lambda text: "waiting for NATS" in text)
        nats_server.start()

        controller.snapshot_where(one_runs)
    finally:
        controller.clean_up()
