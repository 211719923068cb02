"""Operators open Flower: it shows what is there."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.support.debian import Missing, debian_program
from tests.support.service import RunningService
from tests.support.waiting import wait_until

_LOGIN = ("operator", "secret")
#: A blank page of this size is smaller.
_EMPTY_PICTURE_BYTES = 12_000


@pytest.fixture(scope="module")
def chromium() -> str:
    """The browser's program; installed where that can be done."""
    try:
        return debian_program("chromium", "chromium")
    except Missing as error:
        pytest.skip(str(error))


def _flower(service: RunningService, path: str) -> Any:
    answer = httpx.get(f"http://127.0.0.1:{service.flower_port}{path}", auth=_LOGIN, timeout=30)
    assert answer.status_code == 200, answer.text[:500]
    return answer.json()


def test_flower_lists_the_workers(service: RunningService) -> None:
    """Both workers answer Flower's inspection."""
    workers = wait_until(
        lambda: _flower(service, "/api/workers?refresh=1"), lambda found: len(found) == 2
    )

    assert {name.split("@")[0] for name in workers} == {"general-worker-1", "general-worker-2"}
    assert all("data_processing" in worker["registered"] for worker in workers.values())


def test_flower_shows_a_task_and_its_result(service: RunningService) -> None:
    """A task submitted over REST appears with its state and result."""
    task_id = _submit(service, "test", message="seen in Flower")

    tasks = wait_until(
        lambda: _flower(service, "/api/tasks"),
        lambda found: found.get(task_id, {}).get("state") == "SUCCESS",
    )

    assert tasks[task_id]["name"] == "test"
    assert "seen in Flower" in tasks[task_id]["result"]


def test_flower_shows_queues_and_their_consumers(service: RunningService) -> None:
    """Every queue is listed; both workers consume the general one, and nothing waits."""
    queues = wait_until(
        lambda: _flower(service, "/api/queues/length")["active_queues"],
        lambda found: any(queue["consumers"] == 2 for queue in found),
    )

    assert {queue["messages"] for queue in queues} == {0}


def test_flower_knows_the_tasks_of_before_its_restart(service: RunningService) -> None:
    """A crashed Flower comes back by itself and shows the task that ran before."""
    task_id = _submit(service, "test", message="before the crash")
    _task(service, task_id)
    [crashing] = [process for process in service.processes() if "flower" in process.cmdline()]

    crashing.kill()
    psutil.wait_procs([crashing], timeout=10)

    assert "before the crash" in _task(service, task_id)["result"]


def _task(service: RunningService, task_id: str) -> dict[str, Any]:
    """Return a task from Flower's list once Flower answers and knows its success."""

    def ask() -> dict[str, Any]:
        try:
            return dict(_flower(service, "/api/tasks").get(task_id, {}))
        except httpx.TransportError:
            return {}

    return dict(wait_until(ask, lambda task: task.get("state") == "SUCCESS"))


@pytest.fixture(scope="module")
def busy(service: RunningService) -> str:
    """Give the pages something to show, also what runs and waits; return one finished task."""
    _submit(service, "fail", message="out of paper")
    _submit(service, "flaky", failures=1)
    task_id = _submit(service, "test", message="good bye")
    _task(service, task_id)
    for _ in range(12):  # more than two workers take at once
        _submit(service, "sleep", seconds=60)
    return task_id


def _submit(service: RunningService, task_type: str, **task_data: Any) -> str:
    request = {"task_type": task_type, "task_data": task_data}
    return str(service.call("/api/v1/tasks/submit", request)["data"]["task_id"])


@pytest.mark.browser
@pytest.mark.parametrize(
    ("port", "page", "text"),
    [
        ("flower_port", "/workers", "general-worker-1"),
        ("flower_port", "/worker/{worker}", "data_processing"),
        ("flower_port", "/tasks", "{task_id}"),
        ("flower_port", "/task/{task_id}", "good bye"),
        ("flower_port", "/broker", 'id="celery"'),
        ("port", "/docs", "/api/v1/tasks/submit"),
    ],
)
def test_pages_render_in_a_browser(
    service: RunningService,
    busy: str,
    chromium: str,
    tmp_path: Path,
    port: str,
    page: str,
    text: str,
) -> None:
    """Headless Chromium draws the page with real data in it, and keeps a picture.

    Pictures go to SCREENSHOT_DIR where it is set.
    """
    workers = wait_until(lambda: _flower(service, "/api/workers?refresh=1"))
    known = {"worker": min(workers), "task_id": busy}
    login = "operator:secret@" if port == "flower_port" else ""
    url = f"http://{login}127.0.0.1:{getattr(service, port)}{page.format(**known)}"
    directory = Path(os.environ.get("SCREENSHOT_DIR") or tmp_path).absolute()
    picture = directory / f"{page.strip('/').split('/')[0]}.png"

    page_text = _browse(chromium, url, tmp_path, "--dump-dom")
    _browse(chromium, url, tmp_path, f"--screenshot={picture}", "--window-size=1400,1000")

    assert text.format(**known) in page_text
    assert picture.stat().st_size > _EMPTY_PICTURE_BYTES


def _browse(program: str, url: str, profile: Path, *arguments: str) -> str:
    """Open `url` in headless Chromium and return what it prints."""
    return subprocess.run(
        [
            program,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-first-run",
            f"--user-data-dir={profile}",
            "--virtual-time-budget=8000",
            *arguments,
            url,
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
