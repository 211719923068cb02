"""Readings to rates. Deterministic: no clock, no connection.

Nobody counts arrivals. What came is what was finished plus what the backlog grew by, which holds
for any broker, client and acknowledgement mode.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final, NamedTuple

from bridge.scaling.policy import Observation
from bridge.scaling.reading import Reading

#: Rates are means over this long, unless the load has visibly changed within it.
WINDOW_SECONDS: Final = 10.0
#: A change shows within this long when it is larger than chance explains.
_RECENT_SECONDS: Final = 1.5
#: Standard deviations of a Poisson stream that are not taken for chance.
_SIGNIFICANT: Final = 4.0
#: The mean service time is that of the tasks which finished within this long.
_SERVICE_SECONDS: Final = 30.0
#: A busy machine tells of a task's end so late; until then it only looks longer than others.
_LATE_SECONDS: Final = 2.0
#: After a longer silence earlier counts say nothing about the present.
_GAP_SECONDS: Final = 10.0


class _Point(NamedTuple):
    at_seconds: float
    finished: int
    backlog: int
    busy: int


class Meter:
    """Feed it every reading in order; it forgets what is older than its windows."""

    def __init__(self) -> None:
        self._points: deque[_Point] = deque()
        #: time, tasks succeeded and seconds they took, over all time
        self._services: deque[tuple[float, int, float]] = deque()
        self._service_seconds: float | None = None
        self._finished: dict[str, int] = {}
        self._finished_total = 0
        self._moved_seconds = 0.0

    def observe(self, reading: Reading) -> Observation:
        """Return what the policy decides on, with rates over the last seconds."""
        at = reading.at_seconds
        if self._points and not 0 < at - self._points[-1].at_seconds <= _GAP_SECONDS:
            self._forget(at)
        finished = self._count_finished(reading)
        self._points.append(_Point(at, self._finished_total, reading.backlog, reading.busy))
        while at - self._points[0].at_seconds > WINDOW_SECONDS:
            self._points.popleft()
        self._drop_before_a_change()
        if reading.busy or finished or not reading.waiting or not reading.ready_workers:
            self._moved_seconds = at
        arrival_rate, completion_rate = self._rates(self._points[0])
        return Observation(
            at_seconds=at,
            ready_workers=reading.ready_workers,
            waiting=reading.waiting,
            in_flight=sum(queue.in_flight for queue in reading.queues),
            oldest_waiting_seconds=reading.oldest_waiting_seconds,
            busy=reading.busy,
            mean_busy=sum(point.busy for point in self._points) / len(self._points),
            arrival_rate=arrival_rate,
            completion_rate=completion_rate,
            service_seconds=self._service(reading),
            stalled_seconds=at - self._moved_seconds,
        )

    def _forget(self, at: float) -> None:
        self._points.clear()
        self._services.clear()
        self._finished.clear()
        self._moved_seconds = at

    def _count_finished(self, reading: Reading) -> int:
        """Add up what each worker finished; one that was not there before tells no difference."""
        # A worker that started again counts from 0.
        added = sum(
            count - before if count >= (before := self._finished.get(worker, count)) else count
            for worker, count in reading.finished.items()
        )
        # One that is missing for a moment is not forgotten: it will have gone on working.
        self._finished.update(reading.finished)
        self._finished_total += added
        return added

    def _rates(self, since: _Point) -> tuple[float, float]:
        """Return arrivals and completions per second since a point."""
        last = self._points[-1]
        seconds = last.at_seconds - since.at_seconds
        if not seconds:
            return 0.0, 0.0
        finished = last.finished - since.finished
        arrived = max(0, finished + last.backlog - since.backlog)
        return arrived / seconds, finished / seconds

    def _drop_before_a_change(self) -> None:
        """Shorten the window to what came after a step in the load."""
        last = self._points[-1].at_seconds
        recent = [p for p in self._points if last - p.at_seconds <= _RECENT_SECONDS]
        if len(recent) < 2 or len(recent) == len(self._points):
            return
        seconds = recent[-1].at_seconds - recent[0].at_seconds
        expected = self._rates(self._points[0])[0] * seconds
        arrived = self._rates(recent[0])[0] * seconds
        if abs(arrived - expected) > _SIGNIFICANT * math.sqrt(max(expected, arrived, 1.0)):
            while self._points[0].at_seconds < recent[0].at_seconds:
                self._points.popleft()

    def _service(self, reading: Reading) -> float | None:
        """Return the mean seconds a task takes; None before anything is known.

        When tasks get longer, those that finish tell it late: the middle one of those that run
        tells it sooner. (The middle, not the mean: one endless task says nothing of the next.)
        """
        at, services = reading.at_seconds, self._services
        services.append((at, reading.succeeded, reading.duration_seconds))
        while at - services[0][0] > _SERVICE_SECONDS:
            services.popleft()
        succeeded = reading.succeeded - services[0][1]
        if succeeded > 0:
            self._service_seconds = (reading.duration_seconds - services[0][2]) / succeeded
        elif self._service_seconds is None and reading.succeeded:
            self._service_seconds = reading.duration_seconds / reading.succeeded
        mean, running = self._service_seconds, reading.running_seconds
        if running is None or (mean is not None and running <= mean + _LATE_SECONDS):
            return mean
        return running
