"""A fleet under a load, simulated: five minutes in a fraction of a second.

Discrete events: arrivals, ends of tasks, looks of the autoscaler, and its decisions taking effect.
The policy and the meter are the real ones. What is modelled is what they act on: workers take
tasks from one queue in order, a resized pool has its new size a moment later, a new worker takes
tasks once it has booted, and a slot that is given up finishes its task first.
"""

from __future__ import annotations

import dataclasses
import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

import msgspec

from bridge.records import QueueState
from bridge.scaling.meter import Meter
from bridge.scaling.policy import Decision, Direction, Limits, Past, Size, decide
from bridge.scaling.reading import Reading
from bridge.stats.collector import PERIOD_SECONDS

LIMITS: Final = Limits(min_workers=1, max_workers=10, max_concurrent=5)
#: From a decision to pools of the new size, and to a new worker that takes tasks.
RESIZE_SECONDS: Final = 0.3
BOOT_SECONDS: Final = 3.0


@dataclass(frozen=True, kw_only=True)
class Trace:
    """A load: tasks per second over time, and how long each task takes."""

    name: str
    rate: Callable[[float], float]
    highest_rate: float
    service_seconds: float = 0.2
    seconds: float = 300.0
    #: exponential service times instead of equal ones
    varied: bool = False

    def tasks(self, seed: int) -> Iterator[tuple[float, float]]:
        """Yield arrival and duration of each task: a Poisson stream of the given rate."""
        chance = random.Random(seed)
        at = 0.0
        while (at := at + chance.expovariate(self.highest_rate)) < self.seconds:
            if chance.random() * self.highest_rate < self.rate(at):
                mean = self.service_seconds
                yield at, chance.expovariate(1 / mean) if self.varied else mean


@dataclass(kw_only=True)
class Outcome:
    """What happened, for assertions and for the plot."""

    trace: Trace
    waits: list[float] = field(default_factory=list)
    #: time, slots that exist, slots that are busy: a step at each change
    curve: list[tuple[float, int, int]] = field(default_factory=list)
    #: time, workers that take tasks, slots that take tasks
    ready: list[tuple[float, int, int]] = field(default_factory=list)
    decisions: list[tuple[float, Decision]] = field(default_factory=list)
    arrived: int = 0
    ended_seconds: float = 0.0

    def p95_wait(self) -> float:
        """Return the waiting time (seconds) that 95 % of the tasks did not exceed."""
        return sorted(self.waits)[math.ceil(0.95 * len(self.waits)) - 1] if self.waits else 0.0

    def slot_seconds(self) -> float:
        return self._integral(lambda slots, _: slots)

    def needed_slot_seconds(self, limits: Limits) -> float:
        """Return what a clairvoyant scaler would use; call it on the run at full size.

        It knows every arrival, changes size at once and as often as it likes, and keeps to the
        same settings: the limits, and no more busy slots than the threshold allows.
        """
        most = limits.max_workers * limits.max_concurrent

        def needed(_: int, busy: int) -> int:
            return min(most, max(limits.min_workers, math.ceil(busy / limits.scale_threshold)))

        return self._integral(needed)

    def _integral(self, value: Callable[[int, int], float]) -> float:
        ends = [*(at for at, _, _ in self.curve[1:]), self.ended_seconds]
        return sum(
            (end - at) * value(slots, busy)
            for (at, slots, busy), end in zip(self.curve, ends, strict=True)
        )

    def reversals(self) -> list[float]:
        """Return when the direction of growth changed."""
        found, last = [], None
        for at, decision in self.decisions:
            if decision.direction is Direction.HOLD:
                continue
            if last not in {None, decision.direction}:
                found.append(at)
            last = decision.direction
        return found

    def seconds_until(self, start: float, reached: Callable[[int, int], bool]) -> float:
        """Return how long after `start` ready workers and slots first were as asked for."""
        return next(
            (
                at - start
                for at, workers, slots in self.ready
                if at >= start and reached(workers, slots)
            ),
            math.inf,
        )


