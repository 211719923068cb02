"""A Celery app with Celery's own defaults, whose tasks note when they ran; also its client.

CELERY_BROKER_URL names the broker, as for any Celery app, BENCH_RECORDS a file; on a worker with
BENCH_SLOWNESS each task takes so many times longer.

    celery -A scaling_app worker
    python scaling_app.py load 0.2 10:0.5 60:100    seconds a task takes, then seconds:rate ...

The client sends a Poisson stream, the same on every run, and prints how many tasks it sent, when
it began (seconds since 1970), and how late it was at worst.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time

import click
from celery import Celery

app = Celery("scaling_app")
app.conf.task_ignore_result = True
app.conf.broker_connection_retry_on_startup = True

SLOWNESS = float(os.environ.get("BENCH_SLOWNESS", "1"))


def note(*fields: object) -> None:
    """Append one line; one write, so that lines of many processes do not mix."""
    line = " ".join(map(str, fields)) + "\n"
    records = os.open(os.environ["BENCH_RECORDS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(records, line.encode())
    finally:
        os.close(records)


@app.task(name="nap", bind=True)
def nap(self, seconds: float, sent: float) -> None:  # type: ignore[no-untyped-def]
    """Occupy a slot and say so, at the start and at the end."""
    note("started", self.request.id, sent, time.time(), self.request.hostname)
    time.sleep(seconds * SLOWNESS)
    note("ended", self.request.id, sent, time.time(), self.request.hostname)


def load(seconds: float, phases: list[tuple[float, float]]) -> dict[str, float]:
    """Send each phase's tasks at their times."""
    chance = random.Random(1)
    began = due = time.time()
    sent, late = 0, 0.0
    for duration, rate in phases:
        end = due + duration
        while (due := due + chance.expovariate(rate)) < end:
            time.sleep(max(0.0, due - time.time()))
            late = max(late, time.time() - due)
            nap.apply_async((seconds, time.time()))
            sent += 1
        due = end
    return {"sent": sent, "began": began, "late_seconds": late}


if __name__ == "__main__":
    each, *phases = sys.argv[2:]
    pairs = [(float(a), float(b)) for a, b in (phase.split(":") for phase in phases)]
    click.echo(json.dumps(load(float(each), pairs)))
