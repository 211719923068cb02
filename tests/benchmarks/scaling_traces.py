"""Loads of five minutes on the real service: the live half of the simulator's promises."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.figures import Report
from tests.benchmarks.processes import OURS
from tests.benchmarks.scaling import (
    CONCURRENCY,
    ELASTIC,
    TASK_SECONDS,
    WORKERS,
    Phases,
    Run,
    run,
    service,
    step,
)

#: limits the issue sets
COST_RATIO, TURNS_A_MINUTE = 1.25, 1.0
THRESHOLD = 0.8
_SECONDS, _PHASE_SECONDS = 300.0, 5.0
#: tasks a second that fill all slots up to the threshold
_PEAK = WORKERS * CONCURRENCY * THRESHOLD / TASK_SECONDS


def _phases(rate: Callable[[float], float]) -> Phases:
    starts = itertools.takewhile(lambda at: at < _SECONDS, itertools.count(0, _PHASE_SECONDS))
    return tuple((_PHASE_SECONDS, max(0.1, rate(at + _PHASE_SECONDS / 2))) for at in starts)


TRACES: dict[str, Phases] = {
    "ramp": _phases(lambda at: _PEAK * min(1.0, at / 120, (_SECONDS - at) / 120)),
    "sawtooth": _phases(lambda at: _PEAK * (at % 150) / 150),
    "idle": _phases(lambda _: 0.1),
}


def needed_slot_seconds(found: Run) -> float:
    """Return what a scaler with foresight would use: see docs/scaling.md.

    With all slots from the start no task of these loads waits, so each is busy from when it came.
    """
    changes = sorted(
        [(sent, 1) for sent, _, _ in found.tasks.values()]
        + [(sent + TASK_SECONDS, -1) for sent, _, _ in found.tasks.values()]
    )
    begun, ended = found.samples[0].at, found.samples[-1].at
    most, busy, at, total = WORKERS * CONCURRENCY, 0, begun, 0.0
    for when, change in [*changes, (ended, 0)]:
        needed = min(most, max(1, math.ceil(busy / THRESHOLD)))
        total += needed * max(0.0, min(when, ended) - at)
        busy, at = busy + change, max(at, when)
    return total


def traces(report: Report, directory: Path, rounds: int) -> None:
    """Ramp, sawtooth and idle of five minutes each, once: cost, turns, waiting."""
    for name, phases in TRACES.items():
        with service(directory / name, **ELASTIC) as (running, environ):
            found = run(name, running.processes()[0].pid, OURS, environ, phases)
            decisions = running.call("/api/v1/workers/scaling")["data"]["decisions"]
        directions = [each["direction"] for each in decisions]
        turns = sum(a != b for a, b in itertools.pairwise(directions))
        values = {
            "cost": found.slot_seconds() / needed_slot_seconds(found),
            "turns/min": turns / (_SECONDS / 60),
            "p95 s": found.p95_wait(found.began, found.began + _SECONDS),
            "killed": found.killed,
            "doubled": found.doubled,
            "lost": found.sent - len(found.tasks),
        }
        for figure, value in values.items():
            report.add("scaling-traces", name, figure, value)
    limits = {"cost": COST_RATIO, "turns/min": TURNS_A_MINUTE, "killed": 0, "doubled": 0, "lost": 0}
    for name, (figure, limit) in itertools.product(TRACES, limits.items()):
        value = report.median("scaling-traces", name, figure)
        report.at_most("scaling-traces", f"{name}: {figure}", value, limit)


BENCHMARKS: dict[str, Callable[[Report, Path, int], None]] = {
    "scaling": step,
    "scaling-traces": traces,
}