class Simulation:
    """One run of one trace. `fixed` keeps a size from start to end, without the policy."""

    def __init__(
        self,
        trace: Trace,
        limits: Limits = LIMITS,
        *,
        start: Size | None = None,
        fixed: Size | None = None,
        seed: int = 1,
        seen: Callable[[float], bool] = lambda _: True,
    ) -> None:
        self.outcome = Outcome(trace=trace)
        self._limits = limits
        self._policy_on = fixed is None
        self._size = fixed or start or Size(limits.min_workers, 1)
        self._seen = seen
        self._meter, self._past = Meter(), Past()
        self._ready_workers, self._concurrency = self._size
        self._queue: deque[tuple[float, float]] = deque()
        self._busy = self._finished = 0
        self._duration_seconds = 0.0
        self._running: deque[float] = deque()
        self._tasks = trace.tasks(seed)
        self._order = 0
        self._events: list[tuple[float, int, Callable[[float], None]]] = []

    def run(self) -> Outcome:
        """Run until the trace is over and every task has ended."""
        outcome, events = self.outcome, self._events
        self._note(0.0)
        self._arrive_next()
        if self._policy_on:
            self._at(PERIOD_SECONDS, self._look)
        now = 0.0
        while events and not self._over(now):
            now, _, happen = heapq.heappop(events)
            happen(now)
        outcome.ended_seconds = max(now, outcome.trace.seconds)
        return outcome

    def _over(self, now: float) -> bool:
        idle = not self._busy and not self._queue
        return now >= self.outcome.trace.seconds and idle

    def _at(self, time: float, happen: Callable[[float], None]) -> None:
        self._order += 1
        heapq.heappush(self._events, (time, self._order, happen))

    # -- tasks ---------------------------------------------------------------------------

    def _arrive_next(self) -> None:
        task = next(self._tasks, None)
        if task is not None:
            at, duration = task
            self._at(at, lambda now: self._arrive(now, duration))

    def _arrive(self, now: float, duration: float) -> None:
        self.outcome.arrived += 1
        self._queue.append((now, duration))
        self._fill(now)
        self._arrive_next()

    def _fill(self, now: float) -> None:
        free = self._ready_workers * self._concurrency - self._busy
        before = self._busy
        while free > 0 and self._queue:
            arrived, duration = self._queue.popleft()
            self.outcome.waits.append(now - arrived)
            self._busy += 1
            free -= 1
            self._running.append(now)
            self._at(now + duration, lambda end, took=duration: self._end(end, took))
        if self._busy != before:
            self._note(now)

    def _end(self, now: float, duration: float) -> None:
        self._busy -= 1
        self._finished += 1
        self._duration_seconds += duration
        self._running.popleft()
        self._note(now)
        self._fill(now)

    # -- the autoscaler ------------------------------------------------------------------

    def _look(self, now: float) -> None:
        self._at(now + PERIOD_SECONDS, self._look)
        seen = self._meter.observe(self._reading(now)) if self._seen(now) else None
        decision = decide(self._size, seen, self._limits, self._past)
        self._past = decision.past
        self.outcome.decisions.append((now, decision))
        if decision.size != self._size:
            self._apply(now, decision.size)

    def _reading(self, now: float) -> Reading:
        oldest = now - self._queue[0][0] if self._queue else None
        middle = self._running[len(self._running) // 2] if self._running else None
        return Reading(
            at_seconds=now,
            queues=(
                QueueState(
                    name="q",
                    waiting=len(self._queue),
                    in_flight=self._busy,
                    scheduled=0,
                    oldest_waiting_seconds=oldest,
                ),
            ),
            ready_workers=self._ready_workers,
            busy=self._busy,
            running_seconds=None if middle is None else now - middle,
            finished={"w": self._finished},
            succeeded=self._finished,
            duration_seconds=self._duration_seconds,
        )

    def _apply(self, now: float, size: Size) -> None:
        started = size.workers - self._size.workers
        self._size = size
        if started < 0:
            self._ready_workers = min(self._ready_workers, size.workers)
        for _ in range(max(0, started)):
            self._at(now + BOOT_SECONDS, self._boot)
        self._at(now + RESIZE_SECONDS, self._resize)
        self._note(now)

    def _boot(self, now: float) -> None:
        # One that was given up while it booted never takes a task.
        self._ready_workers = min(self._ready_workers + 1, self._size.workers)
        self._note(now)
        self._fill(now)

    def _resize(self, now: float) -> None:
        self._concurrency = self._size.concurrency
        self._note(now)
        self._fill(now)

    def _note(self, now: float) -> None:
        ready = self._ready_workers * self._concurrency
        # A worker that boots costs its slots too; a slot given up costs until its task ends.
        slots = max(self._size.workers * self._concurrency, ready, self._busy)
        self.outcome.curve.append((now, slots, self._busy))
        if not self.outcome.ready or self.outcome.ready[-1][1:] != (self._ready_workers, ready):
            self.outcome.ready.append((now, self._ready_workers, ready))


# -- the traces ------------------------------------------------------------------------------


def fleet(workers: int) -> Limits:
    """Return the limits of a fleet of up to `workers`."""
    return msgspec.structs.replace(LIMITS, max_workers=workers)


def for_fleet(trace: Trace, workers: int) -> Trace:
    """Return a trace made for the full fleet, scaled to one of up to `workers`."""
    share = workers / LIMITS.max_workers
    return dataclasses.replace(
        trace, rate=lambda at: share * trace.rate(at), highest_rate=share * trace.highest_rate
    )


#: What one worker can do with all its slots, with tasks of 200 ms.
ONE_WORKER_RATE: Final = LIMITS.max_concurrent / 0.2
STEP_SECONDS: Final = 30.0


def _ramp(at: float) -> float:
    return 200 * max(0.0, min(1.0, at / 120, (300 - at) / 120))


TRACES: Final = {
    trace.name: trace
    for trace in (
        Trace(
            name="step",
            rate=lambda at: 20 * ONE_WORKER_RATE if STEP_SECONDS <= at < STEP_SECONDS + 60 else 0,
            highest_rate=20 * ONE_WORKER_RATE,
        ),
        Trace(name="ramp", rate=_ramp, highest_rate=200),
        Trace(name="sawtooth", rate=lambda at: 200 * (at % 150) / 150, highest_rate=200),
        Trace(name="idle", rate=lambda _: 0.1, highest_rate=0.1),
    )
}
