"""What the policy may never do, and what it must."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bridge.scaling import Decision, Direction, Limits, Observation, Past, Size, decide

LIMITS = Limits(min_workers=1, max_workers=10, max_concurrent=5)

rates = st.floats(0, 10_000)
observations = st.builds(
    Observation,
    at_seconds=st.floats(0, 1e6),
    ready_workers=st.integers(0, 50),
    waiting=st.integers(0, 1_000_000),
    in_flight=st.integers(0, 1000),
    oldest_waiting_seconds=st.none() | st.floats(0, 1e5),
    busy=st.integers(0, 500),
    mean_busy=st.floats(0, 500),
    arrival_rate=rates,
    completion_rate=rates,
    service_seconds=st.none() | st.floats(0, 1e4),
    stalled_seconds=st.floats(0, 30),
)


@st.composite
def limits(draw: st.DrawFn) -> Limits:
    fewest, slowest = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    return Limits(
        min_workers=fewest,
        max_workers=draw(st.integers(fewest, 40)),
        min_concurrent=slowest,
        max_concurrent=draw(st.integers(slowest, 40)),
        scale_threshold=draw(st.floats(0.05, 1)),
        target_wait_seconds=draw(st.floats(0.1, 60)),
    )


sizes = st.builds(Size, st.integers(1, 50), st.integers(1, 50))


def seen(at: float = 0.0, **changes: float | None) -> Observation:
    """Return an idle moment of one worker, changed as told."""
    idle = Observation(
        at_seconds=at,
        ready_workers=1,
        waiting=0,
        in_flight=0,
        oldest_waiting_seconds=None,
        busy=0,
        mean_busy=0.0,
        arrival_rate=0.0,
        completion_rate=0.0,
        service_seconds=0.2,
    )
    return msgspec.structs.replace(idle, **changes)


def within(size: Size, bounds: Limits) -> bool:
    return (
        bounds.min_workers <= size.workers <= bounds.max_workers
        and bounds.min_concurrent <= size.concurrency <= bounds.max_concurrent
    )


#: A busy machine is no failure of the policy.
relaxed = settings(deadline=None)
few = settings(max_examples=25, deadline=None)


@relaxed
@given(sizes, st.none() | observations, limits())
def test_no_figure_leads_out_of_the_limits(
    size: Size, observation: Observation | None, bounds: Limits
) -> None:
    """Whatever the figures and the size so far, the decision is within the limits."""
    assert within(decide(size, observation, bounds, Past()).size, bounds)


@relaxed
@given(sizes, st.lists(observations, max_size=3), limits())
def test_missing_figures_change_nothing(
    size: Size, before: list[Observation], bounds: Limits
) -> None:
    """Without figures an allowed size stays, whatever was seen before."""
    past = Past()
    for observation in before:
        past = decide(size, observation, bounds, past).past
    size = bounds.clamp(size)

    decision = decide(size, None, bounds, past)

    assert decision.size == size
    assert decision.direction is Direction.HOLD


@relaxed
@given(sizes, observations, st.integers(0, 1_000_000), limits())
def test_more_waiting_never_means_fewer_slots(
    size: Size, observation: Observation, more: int, bounds: Limits
) -> None:
    """The slots wanted do not fall as the backlog grows and all else is the same."""
    size = bounds.clamp(size)
    longer = msgspec.structs.replace(observation, waiting=observation.waiting + more)

    short = decide(size, observation, bounds, Past())
    long = decide(size, longer, bounds, Past())

    assert long.size.slots >= short.size.slots


@relaxed
@given(sizes, observations, limits())
def test_growth_is_one_jump(size: Size, observation: Observation, bounds: Limits) -> None:
    """The same figures a second time ask for no more: what was needed came at once."""
    size = bounds.clamp(size)
    first = decide(size, observation, bounds, Past())

    second = decide(first.size, observation, bounds, first.past)

    assert second.size == first.size


@relaxed
@given(sizes, observations, limits())
def test_growth_takes_nothing_away(size: Size, observation: Observation, bounds: Limits) -> None:
    """A new worker takes seconds to start: until then no pool gets smaller for it."""
    size = bounds.clamp(size)
    decision = decide(size, observation, bounds, Past())
    if decision.direction is Direction.UP:
        assert decision.workers >= size.workers
        assert decision.concurrency >= size.concurrency


@few
@given(sizes, limits())
@example(Size(11, 5), Limits(min_workers=10, max_workers=20, min_concurrent=5, max_concurrent=5))
def test_idle_ends_at_the_smallest_size(size: Size, bounds: Limits) -> None:
    """An idle fleet of any size is at its minimum, with pools at theirs, after the cool-downs."""
    size, past = bounds.clamp(size), Past()
    for at in range(60):
        decision = decide(size, seen(at), bounds, past)
        size, past = decision.size, decision.past
    assert size == (bounds.min_workers, bounds.min_concurrent)


#: seconds and tasks a second: a load that goes up and down as quickly as it likes
wild_loads = st.lists(
    st.tuples(st.integers(1, 40), st.sampled_from([0, 1, 5, 20, 100, 1000])), min_size=60
)


@few
@given(wild_loads, st.sampled_from([1.0, 5.0, 15.0]))
def test_reversals_keep_a_minute_apart(
    phases: list[tuple[int, int]], cooldown_seconds: float
) -> None:
    """Whatever the load, shrinking never begins within a minute of another reversal.

    And in no five minutes are there more than five. Only growth may follow sooner, for it never
    waits: with the same figures and no past at all, there are not more slots.
    """
    bounds = msgspec.structs.replace(LIMITS, cooldown_seconds=cooldown_seconds)
    rates = [float(rate) for seconds, rate in phases for _ in range(seconds)]
    size, past, last = Size(1, 1), Past(), Direction.HOLD
    reversals: list[tuple[int, Direction]] = []
    for at, rate in enumerate(rates):
        moment = seen(at, arrival_rate=rate, waiting=int(rate))
        decision, fresh = decide(size, moment, bounds, past), decide(size, moment, bounds, Past())
        assert decision.size.slots >= fresh.size.slots or fresh.direction is not Direction.UP
        size, past = decision.size, decision.past
        if decision.direction is Direction.HOLD:
            continue
        if last not in {Direction.HOLD, decision.direction}:
            reversals.append((at, decision.direction))
        last = decision.direction
    for (before, _), (at, direction) in itertools.pairwise(reversals):
        assert direction is Direction.UP or at - before >= 60
    for (first, _), (sixth, _) in zip(reversals, reversals[5:], strict=False):
        assert sixth - first >= 300


def steps(size: Size, *moments: Observation | None) -> list[Decision]:
    """Decide one moment after another."""
    past, decisions = Past(), []
    for moment in moments:
        decision = decide(size, moment, LIMITS, past)
        size, past = decision.size, decision.past
        decisions.append(decision)
    return decisions


def test_first_gear_comes_first() -> None:
    """What the present workers' pools can carry starts no process."""
    [decision] = steps(Size(3, 1), seen(waiting=60, ready_workers=3))

    assert decision.size == (3, 2)
    assert decision.reason == (
        "3x1 to 3x2: 60 waiting take 4.0 s with 3 slots (target 2 s), 0.0/s come"
    )


