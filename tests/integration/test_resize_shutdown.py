"""A warm shutdown while a child has a task that it has not begun."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from bridge.control import Control
from bridge.names import Names
from bridge.wire import Connection, ConnectOptions, JetStream
from tests.support.celery_worker import CeleryWorker, answers
from tests.support.nats import NatsServer
from tests.support.resize_app import record, submit
from tests.support.waiting import wait_until

#: Well below the 30 s that a child waits for a parent that does not listen.
STOP_SECONDS = 15.0


def stored_messages(url: str) -> int:
    """Return how many tasks are not acknowledged."""
    connection = Connection(ConnectOptions.from_url(url))
    connection.connect()
    try:
        stream = JetStream(connection).api(f"STREAM.INFO.{Names().task_stream}")
        return int(stream["state"]["messages"])
    finally:
        connection.close()


def test_task_in_the_pipe_is_run_and_acknowledged(nats_server: NatsServer, tmp_path: Path) -> None:
    """The worker ends in time, and the task it had handed out before is done for good."""
    ran = tmp_path / "ran"
    worker = CeleryWorker(
        nats_server.url,
        tmp_path,
        app="tests.support.resize_app",
        concurrency=1,
        environ={"RAN_FILE": str(ran), "ACKS_LATE": "1"},
    )
    control = Control(nats_server.url, timeout=1.0)
    worker.start()
    try:
        (child,) = control.stats(worker.hostname)["pool"]["processes"]
        os.kill(child, signal.SIGSTOP)
        submit(nats_server.url, record, [1])
        wait_until(lambda: control.stats(worker.hostname)["pool"]["writes"]["total"] == 1)

        worker.terminate()
        wait_until(lambda: not answers(control, worker.hostname))
        os.kill(child, signal.SIGCONT)

        assert worker.wait(STOP_SECONDS) == 0
    finally:
        worker.kill()
    assert ran.read_text().split() == ["0000001"]
    assert stored_messages(nats_server.url) == 0
