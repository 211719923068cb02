"""Workers and the controller are killed and stopped at random under load."""

from __future__ import annotations

import logging
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.support.service import RunningService

#: A full run takes a minute: CHAOS_SECONDS=60.
_CHAOS_SECONDS = float(os.environ.get("CHAOS_SECONDS", "8"))
_RECOVERY_SECONDS = 15.0
_WORKERS = 3


@pytest.fixture
def service(tmp_path: Path) -> Iterator[RunningService]:
    running = RunningService(
        tmp_path, WORKER_COUNT=str(_WORKERS), ACK_WAIT_SECONDS="3", FLOWER_ENABLED="false"
    )
    try:
        running.start()
        yield running
    finally:
        running.clean_up()


class Load:
    """Submits short tasks without pause; knows which were accepted."""

    def __init__(self, service: RunningService) -> None:
        self.accepted: list[str] = []
        self._service = service
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._submit)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()

    def _submit(self) -> None:
        request = {"task_type": "sleep", "task_data": {"seconds": 0.2}}
        while not self._ending.wait(0.04):
            answer = self._service.call("/api/v1/tasks/submit", request)
            if answer["status"] == "success":
                self.accepted.append(answer["data"]["task_id"])


def _victims(service: RunningService) -> tuple[list[psutil.Process], list[psutil.Process]]:
    """The controllers (one, or none just now) and the workers."""
    top, *below = service.processes()
    controllers = [p for p in top.children() if p in below and "controller" in _words(p)]
    workers = [worker for each in controllers for worker in _children(each)]
    return controllers, workers


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children()
    except psutil.NoSuchProcess:
        return []


def _rage(service: RunningService, dice: random.Random) -> Counter[str]:
    """Hit somebody every second or two until the time is over; return what was done."""
    done: Counter[str] = Counter()
    end = time.monotonic() + _CHAOS_SECONDS
    while time.monotonic() < end:
        controllers, workers = _victims(service)
        kind = "controller" if dice.random() < 0.25 and controllers else "worker"
        victims = controllers if kind == "controller" else workers
        if victims:
            number = dice.choice([signal.SIGKILL, signal.SIGSTOP])
            try:
                dice.choice(victims).send_signal(number)
            except psutil.NoSuchProcess:
                continue
            done[f"{kind} {number.name}"] += 1
        time.sleep(dice.uniform(1, 2))
    return done


def _seconds_to_recover(service: RunningService) -> float:
    """Wait until the fleet is as large as it shall be, by a figure of now."""
    started = time.monotonic()
    while (seconds := time.monotonic() - started) < 4 * _RECOVERY_SECONDS:
        status = service.call("/api/v1/status")["data"]
        summary = status["worker_summary"]
        running = (summary["running_workers"], summary["total_workers"])
        # What was running and is stopped now would still be shown for a moment.
        _, workers = _victims(service)
        well = [p for p in workers if p.is_running() and p.status() != psutil.STATUS_STOPPED]
        if status["status"] == "running" and running == (_WORKERS, _WORKERS) == (len(well),) * 2:
            return seconds
        time.sleep(0.1)
    raise AssertionError(service.call("/api/v1/workers"))


def _final_state(service: RunningService, task_id: str) -> str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        answer = service.call(f"/api/v1/tasks/{task_id}?wait=20")
        if answer["status"] == "success" and answer["data"]["state"] in {"SUCCESS", "FAILURE"}:
            return str(answer["data"]["state"])
    return "NOT ENDED"


@pytest.mark.timeout(240)
def test_the_fleet_survives_whatever_is_done_to_it(service: RunningService) -> None:
    """Back at its size within 15 s of the last blow; every accepted task ends once, as success."""
    seed = int(os.environ.get("CHAOS_SEED", "0")) or random.randrange(1, 1_000_000)
    with Load(service) as load:
        blows = _rage(service, random.Random(seed))
        seconds = _seconds_to_recover(service)

    told = f"seed {seed}, {dict(blows)}, back after {seconds:.1f} s"
    logging.getLogger("chaos").info(told)  # --log-cli-level=INFO shows it
    with ThreadPoolExecutor(8) as threads:
        states = list(threads.map(lambda each: _final_state(service, each), load.accepted))
        again = list(threads.map(lambda each: _final_state(service, each), load.accepted))
    assert seconds <= _RECOVERY_SECONDS, told
    assert Counter(states) == {"SUCCESS": len(load.accepted)}, told
    assert again == states
    assert len(load.accepted) > 20
    everyone = service.processes()
    service.stop()
    left = [p for p in everyone if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert left == []
