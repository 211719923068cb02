"""A Celery app with Celery's own defaults, the same for every broker; also its client.

BENCH_BROKER and BENCH_BACKEND are URLs (no backend: results off), BENCH_PREFETCH is
`worker_prefetch_multiplier`, BENCH_QUEUE the only queue.

    celery -A noop_app worker -c 2
    python noop_app.py publish 15000 FIFO     one `mark`, the no-ops, one `mark`; prints seconds
    python noop_app.py get 300                prints the milliseconds of each send-and-get
    python noop_app.py publish-many 5000      prints the seconds of each way to send so many
    python noop_app.py backlog 1000000 10000 FIFO   as publish, with a mark behind the first 10000
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
from celery import Celery, group

try:
    from bridge.bulk import apply_many
except ImportError:  # the rivals' environment has Celery and nothing of ours
    apply_many = None  # type: ignore[assignment]

BACKEND = os.environ.get("BENCH_BACKEND")
_CHUNK = 50_000

app = Celery("noop_app", broker=os.environ["BENCH_BROKER"], backend=BACKEND)
app.conf.task_ignore_result = BACKEND is None
app.conf.worker_prefetch_multiplier = int(os.environ.get("BENCH_PREFETCH", "4"))
app.conf.task_default_queue = os.environ["BENCH_QUEUE"]
app.conf.broker_connection_retry_on_startup = True


@app.task(name="noop")
def noop() -> None:
    """Do nothing."""


@app.task(name="mark")
def mark(fifo: str) -> None:
    """Tell the time to whoever reads the named pipe."""
    Path(fifo).write_text(f"{time.time()}\n")


def publish(count: int, fifo: str) -> float:
    """Send a backlog of `count` no-ops between two marks; return the seconds of the no-ops."""
    mark.apply_async((fifo,))
    started = time.perf_counter()
    for _ in range(count):
        noop.apply_async()
    seconds = time.perf_counter() - started
    mark.apply_async((fifo,))
    return seconds


def backlog(count: int, window: int, fifo: str) -> float:
    """Send `count` no-ops, the first `window` of them between two marks; return the seconds."""
    assert apply_many is not None, "only with nats://"
    started = time.perf_counter()
    mark.apply_async((fifo,))
    apply_many(noop, [((), {})] * window)
    mark.apply_async((fifo,))
    for sent in range(window, count, _CHUNK):
        apply_many(noop, [((), {})] * min(_CHUNK, count - sent))
    return time.perf_counter() - started


def get(count: int) -> list[float]:
    """Send a no-op and wait for its result, `count` times; return the milliseconds of each."""
    taken = []
    for number in range(count + 20):
        started = time.perf_counter()
        noop.delay().get(timeout=30)
        # The first ones open connections.
        if number >= 20:
            taken.append((time.perf_counter() - started) * 1000)
    return taken


def publish_many(count: int) -> dict[str, float]:
    """Send `count` no-ops in every way there is; return the seconds of each."""
    noop.apply_async()  # opens the connection and declares the queue

    def batch() -> None:
        with app.producer_or_acquire() as producer, producer.batch():
            for _ in range(count):
                noop.apply_async(producer=producer)

    def group_in_batch() -> None:
        with app.producer_or_acquire() as producer, producer.batch():
            group(noop.s() for _ in range(count)).apply_async(producer=producer)

    ways: dict[str, Callable[[], object]] = {
        "apply_async": lambda: [noop.apply_async() for _ in range(count)],
        "group": group(noop.s() for _ in range(count)).apply_async,
        "apply_async in batch": batch,
        "group in batch": group_in_batch,
    }
    if apply_many is not None:
        ways["apply_many"] = lambda: apply_many(noop, [((), {})] * count)
    taken = {}
    for name, way in ways.items():
        started = time.perf_counter()
        way()
        taken[name] = time.perf_counter() - started
    return taken


if __name__ == "__main__":
    if sys.argv[1] == "publish-many":
        click.echo(json.dumps(publish_many(int(sys.argv[2]))))
    elif sys.argv[1] == "backlog":
        click.echo(json.dumps(backlog(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])))
    elif sys.argv[1] == "publish":
        click.echo(json.dumps(publish(int(sys.argv[2]), sys.argv[3])))
    else:
        click.echo(json.dumps(get(int(sys.argv[2]))))
