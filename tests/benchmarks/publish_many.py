"""Benchmark of publishing many tasks at once: kombu's batches, groups and `apply_many`."""

from __future__ import annotations

from pathlib import Path

from tests.benchmarks import celery_level
from tests.benchmarks.figures import Report
from tests.benchmarks.processes import Processes

_TASKS = 5_000
#: `apply_many` against what Redis takes one after the other, alone and in a group
MANY_RATIO = 5.0


def publish_many(report: Report, directory: Path, rounds: int) -> None:
    """Publish 5,000 no-ops in every way there is; returned means stored; results off."""
    with Processes(directory) as processes:
        brokers = celery_level.start_brokers(processes, report, rabbitmq=False)
        for _ in range(rounds):
            for broker in brokers:
                environ = broker.environ(results=False, prefetch=4)
                taken = celery_level.run_client(broker, environ, "publish-many", str(_TASKS))
                for way, seconds in taken.items():
                    report.add("publish-many", f"{broker.name}, {way}", "tasks/s", _TASKS / seconds)
    for rival in ("apply_async", "group"):
        _compare(report, "apply_many", rival, MANY_RATIO)
    for way in ("apply_async in batch", "group in batch"):
        _compare(report, way, way, None)
    _compare(report, "group in batch", "group", None)


def _compare(report: Report, ours: str, rival: str, floor: float | None) -> None:
    report.ratio("publish-many", f"nats, {ours}", f"redis, {rival}", "tasks/s", floor)
