"""Benchmarks of Celery itself on several brokers: the same app, nothing but the URLs differs."""

from __future__ import annotations

import json
import os
import select
import statistics
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from tests.benchmarks.figures import Report
from tests.benchmarks.processes import HERE, OURS, Processes, end, rivals_python
from tests.support.debian import Missing

BACKLOG = 15_000
_GETS = 300
_DRAIN_SECONDS = 180.0
_SERVER_NAMES = {"nats": "nats-server", "redis": "redis-server", "rabbitmq": "beam.smp"}
_WORKER_STOP_SECONDS = 3.0
_APPS = HERE / "apps"

#: floors: results off against Redis and RabbitMQ, results on against Redis
DRAIN_RATIOS = {"redis": 2.5, "rabbitmq": 1.25}
DRAIN_RESULTS_RATIO = 1.7
PUBLISH_RATIO = 1.4
GET_RATIO = 2.0


class Broker(NamedTuple):
    """A broker and the interpreter that Celery runs with."""

    name: str
    url: str
    python: str

    def environ(self, *, results: bool, prefetch: int) -> dict[str, str]:
        """Return what `noop_app` reads; a queue of its own keeps a round apart from others."""
        found = {
            "BENCH_BROKER": self.url,
            "BENCH_PREFETCH": str(prefetch),
            "BENCH_QUEUE": uuid.uuid4().hex,
        }
        return {**found, "BENCH_BACKEND": self.url} if results else found


def start_brokers(processes: Processes, report: Report, *, rabbitmq: bool) -> list[Broker]:
    """Start NATS and Redis, and RabbitMQ where it is wanted and can be had."""
    rivals = rivals_python()
    found = [
        Broker("nats", processes.nats(), OURS),
        Broker("redis", processes.redis(), rivals),
    ]
    if rabbitmq:
        try:
            found.append(Broker("rabbitmq", processes.rabbitmq(), rivals))
        except (Missing, OSError) as error:
            report.skip("RabbitMQ", str(error))
    return found


def drain(report: Report, directory: Path, rounds: int) -> None:
    """Publish a backlog of no-ops, then let a worker of two processes drain it; results off."""
    with Processes(directory) as processes:
        brokers = start_brokers(processes, report, rabbitmq=True)
        for _ in range(rounds):
            for broker in brokers:
                _drain(report, processes, broker, results=False, prefetch=4)
        for broker in brokers:
            _drain(report, processes, broker, results=False, prefetch=128)
    report.ratio("publish", "nats", "redis", "tasks/s", PUBLISH_RATIO)
    report.ratio("publish", "nats", "rabbitmq", "tasks/s", None)
    for name, floor in DRAIN_RATIOS.items():
        report.ratio("drain", "nats", name, "tasks/s", floor)
        report.ratio("drain", "nats, prefetch x128", f"{name}, prefetch x128", "tasks/s", None)


def drain_results(report: Report, directory: Path, rounds: int) -> None:
    """The same with results, each broker keeping its own."""
    with Processes(directory) as processes:
        brokers = start_brokers(processes, report, rabbitmq=False)
        for _ in range(rounds):
            for broker in brokers:
                _drain(report, processes, broker, results=True, prefetch=4)
        for broker in brokers:
            _drain(report, processes, broker, results=True, prefetch=128)
    report.ratio("drain, results", "nats", "redis", "tasks/s", DRAIN_RESULTS_RATIO)
    report.ratio("drain, results", "nats, prefetch x128", "redis, prefetch x128", "tasks/s", None)


