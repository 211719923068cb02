"""`python -m bridge up`, from the first start to the last process' end."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.service import RunningService
from tests.support.waiting import wait_until

pytestmark = pytest.mark.alone


@pytest.fixture
def service(tmp_path: Path) -> Iterator[RunningService]:
    running = RunningService(tmp_path)
    yield running
    running.clean_up()


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that still run; a zombie only waits for whoever adopted it.

    The kernel ends the children of a killed worker: a moment later, and nobody waits for them.
    """
    psutil.wait_procs(processes, timeout=1)
    return [
        process
        for process in processes
        if process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    ]


def printed_envelope(text: str) -> dict[str, object]:
    """The JSON document that `up` prints before its commands."""
    document = re.search(r"^\{$.*?^\}$", text, re.MULTILINE | re.DOTALL)
    assert document is not None, text
    envelope: dict[str, object] = json.loads(document[0])
    return envelope


def wait_for_processed(service: RunningService, count: int) -> None:
    """Wait for the snapshot, written once a second, to count `count` tasks, and no more."""
    processed = wait_until(
        lambda: service.call("/api/v1/status")["data"]["statistics"]["tasks_processed"],
        lambda number: number >= count,
    )
    assert processed == count


def submit_sleep(service: RunningService) -> str:
    accepted = service.call(
        "/api/v1/tasks/submit", {"task_type": "sleep", "task_data": {"seconds": 120}}
    )
    return str(accepted["data"]["task_id"])


def test_sample_runs_and_ctrl_c_ends_everything_in_time(service: RunningService) -> None:
    """The sample's result is printed; Ctrl-C ends even a busy service within ten seconds."""
    envelope = printed_envelope(service.start())
    submit_sleep(service)
    processes = service.processes()

    status, seconds = service.stop()

    data = envelope["data"]
    assert isinstance(data, dict)
    assert (envelope["status"], data["state"]) == ("success", "SUCCESS")
    assert status == 0
    assert seconds < 10
    assert len(processes) > 5
    assert alive(processes) == []


def test_second_run_is_quick_and_finds_earlier_results(service: RunningService) -> None:
    """What was done before a restart of everything is still there after it."""
    data = printed_envelope(service.start())["data"]
    assert isinstance(data, dict)
    service.stop()

    started = time.monotonic()
    service.start()
    seconds = time.monotonic() - started

    assert seconds < 10
    found = service.call(f"/api/v1/tasks/{data['task_id']}")
    assert found["data"]["state"] == "SUCCESS"
    wait_for_processed(service, 2)
    service.stop()


def test_killed_up_takes_all_with_it(service: RunningService) -> None:
    """SIGKILL of the top process leaves no process, though a task was running."""
    service.start()
    submit_sleep(service)
    processes = service.processes()

    service.kill()

    psutil.wait_procs(processes, timeout=15)
    assert alive(processes) == []


def test_second_ctrl_c_does_not_wait(service: RunningService) -> None:
    """Pressing Ctrl-C again ends running tasks at once and still leaves nothing."""
    service.start()
    submit_sleep(service)
    processes = service.processes()
    processes[0].send_signal(signal.SIGINT)
    service.wait_for_log("stopping")

    status, seconds = service.stop()

    assert status == 0
    assert seconds < 6
    assert alive(processes) == []
