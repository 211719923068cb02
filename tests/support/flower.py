"""Flower and its workers as processes, for tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.support.service import free_ports
from tests.support.waiting import wait_until

APP = "tests.support.flower_app"


class CeleryProcess:
    """``celery -A tests.support.flower_app …``; its output goes to `log`."""

    def __init__(self, url: str, log: Path, *arguments: str, **environ: str) -> None:
        self.log = log
        with log.open("a") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", APP, *arguments],
                env={**os.environ, "CELERY_BROKER_URL": url, **environ},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_for_log(self, text: str) -> None:
        """Return when the log holds `text`."""
        wait_until(self.log.read_text, lambda log: text in log or self.process.poll() is not None)
        assert text in self.log.read_text(), self.log.read_text()[-4000:]

    def stop(self) -> None:
        """End the process and what it started, as an operator does; by force if it hangs."""
        if self.process.poll() is not None:
            return
        family = [psutil.Process(self.process.pid)]
        family += family[0].children(recursive=True)
        self.process.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs(family, timeout=10)
        for left in alive:
            left.kill()
        self.process.wait()


def start_worker(url: str, log: Path, name: str, *arguments: str) -> CeleryProcess:
    """Start a worker ``NAME@test`` with two processes; return when it is ready."""
    worker = CeleryProcess(
        url, log, "worker", "-c", "2", "-E", "-n", f"{name}@test", "-l", "INFO", *arguments
    )
    worker.wait_for_log("ready.")
    return worker


class Flower(CeleryProcess):
    """``celery flower``, ready; `get` and `post` are calls of its HTTP API."""

    def __init__(self, url: str, log: Path, *arguments: str, port: int = 0) -> None:
        self.port = port or free_ports(1)[0]
        super().__init__(
            url,
            log,
            *("flower", "--address=127.0.0.1", f"--port={self.port}", *arguments),
            FLOWER_UNAUTHENTICATED_API="true",
        )
        wait_until(self._answers)

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()[-4000:]
        try:
            return self.get("/healthcheck").status_code == 200
        except httpx.TransportError:
            return False

    def get(self, path: str, **query: Any) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", params=query, timeout=20)

    def post(self, path: str, json: Any = None, **query: Any) -> httpx.Response:
        url = f"http://127.0.0.1:{self.port}{path}"
        return httpx.post(url, params=query, json=json, timeout=20)

    def worker(self, hostname: str) -> dict[str, Any]:
        """Return what the worker answers to an inspection now, {} when it does not."""
        answer = self.get("/api/workers", refresh=1, workername=hostname)
        return answer.json().get(hostname, {}) if answer.status_code == 200 else {}

    def task(self, task_id: str) -> dict[str, Any]:
        """Return what Flower knows of a task by its events, {} when nothing yet."""
        answer = self.get(f"/api/task/info/{task_id}")
        return answer.json() if answer.status_code == 200 else {}

    def wait_for(self, task_id: str, state: str) -> dict[str, Any]:
        """Return what Flower knows of a task once it is in `state`."""
        return wait_until(lambda: self.task(task_id), lambda task: task.get("state") == state)
