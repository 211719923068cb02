"""Somebody's Celery app, written as Celery's documentation shows it; it knows nothing of NATS.

Broker and backend come from CELERY_BROKER_URL and CELERY_RESULT_BACKEND.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from celery import Celery, Task, chain, group, shared_task, signals
from celery.exceptions import Reject, SoftTimeLimitExceeded

app = Celery("foreign")
app.conf.update(
    task_default_queue="foreign",
    task_acks_late=os.environ.get("FOREIGN_ACKS_LATE", "1") == "1",
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=int(os.environ.get("FOREIGN_PREFETCH_MULTIPLIER", "2")),
    task_track_started=True,
    result_expires=3600,
    broker_connection_retry_on_startup=True,
)

seen_by_signals: list[str] = []


class Counting(Task):
    """A base class with state of its own in each process."""

    calls = 0

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        self.calls += 1

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        seen_by_signals.append(f"on_success {task_id}")


@signals.task_prerun.connect
def note_start(task_id: str, **_: Any) -> None:
    """Keep what the signals told in this process."""
    seen_by_signals.append(f"prerun {task_id}")


@signals.task_postrun.connect
def note_end(task_id: str, state: str, **_: Any) -> None:
    seen_by_signals.append(f"postrun {task_id} {state}")


@app.task(name="foreign.add")
def add(x: float, y: float) -> float:
    return x + y


@app.task(name="foreign.total")
def total(numbers: list[float]) -> float:
    return sum(numbers)


@app.task(name="foreign.fail")
def fail(message: str) -> None:
    raise ValueError(message)


@app.task(name="foreign.counted", base=Counting, bind=True)
def counted(self: Counting) -> int:
    return self.calls


@app.task(name="foreign.signals_of")
def signals_of(task_id: str) -> list[str]:
    return [line for line in seen_by_signals if task_id in line]


@app.task(name="foreign.retrying", autoretry_for=(OSError,), retry_backoff=0.1, max_retries=2)
def retrying(path: str, needed: int) -> int:
    """Succeed once the file has `needed` lines; add one at each try."""
    file = Path(path)
    with file.open("a") as lines:
        lines.write("try\n")
    tries = len(file.read_text().splitlines())
    if tries < needed:
        raise OSError(f"try {tries} of {needed}")
    return tries


@app.task(name="foreign.record", bind=True)
def record(self: Task, path: str, word: str, seconds: float = 0.0) -> str:
    """Write that this ran: one line at its start and one at its end."""
    with Path(path).open("a") as lines:
        lines.write(f"start {word}\n")
        lines.flush()
        time.sleep(seconds)
        lines.write(f"end {word}\n")
    return f"{word} by {self.request.hostname}"


@app.task(name="foreign.hold", bind=True)
def hold(self: Task, path: str, until: str) -> str:
    """Run until a file appears."""
    with Path(path).open("a") as lines:
        lines.write("start hold\n")
        lines.flush()
        while not Path(until).exists():
            time.sleep(0.02)
        lines.write("end hold\n")
    return f"hold by {self.request.hostname}"


@app.task(name="foreign.request_of", bind=True)
def request_of(self: Task, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Tell what the worker knows of this call."""
    request = self.request
    return {
        "args": list(args),
        "kwargs": kwargs,
        "retries": request.retries,
        "priority": request.delivery_info["priority"],
        "redelivered": request.delivery_info["redelivered"],
        "routing_key": request.delivery_info["routing_key"],
        "headers": request.headers,
    }


@app.task(name="foreign.big")
def big(size: int) -> str:
    return "x" * size


@app.task(name="foreign.big_failure")
def big_failure(size: int) -> None:
    raise ValueError("y" * size)


@app.task(name="foreign.limited", rate_limit="5/s")
def limited() -> float:
    return time.time()


@app.task(name="foreign.reject_once", bind=True)
def reject_once(self: Task, path: str) -> bool:
    """Give the message back the first time."""
    if not Path(path).exists():
        Path(path).touch()
        raise Reject("not now", requeue=True)
    return bool(self.request.delivery_info["redelivered"])


@app.task(name="foreign.soft", soft_time_limit=0.5, time_limit=10)
def soft() -> str:
    try:
        time.sleep(10)
    except SoftTimeLimitExceeded:
        return "stopped softly"
    return "never stopped"


@app.task(name="foreign.replaced", bind=True)
def replaced(self: Task, numbers: list[float]) -> Any:
    """Become a workflow: double every number, then add all up."""
    doubled = group(add.s(number, number) for number in numbers)
    raise self.replace(chain(doubled, total.s()))


@app.task(name="foreign.silent", ignore_result=True)
def silent() -> str:
    return "nobody asks"


@shared_task(name="foreign.shared")
def shared() -> str:
    return "shared"
