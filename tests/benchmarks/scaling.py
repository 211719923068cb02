"""A step of load on the real service, and on Celery's own --autoscale: the same app and load.

Idle, then twenty times what one slot can do, then twice what it can do. Slots are counted from
outside, as the processes of the pools; waiting times are told by the tasks themselves.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import msgspec
import psutil

from tests.benchmarks.figures import Report
from tests.benchmarks.processes import HERE, OURS, ROOT, Processes, rivals_python
from tests.support.service import RunningService

APPS = HERE / "apps"
#: What one run looked like, for `scaling_plot`.
RUNS = ROOT / "build" / "scaling.json"
WORKERS = int(os.environ.get("BENCH_WORKERS", "5"))
CONCURRENCY = 5
TASK_SECONDS = 0.2
IDLE_SECONDS, STEP_SECONDS, TAIL_SECONDS = 10.0, 60.0, 60.0
#: tasks a second that one slot can do
ONE_SLOT = 1 / TASK_SECONDS
Phases = tuple[tuple[float, float], ...]
#: seconds and tasks a second
PHASES: Phases = ((IDLE_SECONDS, 0.5), (STEP_SECONDS, 20 * ONE_SLOT), (TAIL_SECONDS, 2 * ONE_SLOT))
_LEAST = os.environ.get("BENCH_MIN_WORKERS", "1")
ELASTIC = {"AUTOSCALE": "true", "MIN_WORKERS": _LEAST, "WORKER_COUNT": _LEAST}
_SAMPLE_SECONDS = 0.2
_QUIET_SECONDS = 20.0

#: limits the issue sets, seconds after the step
FULL_POOLS_SECONDS, FULL_WORKERS_SECONDS = 2.0, 10.0


class Sample(msgspec.Struct, frozen=True):
    """Processes at one moment, seconds since 1970: workers, and children of their pools."""

    at: float
    #: pool children of each worker process
    pools: list[int]

    @property
    def slots(self) -> int:
        return sum(self.pools)


class Run(msgspec.Struct):
    """One side of the comparison."""

    name: str
    began: float
    sent: int
    samples: list[Sample]
    #: task id -> when it was sent, first started, ended (0: never)
    tasks: dict[str, tuple[float, float, float]]
    #: tasks that were started more than once, and started but never ended
    doubled: int
    killed: int

    @property
    def step(self) -> float:
        return self.began + IDLE_SECONDS

    def waits(self, since: float, until: float) -> list[float]:
        return sorted(
            start - sent for sent, start, _ in self.tasks.values() if since <= sent < until
        )

    def p95_wait(self, since: float, until: float) -> float:
        """Return the waiting time that 95 % of the tasks sent then did not exceed."""
        return statistics.quantiles(self.waits(since, until), n=20)[-1]

    def seconds_until(self, reached: Callable[[Sample], bool]) -> float:
        """Return how long after the step the processes first were as asked for."""
        found = (s.at - self.step for s in self.samples if s.at >= self.step and reached(s))
        return next(found, float("inf"))

    def slot_seconds(self) -> float:
        pairs = zip(self.samples, self.samples[1:], strict=False)
        return sum(a.slots * (b.at - a.at) for a, b in pairs)


class Sampler:
    """Counts the worker processes below a process, several times a second."""

    def __init__(self, pid: int) -> None:
        self.samples: list[Sample] = []
        self._top = psutil.Process(pid)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(_SAMPLE_SECONDS):
            below = self._top.children(recursive=True)
            self.samples.append(Sample(time.time(), pools([self._top, *below])))


def pools(processes: list[psutil.Process]) -> list[int]:
    """Return the pool size of each Celery worker among the processes."""
    parents = {}
    for process in processes:
        try:
            words = process.cmdline()
            if "worker" in words and any("celery" in word for word in words):
                parents[process.pid] = process.ppid()
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    sizes = Counter(parent for parent in parents.values() if parent in parents)
    return [sizes[pid] for pid, parent in parents.items() if parent not in parents]


def run(name: str, pid: int, python: str, environ: dict[str, str], phases: Phases = PHASES) -> Run:
    """Send the load to workers below `pid`, wait for its end, and gather what happened."""
    with Sampler(pid) as sampler:
        client = subprocess.run(
            [python, "scaling_app.py", "load", str(TASK_SECONDS), *(f"{s}:{r}" for s, r in phases)],
            cwd=APPS,
            env={**os.environ, **environ},
            stdout=subprocess.PIPE,
            check=True,
        )
        told = json.loads(client.stdout)
        lines = list(settled(Path(environ["BENCH_RECORDS"]), told["sent"]))
    starts = Counter(line[1] for line in lines if line[0] == "started")
    first = {line[1]: line for line in reversed(lines) if line[0] == "started"}
    ends = {line[1]: float(line[3]) for line in lines if line[0] == "ended"}
    tasks = {
        task: (float(line[2]), float(line[3]), ends.get(task, 0.0)) for task, line in first.items()
    }
    return Run(
        name=name,
        began=told["began"],
        sent=told["sent"],
        samples=sampler.samples,
        tasks=tasks,
        doubled=sum(count > 1 for count in starts.values()),
        killed=sum(task not in ends for task in starts),
    )


def settled(records: Path, sent: int) -> Iterator[list[str]]:
    """Yield the records once every task has ended, or nothing has happened for long."""
    deadline = time.monotonic() + _QUIET_SECONDS
    size, lines = 0, []
    while time.monotonic() < deadline:
        lines = [line.split() for line in records.read_text().splitlines()]
        if len({line[1] for line in lines if line[0] == "ended"}) >= sent:
            break
        if len(lines) != size:
            size, deadline = len(lines), time.monotonic() + _QUIET_SECONDS
        time.sleep(_SAMPLE_SECONDS)
    yield from lines


@contextlib.contextmanager
def service(directory: Path, **settings: str) -> Iterator[tuple[RunningService, dict[str, str]]]:
    """Run `python -m bridge up`; yield it and the environment that the client needs."""
    directory.mkdir()
    environ = {"BENCH_RECORDS": str(directory / "records"), "PYTHONPATH": str(APPS)}
    running = RunningService(
        directory,
        CELERY_APP="scaling_app:app",
        MAX_WORKERS=str(WORKERS),
        MAX_CONCURRENT_TASKS=str(CONCURRENCY),
        FLOWER_ENABLED="false",
        **environ,
        **settings,
    )
    try:
        running.start()
        yield running, {**environ, "CELERY_BROKER_URL": running.nats_url}
    finally:
        running.clean_up()


def on_service(directory: Path, name: str, **settings: str) -> Run:
    """Run the step on the service."""
    with service(directory, **settings) as (running, environ):
        return run(name, running.processes()[0].pid, OURS, environ)


def on_celery(directory: Path) -> Run:
    """Run the load on one Celery worker with --autoscale, on Redis."""
    directory.mkdir()
    python = rivals_python()
    with Processes(directory) as processes:
        environ = {
            "CELERY_BROKER_URL": processes.redis(),
            "BENCH_RECORDS": str(directory / "records"),
        }
        slots = f"--autoscale={WORKERS * CONCURRENCY},1"
        worker = processes.start(
            [python, "-m", "celery", "-A", "scaling_app", "worker", slots], environ, APPS
        )
        return run("celery --autoscale", worker.pid, python, environ)


def step(report: Report, directory: Path, rounds: int) -> None:
    """Idle, a minute of 20 times what one slot can do, a minute of twice: sizes and waiting."""
    for number in range(rounds):
        place = directory / str(number)
        place.mkdir()
        runs = [
            on_service(place / "elastic", "elastic", **ELASTIC),
            on_service(
                place / "full",
                "full from the start",
                MIN_WORKERS=str(WORKERS),
                WORKER_COUNT=str(WORKERS),
                AUTOSCALE="false",
            ),
            on_celery(place / "celery"),
        ]
        for each in runs:
            _report(report, each)
        RUNS.parent.mkdir(exist_ok=True)
        RUNS.write_bytes(msgspec.json.encode(runs))
    elastic = "elastic"
    pools_after = report.median("scaling", elastic, "pools s")
    report.at_most("scaling", "full pools after the step, s", pools_after, FULL_POOLS_SECONDS)
    workers_after = report.median("scaling", elastic, "workers s")
    report.at_most("scaling", "all workers after the step, s", workers_after, FULL_WORKERS_SECONDS)
    for figure in ("killed", "doubled", "lost"):
        value = report.median("scaling", elastic, figure)
        report.at_most("scaling", f"{figure} tasks", value, 0)


def _report(report: Report, each: Run) -> None:
    values: dict[str, float] = {
        "pools s": each.seconds_until(lambda s: max(s.pools, default=0) >= CONCURRENCY),
        "workers s": each.seconds_until(lambda s: s.slots >= WORKERS * CONCURRENCY),
        "p95 s": each.p95_wait(each.step, each.step + STEP_SECONDS),
        "slot-s": each.slot_seconds(),
        "killed": each.killed,
        "doubled": each.doubled,
        "lost": each.sent - len(each.tasks),
    }
    for figure, value in values.items():
        report.add("scaling", each.name, figure, value)
