"""Operators open Flower: it shows what is there."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.service import RunningService

_LOGIN = ("operator", "secret")
_WAIT_SECONDS = 20.0
_CHROMIUM = shutil.which("chromium")


def _flower(service: RunningService, path: str) -> Any:
    answer = httpx.get(f"http://127.0.0.1:{service.flower_port}{path}", auth=_LOGIN, timeout=30)
    assert answer.status_code == 200, answer.text[:500]
    return answer.json()


def _until(ask: Callable[[], Any], wanted: Callable[[Any], bool]) -> Any:
    """Ask until the answer is as wanted: Flower learns of things by events."""
    deadline = time.monotonic() + _WAIT_SECONDS
    while not wanted(answer := ask()):
        assert time.monotonic() < deadline, answer
    return answer


def test_flower_lists_the_workers(service: RunningService) -> None:
    """Both workers answer Flower's inspection."""
    workers = _until(
        lambda: _flower(service, "/api/workers?refresh=1"), lambda found: len(found) == 2
    )

    assert {name.split("@")[0] for name in workers} == {"general-worker-1", "general-worker-2"}
    assert all("data_processing" in worker["registered"] for worker in workers.values())


def test_flower_shows_a_task_and_its_result(service: RunningService) -> None:
    """A task submitted over REST appears with its state and result."""
    request = {"task_type": "test", "task_data": {"message": "seen in Flower"}}
    task_id = service.call("/api/v1/tasks/submit", request)["data"]["task_id"]

    tasks = _until(
        lambda: _flower(service, "/api/tasks"),
        lambda found: found.get(task_id, {}).get("state") == "SUCCESS",
    )

    assert tasks[task_id]["name"] == "test"
    assert "seen in Flower" in tasks[task_id]["result"]


@pytest.mark.browser
@pytest.mark.skipif(_CHROMIUM is None, reason="Debian's chromium is not installed")
@pytest.mark.parametrize(
    ("port", "page", "text"),
    [
        ("flower_port", "/workers", "general-worker-1"),
        ("flower_port", "/tasks", "test"),
        ("port", "/docs", "/api/v1/tasks/submit"),
    ],
)
def test_pages_render_in_a_browser(
    service: RunningService, tmp_path: Path, port: str, page: str, text: str
) -> None:
    """Headless Chromium draws the page with real data in it."""
    login = "operator:secret@" if port == "flower_port" else ""
    url = f"http://{login}127.0.0.1:{getattr(service, port)}{page}"

    page_text = subprocess.run(
        [
            str(_CHROMIUM),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-first-run",
            f"--user-data-dir={tmp_path}",
            "--virtual-time-budget=8000",
            "--dump-dom",
            url,
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout

    assert text in page_text
