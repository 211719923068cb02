"""How evenly several workers share short and long tasks, on NATS and on Redis.

The tasks sleep, so the machine's cores do not decide. Finishing times are told beside two ideals:
even, all slots busy to the end (tasks would have to be cut in pieces for that), and in order,
each task given to the first slot that is free, at no cost.
"""

from __future__ import annotations

import heapq
import itertools
import json
import os
import subprocess
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks.celery_level import Broker
from tests.benchmarks.figures import Report
from tests.benchmarks.processes import HERE, OURS, Processes, end, rivals_python
from tests.benchmarks.scaling import settled

_APPS = HERE / "apps"
TASKS = 450
SLOTS = 2
#: By worker: how many times longer each task takes there.
ALIKE = (1.0, 1.0, 1.0)
ONE_SLOW = (1.0, 1.0, 4.0)
CASES = {"balance": ALIKE, "balance, slow": ONE_SLOW}
_SEND_SECONDS = 60.0
_WORKER_STOP_SECONDS = 3.0

#: How much later than ideal all may be done. Where a slow worker happens to get the last long task,
#: that alone costs a quarter, so there the ideal is the one in order.
FINISH_RATIO = 1.25
IDEALS = {"balance": "finish / even", "balance, slow": "finish / in order"}


class Run(NamedTuple):
    """What became of the tasks of one run."""

    finish_seconds: float
    #: how long each task takes on a worker of normal speed, in the order of sending
    seconds: list[float]
    #: by worker: tasks it ended, and the seconds they took together
    tasks: list[int]
    busy: list[float]


def balance(report: Report, directory: Path, rounds: int) -> None:
    """450 tasks of 20 and 400 ms on 3 workers of 2 slots, then with one of them 4 times slower."""
    with Processes(directory) as processes:
        brokers = [
            Broker("nats", processes.nats(), OURS),
            Broker("redis", processes.redis(), rivals_python()),
        ]
        for number in range(rounds):
            for case, slowness in CASES.items():
                for broker in brokers:
                    place = directory / f"{number}-{broker.name}-{max(slowness):g}"
                    place.mkdir()
                    _tell(report, case, broker, slowness, _run(place, broker, slowness, number))
    for case, figure in IDEALS.items():
        report.at_most(case, f"nats: {figure}", report.median(case, "nats", figure), FINISH_RATIO)


def _tell(report: Report, case: str, broker: Broker, slowness: Sequence[float], run: Run) -> None:
    even = sum(run.seconds) / sum(SLOTS / slow for slow in slowness)
    values: dict[str, float] = {
        "finish s": run.finish_seconds,
        "finish / even": run.finish_seconds / even,
        "finish / in order": run.finish_seconds / in_order(run.seconds, slowness),
        "least / most busy": min(run.busy) / max(run.busy),
    }
    for number, tasks in enumerate(run.tasks, 1):
        values[f"tasks of worker {number}"] = tasks
    for figure, value in values.items():
        report.add(case, broker.name, figure, value)


def in_order(seconds: Sequence[float], slowness: Sequence[float]) -> float:
    """Return when the last task ends if each in turn goes to the first slot that is free."""
    free = [(0.0, slow) for slow in slowness for _ in range(SLOTS)]
    ends = []
    for each in seconds:
        at, slow = free[0]
        ends.append(at + each * slow)
        heapq.heapreplace(free, (ends[-1], slow))
    return max(ends)


def _run(place: Path, broker: Broker, slowness: Sequence[float], seed: int) -> Run:
    """Start the workers, send the tasks, and gather what the tasks noted."""
    records = place / "records"
    environ = {"CELERY_BROKER_URL": broker.url, "BENCH_RECORDS": str(records)}
    names = [f"worker-{number}@bench" for number in range(1, len(slowness) + 1)]
    with Processes(place) as processes:
        workers = [
            processes.start(
                [
                    *(broker.python, "-m", "celery", "-A", "balance_app", "worker"),
                    *("-n", name, "-c", str(SLOTS)),
                ],
                {**environ, "BENCH_SLOWNESS": str(slow)},
                _APPS,
            )
            for name, slow in zip(names, slowness, strict=True)
        ]
        client = subprocess.run(
            [broker.python, "balance_app.py", str(seed), str(len(names)), str(TASKS)],
            cwd=_APPS,
            env={**os.environ, **environ},
            stdout=subprocess.PIPE,
            check=True,
            timeout=_SEND_SECONDS,
        )
        told = json.loads(client.stdout)
        lines = list(settled(records, TASKS))
        # All tasks have ended and only acknowledgements are left: on Redis a worker can take
        # longer to stop than it ran.
        with ThreadPoolExecutor() as ends:
            list(ends.map(end, workers, itertools.repeat(_WORKER_STOP_SECONDS)))
    started = {line[1]: float(line[3]) for line in lines if line[0] == "started"}
    ended = [(line[4], line[1], float(line[3])) for line in lines if line[0] == "ended"]
    if len(ended) != TASKS:
        raise RuntimeError(f"{broker.name}: {len(ended)} of {TASKS} tasks ended, see {place}")
    tasks, busy = Counter[str](), Counter[str]()
    for name, task, at in ended:
        tasks[name] += 1
        busy[name] += at - started[task]
    return Run(
        finish_seconds=max(at for _, _, at in ended) - told["began"],
        seconds=told["seconds"],
        tasks=[tasks[name] for name in names],
        busy=[busy[name] for name in names],
    )
