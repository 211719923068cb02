"""The front end as a process of its own, for tests."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from typing import Self

import httpx
import psutil

_LISTENING = re.compile(r"web\.listening host=\S+ port=(\d+)")
_STOP_SECONDS = 15.0


class WebProcess:
    """`python -m bridge web` on a free port; ready when entered, gone when left."""

    def __init__(self, nats_url: str, **environ: str) -> None:
        self._environ = {
            **os.environ,
            "NATS_URL": nats_url,
            "API_PORT": "0",
            "BRIDGE_LOG_FORMAT": "json",
            **environ,
        }
        self.port = 0
        self.log: list[str] = []

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bridge", "web"],
            env=self._environ,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            if match := _LISTENING.search(line):
                self.port = int(match[1])
                break
        assert self.port, "".join(self.log)
        self._reader = threading.Thread(target=self.log.extend, args=(self.process.stderr,))
        self._reader.start()
        # The socket listens already: this waits for the first worker process.
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30)
        self.client.get("/health").raise_for_status()
        return self

    def workers(self) -> list[psutil.Process]:
        """gunicorn's worker processes."""
        return psutil.Process(self.process.pid).children()

    def stop(self) -> int:
        """Stop as an operator does and return the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(_STOP_SECONDS)

    def __exit__(self, *_: object) -> None:
        self.client.close()
        if self.process.poll() is None:
            self.stop()
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()
