"""A real nats-server for tests: own store, free port, no fixed waits."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import psutil

from bridge.server import ServerConfig, find_binary
from tests.support.waiting import wait_until

_LISTENING = re.compile(r"Listening for client connections on .*:(\d+)")
_STOP_TIMEOUT_SECONDS = 10.0


class NatsServer:
    """Starts nats-server and tells when it is ready by its own log.

    The port is the server's choice on the first start and stays the same afterwards.
    `extra` is text added to the configuration file (``authorization {}``, ``tls {}`` ...).
    """

    def __init__(self, directory: Path, *, extra: str = "", sync_interval: str = "1s") -> None:
        self.directory = directory
        self.store_dir = directory / "store"
        self.port = -1
        self.log: list[str] = []
        self._extra = extra
        self._sync_interval = sync_interval
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server is not running"
        return self._process.pid

    def start(self) -> None:
        """Start the server and return once it serves clients and JetStream."""
        self.store_dir.mkdir(parents=True, exist_ok=True)
        config = ServerConfig(
            store_dir=self.store_dir,
            port=self.port,
            sync_interval=self._sync_interval,
            extra=self._extra,
        )
        config_file = self.directory / "nats-server.conf"
        config_file.write_text(config.render(), encoding="utf-8")
        process = subprocess.Popen(
            [str(find_binary(os.environ)), "--config", str(config_file)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        self._process = process
        self._await_ready(process.stderr)
        self._reader = threading.Thread(target=self._follow, args=(process.stderr,))
        self._reader.start()

    def _await_ready(self, stream: IO[str]) -> None:
        for line in stream:
            self.log.append(line)
            listening = _LISTENING.search(line)
            if listening:
                self.port = int(listening[1])
            if "Server is ready" in line:
                return
        self._end(stream)
        raise AssertionError("nats-server did not start:\n" + "".join(self.log[-20:]))

    def _follow(self, stream: IO[str]) -> None:
        self.log.extend(stream)

    def _end(self, stream: IO[str]) -> None:
        assert self._process is not None
        self._process.wait(_STOP_TIMEOUT_SECONDS)
        if self._reader is not None:
            self._reader.join(_STOP_TIMEOUT_SECONDS)
        stream.close()
        self._process = self._reader = None

    def stop(self) -> None:
        """End the server as an operator does (SIGTERM)."""
        if self._process is not None and self._process.stderr is not None:
            self._process.terminate()
            self._end(self._process.stderr)

    def kill(self) -> None:
        """End the server as a crash does (SIGKILL)."""
        if self._process is not None and self._process.stderr is not None:
            self._process.kill()
            self._end(self._process.stderr)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Keep the server stopped (SIGSTOP): its connections stay open, nobody answers."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            # The signal reaches its threads one by one, and each may still answer a request.
            wait_until(
                lambda: all(
                    psutil.Process(thread.id).status() == psutil.STATUS_STOPPED
                    for thread in psutil.Process(self.pid).threads()
                )
            )
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    def restart(self) -> None:
        """Start again on the same port and store, after `stop` or `kill` or instead of them."""
        self.stop()
        self.start()