def _drain(
    report: Report, processes: Processes, broker: Broker, *, results: bool, prefetch: int
) -> None:
    environ = broker.environ(results=results, prefetch=prefetch)
    with Marks(processes.directory) as marks:
        seconds = run_client(broker, environ, "publish", str(BACKLOG), str(marks.path))
        worker = start_worker(processes, broker, environ)
        try:
            first = marks.wait(_DRAIN_SECONDS)
            cpu = CpuTime(worker.pid, _SERVER_NAMES[broker.name])
            last = marks.wait(_DRAIN_SECONDS)
            spent = cpu.spent()
        finally:
            # All that counts has been done; a worker told to stop just as a task ends can take
            # 30 s over it (billiard waits for a result that nobody reads any more).
            end(worker, _WORKER_STOP_SECONDS)
    subject = broker.name if prefetch == 4 else f"{broker.name}, prefetch x{prefetch}"
    benchmark = "drain, results" if results else "drain"
    if not results:
        report.add("publish", broker.name, "tasks/s", BACKLOG / seconds)
    report.add(benchmark, subject, "tasks/s", BACKLOG / (last - first))
    for part, seconds in spent.items():
        report.add(benchmark, subject, f"{part} CPU µs/task", seconds / BACKLOG * 1e6)


def get(report: Report, directory: Path, rounds: int) -> None:
    """Send a no-op to an idle worker and wait for its result."""
    with Processes(directory) as processes:
        brokers = start_brokers(processes, report, rabbitmq=False)
        environs = [broker.environ(results=True, prefetch=4) for broker in brokers]
        for broker, environ in zip(brokers, environs, strict=True):
            start_worker(processes, broker, environ)
        for _ in range(rounds):
            for broker, environ in zip(brokers, environs, strict=True):
                taken = sorted(run_client(broker, environ, "get", str(_GETS)))
                report.add("get", broker.name, "p50 ms", statistics.median(taken))
                report.add("get", broker.name, "p95 ms", taken[int(len(taken) * 0.95)])
    ratio = report.ratio_of_rounds("get", "nats", "redis", "p50 ms")
    report.at_most("get", "p50: nats / redis", ratio, 1 / GET_RATIO)


def run_client(broker: Broker, environ: dict[str, str], *arguments: str) -> Any:
    """Return what `noop_app.py` prints when run with `arguments` on a broker."""
    answer = subprocess.run(
        [broker.python, "noop_app.py", *arguments],
        cwd=_APPS,
        env={**os.environ, **environ},
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(answer.stdout)


def start_worker(processes: Processes, broker: Broker, environ: dict[str, str]) -> Any:
    command = [broker.python, "-m", "celery", "-A", "noop_app", "worker", "-c", "2"]
    return processes.start(command, environ, _APPS)


class Marks:
    """A named pipe through which tasks tell when they ran."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "marks"
        self._text = b""

    def __enter__(self) -> Marks:
        os.mkfifo(self.path)
        # Open for writing too: no end of file between two writers.
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_NONBLOCK)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)
        self.path.unlink()

    def wait(self, timeout_seconds: float) -> float:
        """Return the next time, in seconds since 1970. Raises TimeoutError."""
        while b"\n" not in self._text:
            readable, _, _ = select.select([self._descriptor], [], [], timeout_seconds)
            if not readable:
                raise TimeoutError(f"no mark came within {timeout_seconds:.0f} s")
            self._text += os.read(self._descriptor, 4096)
        line, _, self._text = self._text.partition(b"\n")
        return float(line)


class CpuTime:
    """CPU time of a worker, its pool and its broker, from now on."""

    def __init__(self, worker_pid: int, server_name: str) -> None:
        worker = psutil.Process(worker_pid)
        below = psutil.Process().children(recursive=True)
        self._parts = {
            "worker": [worker],
            "pool": worker.children(),
            "server": [process for process in below if process.name() == server_name],
        }
        self._before = self._now()

    def _now(self) -> dict[str, float]:
        return {
            part: sum(sum(process.cpu_times()[:2]) for process in processes)
            for part, processes in self._parts.items()
        }

    def spent(self) -> dict[str, float]:
        """Return the seconds each part has spent, user and system."""
        return {part: seconds - self._before[part] for part, seconds in self._now().items()}


BENCHMARKS: dict[str, Callable[[Report, Path, int], None]] = {
    "drain": drain,
    "drain-results": drain_results,
    "get": get,
}
