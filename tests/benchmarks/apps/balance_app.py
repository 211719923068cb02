"""The app of `scaling_app` with those settings of tasks/app.py that decide who gets a task.

    celery -A balance_app worker -c 2
    python balance_app.py 1 3 450         seed, workers to wait for, tasks to send

The client prints when it began (seconds since 1970) and how long each task takes, in the order
in which they were sent.
"""

from __future__ import annotations

import json
import random
import sys
import time

import click
from scaling_app import app, nap

app.conf.task_acks_late = True
app.conf.worker_prefetch_multiplier = 2

#: seconds that a task takes, and how often that comes
_SHORT, _LONG = 0.02, 0.4
_LONG_SHARE = 0.1


def await_workers(count: int) -> None:
    """Return once so many workers answer."""
    while len(app.control.ping(timeout=1)) < count:
        pass


def send(seed: int, count: int) -> dict[str, object]:
    """Send the tasks, one in ten of them twenty times as long as the others, in random order."""
    seconds = [_LONG if n < _LONG_SHARE * count else _SHORT for n in range(count)]
    random.Random(seed).shuffle(seconds)
    began = time.time()
    for each in seconds:
        nap.apply_async((each, time.time()))
    return {"began": began, "seconds": seconds}


if __name__ == "__main__":
    seed, workers, tasks = map(int, sys.argv[1:])
    await_workers(workers)
    click.echo(json.dumps(send(seed, tasks)))
