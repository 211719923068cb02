"""`python -m bridge up` as a user runs it, for tests."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from tests.support.waiting import wait_until

_READY_SECONDS = 60.0


def free_ports(count: int) -> list[int]:
    """Return ports that were free a moment ago, all different."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [listener.getsockname()[1] for listener in sockets]
    finally:
        for listener in sockets:
            listener.close()


class RunningService:
    """All processes of one service; `start` may be called again after `stop` or `kill`.

    `settings` are environment variables; without one for it the size of the fleet is fixed.
    Log lines go to ``up.log`` in `directory`.
    """

    def __init__(self, directory: Path, **settings: str) -> None:
        nats_port, self.port, flower_port = free_ports(3)
        self.flower_port = flower_port
        self.nats_url = f"nats://127.0.0.1:{nats_port}"
        self.log = directory / "up.log"
        self._environ = {
            **os.environ,
            "DATA_DIR": str(directory / "data"),
            "NATS_PORT": str(nats_port),
            "API_PORT": str(self.port),
            "FLOWER_PORT": str(flower_port),
            "AUTOSCALE": "false",
            "WORKER_COUNT": "1",
            "MAX_CONCURRENT_TASKS": "2",
            **settings,
        }
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> str:
        """Start and return what was printed until the service said that it is ready."""
        with self.log.open("a") as log:
            self._process = process = subprocess.Popen(
                [sys.executable, "-m", "bridge", "up"],
                env=self._environ,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        assert process.stdout is not None
        printed: list[str] = []
        for line in process.stdout:
            printed.append(line)
            if line.startswith("Ctrl-C stops"):
                return "".join(printed)
        process.wait()
        raise AssertionError("the service did not get ready:\n" + self.log.read_text()[-4000:])

    def call(self, path: str, body: Any = None, method: str = "") -> dict[str, Any]:
        """Call the API and return the envelope; the method follows from the body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_READY_SECONDS)
        payload = None if body is None else json.dumps(body)
        try:
            connection.request(
                method or ("GET" if body is None else "POST"),
                path,
                payload,
                {"Content-Type": "application/json"},
            )
            envelope: dict[str, Any] = json.load(connection.getresponse())
        finally:
            connection.close()
        return envelope

    def wait_for_workers(self, count: int) -> None:
        """Wait until so many run: the service is ready once the first of them is."""
        wait_until(
            lambda: self.call("/api/v1/status")["data"]["worker_summary"],
            lambda summary: summary["running_workers"] == count,
        )

    def wait_for_log(self, text: str) -> None:
        """Wait until a log line holds `text`."""
        wait_until(
            lambda: text in self.log.read_text(),
            told=lambda: f"no {text!r} in:\n{self.log.read_text()[-4000:]}",
        )

    def processes(self) -> list[psutil.Process]:
        """Return `up` and everything below it."""
        assert self._process is not None
        top = psutil.Process(self._process.pid)
        return [top, *top.children(recursive=True)]

    def stop(self, number: signal.Signals = signal.SIGINT) -> tuple[int, float]:
        """Press Ctrl-C; return the exit status and the seconds it took."""
        assert self._process is not None
        started = time.monotonic()
        self._process.send_signal(number)
        status = self._process.wait(30)
        self._close()
        return status, time.monotonic() - started

    def kill(self) -> None:
        """End `up` itself as a crash does."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._close()

    def clean_up(self) -> None:
        """End what a failed test left running."""
        if self._process is None:
            return
        left = self.processes() if self._process.poll() is None else []
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):  # its parent was faster
                process.kill()
        self._process.wait()
        self._close()

    def _close(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process = None
