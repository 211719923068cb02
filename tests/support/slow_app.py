"""The foreign app, slow where a worker should not be: in a control command, and at its start."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from celery import signals
from celery.worker.control import inspect_command

from tests.support.foreign_app import app

__all__ = ["app"]

#: Seconds a pool process takes to come up
CHILD_START_VARIABLE = "SLOW_APP_CHILD_START_SECONDS"


@inspect_command()
def answer_when(state: Any, begun: str, until: str) -> str:
    """Make the file `begun`, and answer once the file `until` is there."""
    Path(begun).touch()
    while not Path(until).exists():
        time.sleep(0.02)
    return "at last"


@signals.worker_process_init.connect
def start_slowly(**_: Any) -> None:
    time.sleep(float(os.environ.get(CHILD_START_VARIABLE, "0")))
