"""The promise of ADR 0007: a pool resized without rest ends no task and runs none twice.

RESIZE_TASKS=50000 runs it at full length.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from bridge.control import Control
from tests.support.celery_worker import CeleryWorker
from tests.support.nats import NatsServer
from tests.support.resize_app import LINE_BYTES, record, submit
from tests.support.waiting import wait_until

TASKS = int(os.environ.get("RESIZE_TASKS", "2000"))
MOST_CHILDREN = 8
TASKS_PER_RESIZE = 150
SECONDS_PER_TASK = 0.02


class Ran:
    """The file in which each task notes its number."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def count(self) -> int:
        """Return how many tasks ran. No number is longer than any other."""
        return self.path.stat().st_size // LINE_BYTES

    def wait(self, count: int) -> None:
        """Wait until `count` tasks ran."""
        timeout = 20 + TASKS * SECONDS_PER_TASK
        wait_until(self.count, lambda ran: ran >= count, timeout=timeout)

    def numbers(self) -> list[int]:
        """Return the numbers of the tasks that ran, in order."""
        return sorted(map(int, self.path.read_text().split()))


@pytest.mark.timeout(60 + TASKS * SECONDS_PER_TASK)
@pytest.mark.parametrize(
    ("acks_late", "options"),
    [("1", ()), ("0", ()), ("1", ("--max-tasks-per-child=150",))],
    ids=["late-acks", "early-acks", "recycled-children"],
)
def test_no_task_dies_or_runs_twice(
    nats_server: NatsServer, tmp_path: Path, acks_late: str, options: tuple[str, ...]
) -> None:
    """Every task runs exactly once while the pool goes up and down between 1 and 8 children."""
    ran = Ran(tmp_path / "ran")
    worker = CeleryWorker(
        nats_server.url,
        tmp_path,
        *("-l", "WARNING", *options),
        app="tests.support.resize_app",
        environ={"RAN_FILE": str(ran.path), "ACKS_LATE": acks_late},
    )
    control, chance = Control(nats_server.url), random.Random(7)
    submit(nats_server.url, record, range(TASKS))
    worker.start()
    try:
        for count in range(0, TASKS, TASKS_PER_RESIZE):
            ran.wait(count)
            target = chance.randint(1, MOST_CHILDREN)
            assert control.resize(worker.hostname, target).target == target
        ran.wait(TASKS)
    finally:
        worker.stop()
    assert ran.numbers() == list(range(TASKS))
    for trouble in ("WorkerLost", "exited with", "Timed out waiting for UP", "Traceback"):
        assert trouble not in worker.output
