"""Small handlers for demonstrations, tests and benchmarks."""

from __future__ import annotations

import time
from typing import Annotated, Final

from celery import Task
from msgspec import Meta

from tasks.app import app

MAX_SLEEP_SECONDS: Final = 3600.0
MAX_FAILURES: Final = 100
MAX_STEPS: Final = 1000
MAX_PAUSE_SECONDS: Final = 60.0
#: How long `flaky` waits before it is tried again.
FLAKY_DELAY_SECONDS: Final = 0.1


def _require(name: str, value: float, low: float, high: float) -> None:
    # Callers that come through Celery, not through the REST API, meet no schema before this.
    if not low <= value <= high:
        raise ValueError(f"{name} must be from {low:g} to {high:g}, not {value!r}")


@app.task(name="test")
def echo(message: str) -> str:
    """Return the message."""
    return message


@app.task(name="noop")
def noop() -> None:
    """Do nothing."""


@app.task(name="sleep")
def sleep(seconds: Annotated[float, Meta(ge=0, le=MAX_SLEEP_SECONDS)]) -> float:
    """Sleep for that many seconds and return them."""
    _require("seconds", seconds, 0, MAX_SLEEP_SECONDS)
    time.sleep(seconds)
    return seconds


@app.task(name="fail")
def fail(message: str) -> None:
    """Fail with the message."""
    raise RuntimeError(message)


@app.task(name="flaky", bind=True)
def flaky(self: Task, failures: Annotated[int, Meta(ge=0, le=MAX_FAILURES)]) -> int:
    """Fail that many times, then succeed and return the number of tries."""
    _require("failures", failures, 0, MAX_FAILURES)
    tries: int = self.request.retries + 1
    if tries <= failures:
        error = RuntimeError(f"failure {tries} of {failures}")
        raise self.retry(exc=error, countdown=FLAKY_DELAY_SECONDS, max_retries=failures)
    return tries


@app.task(name="progress", bind=True)
def progress(
    self: Task,
    steps: Annotated[int, Meta(ge=1, le=MAX_STEPS)],
    pause_seconds: Annotated[float, Meta(ge=0, le=MAX_PAUSE_SECONDS)] = 0.1,
) -> int:
    """Take that many steps, tell the state PROGRESS after each, and return their number."""
    _require("steps", steps, 1, MAX_STEPS)
    _require("pause_seconds", pause_seconds, 0, MAX_PAUSE_SECONDS)
    for step in range(1, steps + 1):
        time.sleep(pause_seconds)
        self.update_state(state="PROGRESS", meta={"current": step, "total": steps})
    return steps
