"""A real Celery worker process for tests: ready when it has announced itself."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

from bridge.control import Control
from bridge.errors import WorkerSilent
from bridge.names import Names, escape
from bridge.wire import Connection, ConnectOptions, Message
from bridge.wire.jetstream import is_gone
from tests.support.waiting import wait_until

_START_SECONDS = 30.0
_STOP_SECONDS = 20.0
_REPOSITORY = Path(__file__).parents[2]


def answers(control: Control, hostname: str) -> bool:
    """Whether the worker's event loop answers a command in the time that `control` gives it."""
    try:
        control.ask(hostname, "ping")
    except WorkerSilent:
        return False
    return True


class CeleryWorker:
    """`celery -A app worker` on the broker `url`; its output goes to a file in `directory`.

    `arguments` are further ones of the command, `environ` goes before the process's own.
    """

    def __init__(
        self,
        url: str,
        directory: Path,
        *arguments: str,
        app: str = "tests.support.foreign_app",
        name: str = "worker",
        pool: str = "prefork",
        concurrency: int = 2,
        environ: dict[str, str] | None = None,
    ) -> None:
        self.hostname = f"{name}@{socket.gethostname()}"
        self.log = directory / f"{name}.log"
        self.url = url
        self._command = [
            *(sys.executable, "-m", "celery", "-A", app, "worker", "-n", self.hostname, "-E"),
            *("-P", pool, "-c", str(concurrency), "-l", "INFO", *arguments),
        ]
        self._environ = {
            **os.environ,
            "CELERY_BROKER_URL": url,
            "CELERY_RESULT_BACKEND": url,
            **(environ or {}),
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, "the worker is not running"
        return self._process.pid

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def start(self) -> None:
        """Start the worker and return once it consumes."""
        options = ConnectOptions.from_url(self.url)
        announced: list[Message] = []
        connection = Connection(options)
        connection.connect()
        try:
            bucket = Names(self.url.rpartition("/")[2] if self._has_vhost else "").bucket("workers")
            connection.subscribe(f"$KV.{bucket}.{escape(self.hostname)}", announced.append)
            connection.flush()
            self.spawn()
            self._await_announcement(connection, announced)
        finally:
            connection.close()

    @property
    def _has_vhost(self) -> bool:
        return self.url.count("/") > 2

    def spawn(self) -> None:
        """Start the worker and wait for nothing."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._environ,
                cwd=_REPOSITORY,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _await_announcement(self, connection: Connection, announced: list[Message]) -> None:
        assert self._process is not None
        deadline = time.monotonic() + _START_SECONDS
        while not any(not is_gone(message) for message in announced):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"the worker did not start:\n{self.output[-4000:]}")
            try:
                connection.drain(0.2)
            except TimeoutError:
                continue

    def wait_for_log(self, text: str) -> None:
        """Wait until the worker has said `text`."""
        wait_until(
            lambda: text in self.output, told=lambda: f"no {text!r} in:\n{self.output[-4000:]}"
        )

    def terminate(self) -> None:
        """Ask for a warm shutdown and do not wait for it."""
        os.kill(self.pid, signal.SIGTERM)

    def wait(self, timeout: float = _STOP_SECONDS) -> int:
        """Wait for the end of the worker; return its exit status."""
        assert self._process is not None
        status = self._process.wait(timeout)
        self._process = None
        return status

    def stop(self) -> None:
        """End the worker as an operator does; kill what does not go."""
        if self._process is None:
            return
        self.terminate()
        try:
            self.wait()
        except subprocess.TimeoutExpired:
            output = self.output[-4000:]
            self.kill()
            raise AssertionError(f"the worker did not stop:\n{output}") from None

    def kill(self) -> None:
        """End the worker and its pool processes as a crash does."""
        if self._process is None:
            return
        try:
            family = psutil.Process(self._process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            family = []
        self._process.kill()
        for child in family:
            try:
                child.kill()
            except psutil.NoSuchProcess:
                continue
        self._process.wait()
        psutil.wait_procs(family, timeout=_STOP_SECONDS)
        self._process = None
