"""Benchmark of a long backlog: a task costs the same, however many wait behind it."""

from __future__ import annotations

from pathlib import Path

import psutil

from tests.benchmarks import celery_level
from tests.benchmarks.figures import Report
from tests.benchmarks.processes import OURS, Processes

_WINDOW = 10_000
_SIZES = (10_000, 1_000_000)
_DRAIN_SECONDS = 180.0
_WORKER_STOP_SECONDS = 3.0
#: time of a task in front of a million against one in front of ten thousand
COST_RATIO = 1.2
#: what the worker's memory may grow by while it takes 10,000 of a million
GROWTH_MB = 2.0


def backlog(report: Report, directory: Path, rounds: int) -> None:
    """Drain the first 10,000 of a backlog of 10,000 and of a million; results off."""
    for number in range(rounds):
        for size in _SIZES:
            place = directory / f"{number}-{size}"
            place.mkdir()
            _drain(report, place, size)
    small, large = (f"{size:,} tasks" for size in _SIZES)
    ratio = report.ratio_of_rounds("backlog", large, small, "µs/task")
    report.at_most("backlog", f"µs/task: {large} / {small}", ratio, COST_RATIO)
    growth = report.median("backlog", large, "worker grows by MB")
    report.at_most("backlog", "worker grows by MB", growth, GROWTH_MB)


def _drain(report: Report, directory: Path, size: int) -> None:
    subject = f"{size:,} tasks"
    with Processes(directory) as processes, celery_level.Marks(directory) as marks:
        broker = celery_level.Broker("nats", processes.nats(), OURS)
        environ = broker.environ(results=False, prefetch=4)
        arguments = (str(size), str(_WINDOW), str(marks.path))
        seconds = celery_level.run_client(broker, environ, "backlog", *arguments)
        report.add("backlog", subject, "published/s", size / seconds)
        worker = celery_level.start_worker(processes, broker, environ)
        try:
            first = marks.wait(_DRAIN_SECONDS)
            before = _megabytes(worker.pid)
            last = marks.wait(_DRAIN_SECONDS)
            report.add("backlog", subject, "µs/task", (last - first) / _WINDOW * 1e6)
            report.add("backlog", subject, "worker MB", _megabytes(worker.pid))
            report.add("backlog", subject, "worker grows by MB", _megabytes(worker.pid) - before)
            [server] = [c for c in psutil.Process().children(True) if c.name() == "nats-server"]
            report.add("backlog", subject, "server MB", server.memory_info().rss / 1e6)
        finally:
            celery_level.end(worker, _WORKER_STOP_SECONDS)


def _megabytes(worker_pid: int) -> float:
    """Return what only the worker's main process has of the memory (USS)."""
    return float(psutil.Process(worker_pid).memory_full_info().uss) / 1e6
