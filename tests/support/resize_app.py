"""A Celery app for tests of pool resizing; the file RAN_FILE tells what ran."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from celery import Celery

#: What one task adds to the file
LINE_BYTES = 8

app = Celery("resize_app")
app.conf.update(
    task_ignore_result=True,
    task_acks_late=os.environ.get("ACKS_LATE") == "1",
    # A loaded test machine must not have slow children taken for dead ones.
    worker_proc_alive_timeout=60.0,
    broker_connection_retry_on_startup=True,
)


@app.task(name="record")
def record(number: int) -> None:
    """Note that `number` ran, in one append that is never torn."""
    time.sleep(0.001)
    line = os.open(os.environ["RAN_FILE"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(line, b"%07d\n" % number)
    finally:
        os.close(line)


@app.task(name="hold")
def hold(number: int, gate: str) -> None:
    """Run until the file `gate` is there; then note that `number` ran."""
    while not Path(gate).exists():
        time.sleep(0.01)
    record.run(number)


def submit(url: str, task: Any, numbers: Iterable[int], **arguments: Any) -> None:
    """Send one `task` per number to the broker `url`."""
    with app.connection_for_write(url) as connection:
        producer = connection.Producer()
        for number in numbers:
            task.apply_async((number,), arguments, producer=producer)