def test_backlog_brings_every_worker_at_once() -> None:
    """A backlog that is far too long leads to the full size in one decision."""
    [decision] = steps(Size(1, 1), seen(waiting=500))
    assert decision.size == (10, 5)


@pytest.mark.parametrize(("busy", "wanted"), [(3.0, (1, 5)), (4.0, (2, 5))])
def test_threshold_is_reached_not_passed(busy: float, wanted: Size) -> None:
    """At 80 % of busy slots there are more, below it there are not."""
    moment = seen(mean_busy=busy, busy=int(busy), service_seconds=60.0, waiting=1)
    moment = msgspec.structs.replace(moment, arrival_rate=0.01)

    [decision] = steps(Size(1, 5), moment)

    assert decision.size == wanted


def test_long_tasks_bring_no_more_slots_than_tasks() -> None:
    """Tasks of an hour ask for a slot each, not for their rate times an hour."""
    moment = seen(waiting=3, busy=5, mean_busy=5.0, service_seconds=3600.0, arrival_rate=0.2)
    [decision] = steps(Size(1, 5), moment)
    assert decision.size.slots == 10
    assert decision.workers == 2


def test_unknown_service_time_gives_each_task_a_slot() -> None:
    """Before any task has ended, those that wait count as long ones."""
    [decision] = steps(Size(1, 1), seen(waiting=7, busy=1, mean_busy=1.0, service_seconds=None))
    assert decision.size == (2, 4)


def test_measured_waiting_corrects_the_figures() -> None:
    """Tasks that wait long although they should not lead to more, once a change has settled."""
    late = {"waiting": 30, "oldest_waiting_seconds": 6.0, "service_seconds": 0.001}
    [first, second] = steps(Size(1, 2), seen(0, **late), seen(3, **late))

    assert first.size == (1, 3)
    assert "the oldest waits 6.0 s" in first.reason
    assert second.direction is Direction.HOLD


def test_stalled_workers_are_not_answered_with_more() -> None:
    """While nobody takes a task, the size stays, and the reason says so."""
    [decision] = steps(Size(1, 1), seen(waiting=5000, stalled_seconds=12.0))
    assert decision.direction is Direction.HOLD
    assert decision.reason == "1x1 stays: 5000 wait and no worker takes any for 12 s"


def test_unseen_time_is_no_idle_time() -> None:
    """After a gap in the figures the cool-down starts again."""
    idle = [seen(at) for at in range(10)]
    after = [seen(at) for at in range(11, 30)]

    decisions = steps(Size(4, 5), *idle, None, *after)

    shrunk = [at for at, d in enumerate(decisions) if d.direction is Direction.DOWN]
    assert shrunk[0] == 11 + 15


def test_shrinking_names_what_it_saw() -> None:
    """The reason to shrink gives the highest need and how long it was not exceeded."""
    busy = {"busy": 2, "mean_busy": 2.0, "arrival_rate": 10.0}
    decisions = steps(Size(6, 5), *(seen(at, **busy) for at in range(16)))
    assert decisions[-1].size == (1, 3)
    assert decisions[-1].reason == "6x5 to 1x3: no more than 3 slots needed for 15 s"
    assert decisions[-1].figures["arrival_rate"] == 10.0


def test_small_saving_waits_longer_after_growth() -> None:
    """A fleet that has just grown turns for a few slots only after four cool-downs."""
    growing = seen(0, arrival_rate=150.0)
    less = [seen(at, arrival_rate=120.0) for at in range(1, 70)]
    decisions = steps(Size(1, 1), growing, *less)
    assert decisions[0].size == (8, 5)
    shrunk = [at for at, d in enumerate(decisions) if d.direction is Direction.DOWN]
    assert shrunk == [61]


def test_clock_set_back_keeps_nothing_old_alive() -> None:
    """A growth that by a corrected clock lies in the future does not hold the size for ever."""
    peak = seen(10_000, arrival_rate=200.0)
    decisions = steps(Size(1, 1), peak, *(seen(at) for at in range(20)))
    assert decisions[0].size == (10, 5)
    assert decisions[-1].size == (1, 1)
