"""The loop: what it applies, keeps, tells and refuses, with a history in memory."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Callable

import pytest

from bridge.errors import NatsConnectionError
from bridge.records import QueueState, ScalingDecision, ScalingState
from bridge.scaling import Autoscaler, Limits, NotLeading, Reading, Size
from tests.support.waiting import wait_until_async

LIMITS = Limits(min_workers=1, max_workers=10, max_concurrent=5)
PERIOD_SECONDS = 0.01

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def reading(at: float, waiting: int, busy: int = 1) -> Reading:
    return Reading(
        at_seconds=at,
        queues=(
            QueueState(
                name="q", waiting=waiting, in_flight=0, scheduled=0, oldest_waiting_seconds=None
            ),
        ),
        ready_workers=1,
        busy=busy,
        running_seconds=0.1,
        finished={"w": 0},
        succeeded=100,
        duration_seconds=20.0,
    )


class Bench:
    """An autoscaler, what it looks at, what it applied and what it stored."""

    def __init__(
        self,
        *,
        automatic: bool = True,
        start_hold_seconds: float = 0.0,
        stored: ScalingState | None = None,
    ) -> None:
        self.seen: Callable[[], Reading | None] = lambda: None
        self.applied: list[Size] = []
        self.states: list[ScalingState] = []
        self.decided: list[ScalingDecision] = []
        self.leads = True
        self.fault: Exception | None = None
        self._stored = stored
        self.scaler = Autoscaler(
            self._observe,
            self._apply,
            LIMITS,
            self,
            initial=Size(3, 1),
            automatic=automatic,
            start_hold_seconds=start_hold_seconds,
            leads=lambda: self.leads,
            period_seconds=PERIOD_SECONDS,
            blind_seconds=0.1,
        )

    def waiting(self, count: int) -> None:
        """From now on each look finds something new, with so many tasks waiting."""
        self.seen = lambda: reading(time.monotonic(), count)

    def idle(self) -> None:
        """From now on nothing waits, and each look finds that a second later than the last."""
        seconds = itertools.count(1.0)
        self.seen = lambda: reading(next(seconds), 0, busy=0)

    async def _observe(self) -> Reading | None:
        return self.seen()

    async def _apply(self, size: Size) -> None:
        if self.fault is not None:
            raise self.fault
        self.applied.append(size)

    async def load(self) -> ScalingState | None:
        return self.states[0] if self.states else self._stored

    async def store(self, state: ScalingState, decided: ScalingDecision | None) -> None:
        self.states.insert(0, state)
        if decided is not None:
            self.decided.append(decided)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        stop = asyncio.Event()
        running = asyncio.create_task(self.scaler.run(stop))
        try:
            yield
        finally:
            stop.set()
            await running


async def test_backlog_is_applied_and_told() -> None:
    """A long backlog leads to one change, stored with the figures that led to it."""
    bench = Bench()
    bench.waiting(500)
    async with bench.running():
        await wait_until_async(lambda: bench.decided)

    assert bench.applied == [Size(3, 1), Size(10, 5)]
    [decided] = bench.decided
    assert (decided.workers_before, decided.workers) == (3, 10)
    assert decided.direction == "up"
    assert decided.figures["waiting"] == 500
    assert bench.states[0].decisions == [decided]
    assert bench.states[0].mode == "auto"


async def test_old_reading_is_no_news_and_then_blindness() -> None:
    """The same reading again changes nothing, and after a while the state says so."""
    bench = Bench()
    same = reading(1.0, 0)
    bench.seen = lambda: same
    async with bench.running():
        await wait_until_async(lambda: bench.scaler.state.blind_reason is not None)
        assert bench.states[0].blind_reason == "no current figures"
        bench.waiting(500)
        await wait_until_async(lambda: bench.decided)

    assert bench.states[0].blind_reason is None
    assert bench.applied == [Size(3, 1), Size(10, 5)]


async def test_what_cannot_be_applied_is_decided_again() -> None:
    """A decision that did not reach NATS is not taken for made."""
    bench = Bench()
    bench.fault = NatsConnectionError("away")
    bench.waiting(500)
    async with bench.running():
        await asyncio.sleep(5 * PERIOD_SECONDS)
        assert bench.decided == []
        bench.fault = None
        await wait_until_async(lambda: bench.decided)

    assert bench.applied[-1] == Size(10, 5)


async def test_manual_size_holds_and_leaves_the_other_gear() -> None:
    """Asked for five workers, it keeps five; their pools still follow the load."""
    bench = Bench()
    bench.waiting(500)
    await bench.scaler.scale(workers=5)
    assert bench.applied[-1] == Size(5, 1)
    async with bench.running():
        await wait_until_async(lambda: bench.scaler.size == Size(5, 5))
        state = bench.scaler.state
        assert (state.mode, state.pinned_workers, state.pinned_concurrency) == ("manual", 5, None)
        await bench.scaler.automatic()
        await wait_until_async(lambda: bench.scaler.size == Size(10, 5))

    assert [decided.direction for decided in bench.decided] == ["manual", "up", "manual", "up"]


async def test_manual_hold_ends_by_itself() -> None:
    """After the time it was asked for, the policy decides again, and that is told."""
    bench = Bench()
    bench.waiting(500)
    await bench.scaler.scale(workers=2, concurrency=1, hold_seconds=0.2)
    async with bench.running():
        await wait_until_async(lambda: bench.scaler.size == Size(10, 5))

    assert [decided.reason for decided in bench.decided[1:2]] == ["the manual hold is over"]
    assert bench.scaler.state.manual_until_epoch is None


async def test_of_two_at_once_the_later_one_wins() -> None:
    """Two manual sizes asked for together end in the second, not in a mixture."""
    bench = Bench()
    await asyncio.gather(
        bench.scaler.scale(workers=2, concurrency=2), bench.scaler.scale(workers=7, concurrency=4)
    )
    assert bench.applied[-2:] == [Size(2, 2), Size(7, 4)]
    assert bench.scaler.size == Size(7, 4)


@pytest.mark.parametrize("wanted", [{"workers": 0}, {"workers": 11}, {"concurrency": 6}])
async def test_manual_size_keeps_the_limits(wanted: dict[str, int]) -> None:
    """A size out of the limits is refused and nothing is applied."""
    bench = Bench()
    with pytest.raises(ValueError, match=r"1 to (10|5)"):
        await bench.scaler.scale(**wanted)
    assert bench.applied == []


async def test_only_the_leader_decides() -> None:
    """Without the lead nothing is applied or stored, and a manual size is refused."""
    bench = Bench()
    bench.leads = False
    bench.waiting(500)
    async with bench.running():
        await asyncio.sleep(5 * PERIOD_SECONDS)
        with pytest.raises(NotLeading):
            await bench.scaler.scale(workers=2)
    assert bench.applied == []
    assert bench.states == []


async def test_successor_goes_on_where_the_leader_was() -> None:
    """A controller that takes the lead keeps size, manual hold and history."""
    first = Bench()
    await first.scaler.scale(workers=4)
    second = Bench(stored=first.states[0])
    second.waiting(0)
    async with second.running():
        await wait_until_async(lambda: second.states)

    assert second.applied[0] == Size(4, 1)
    assert second.scaler.state.pinned_workers == 4
    assert second.scaler.state.decisions == first.decided


async def test_without_automatic_the_size_stays() -> None:
    """With the autoscaler off, no backlog changes anything until somebody asks."""
    bench = Bench(automatic=False)
    bench.waiting(500)
    async with bench.running():
        await asyncio.sleep(5 * PERIOD_SECONDS)
        assert bench.applied == [Size(3, 1)]
        assert bench.scaler.state.mode == "fixed"
        await bench.scaler.automatic()
        await wait_until_async(lambda: bench.scaler.size == Size(10, 5))


async def test_idle_fleet_is_left_with_the_least_workers() -> None:
    """The start size is given up after the cool-down, down to MIN_WORKERS with pools of 1."""
    bench = Bench()
    bench.idle()
    async with bench.running():
        await wait_until_async(lambda: bench.scaler.size == Size(1, 1))

    assert bench.applied == [Size(3, 1), Size(1, 1)]
    assert [decided.direction for decided in bench.decided] == ["down"]


async def test_start_size_holds_for_its_time() -> None:
    """The workers an operator started stay so long, though idle; a call for `auto` ends that."""
    bench = Bench(start_hold_seconds=60.0)
    bench.idle()
    async with bench.running():
        await asyncio.sleep(20 * PERIOD_SECONDS)
        assert bench.scaler.size == Size(3, 1)
        await bench.scaler.automatic()
        await wait_until_async(lambda: bench.scaler.size == Size(1, 1))


async def test_start_size_holds_no_growth_back() -> None:
    """A backlog gets more workers during the hold, and its end leaves the least."""
    bench = Bench(start_hold_seconds=0.5)
    bench.waiting(500)
    async with bench.running():
        await wait_until_async(lambda: bench.scaler.size == Size(10, 5))
        bench.idle()
        await wait_until_async(lambda: bench.scaler.size == Size(1, 1))


async def test_restart_begins_with_the_start_size() -> None:
    """After a restart an idle fleet has its start size; leading again later does not bring it."""
    idle = ScalingState(mode="auto", workers=1, concurrency=1)
    bench = Bench(stored=idle)
    bench.idle()
    async with bench.running():
        await wait_until_async(lambda: bench.scaler.size == Size(1, 1))
        bench.leads = False
        await asyncio.sleep(5 * PERIOD_SECONDS)
        bench.leads = True
        await wait_until_async(lambda: len(bench.applied) == 3)

    assert bench.applied == [Size(3, 1), Size(1, 1), Size(1, 1)]


async def test_restart_keeps_a_larger_size() -> None:
    """A fleet that was busy before a restart goes on with what it had."""
    bench = Bench(stored=ScalingState(mode="auto", workers=8, concurrency=5))
    bench.idle()
    async with bench.running():
        await wait_until_async(lambda: bench.applied)

    assert bench.applied[0] == Size(8, 5)
