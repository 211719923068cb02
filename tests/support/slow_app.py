"""The foreign app with what a worker should not meet: slow starts and commands, deadly tasks."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from celery import signals, states
from celery.backends.base import DisabledBackend
from celery.worker.control import inspect_command

from tests.support.foreign_app import app, record

__all__ = ["app"]

#: Where this variable names a file that exists, pool processes are slow to come up.
SLOW_START_VARIABLE = "SLOW_APP_SLOW_START"
#: Longer than Celery waits for one, by default
SLOW_START_SECONDS = 4.5

app.conf.worker_soft_shutdown_timeout = float(os.environ.get("SLOW_APP_SOFT_SHUTDOWN", "0"))


@app.task(name="slow.die")
def die(path: str) -> None:
    """Write down that this began, and kill the pool process it runs in."""
    with Path(path).open("a") as lines:
        lines.write("start die\n")
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(name="slow.relay")
def relay(path: str, word: str) -> None:
    """Send a task from within the pool process."""
    record.delay(path, word)


class Unreachable(DisabledBackend):
    """A result backend that fails where a failure is to be stored."""

    REASON = "no results today"

    def store_result(self, task_id: str, result: Any, state: str, *_: Any, **__: Any) -> None:
        if state == states.FAILURE:
            raise RuntimeError(self.REASON)


@inspect_command()
def answer_when(state: Any, begun: str, until: str) -> str:
    """Make the file `begun`, and answer once the file `until` is there."""
    Path(begun).touch()
    while not Path(until).exists():
        time.sleep(0.02)
    return "at last"


@signals.worker_process_init.connect
def start_slowly(**_: Any) -> None:
    if Path(os.environ.get(SLOW_START_VARIABLE, "none")).exists():
        time.sleep(SLOW_START_SECONDS)
