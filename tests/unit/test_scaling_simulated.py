"""The policy on loads of five minutes, held to the figures it was built for."""

from __future__ import annotations

import functools
import time

import pytest

from bridge.scaling import Direction, Size
from tests.support.simulator import (
    LIMITS,
    STEP_SECONDS,
    TRACES,
    Outcome,
    Simulation,
    fleet,
    for_fleet,
)

FULL = Size(LIMITS.max_workers, LIMITS.max_concurrent)
SEEDS = (1, 2, 3)
#: workers at most, and what such a fleet may cost: of a small one a whole worker is a large part
COSTS = {10: 1.25, 5: 1.25, 3: 1.3, 2: 1.35}


@functools.cache
def scaled(name: str, seed: int = 1, workers: int = LIMITS.max_workers) -> Outcome:
    return Simulation(for_fleet(TRACES[name], workers), fleet(workers), seed=seed).run()


@functools.cache
def at_full_size(name: str, seed: int = 1, workers: int = LIMITS.max_workers) -> Outcome:
    """Run a trace with all slots from the start."""
    full = Size(workers, LIMITS.max_concurrent)
    trace = for_fleet(TRACES[name], workers)
    return Simulation(trace, fleet(workers), fixed=full, seed=seed).run()


@pytest.mark.parametrize("seed", SEEDS)
def test_step_fills_pools_then_workers(seed: int) -> None:
    """Twenty times one worker's rate: full pools within 2 s of the step, all workers in 10 s."""
    outcome = scaled("step", seed)

    pools = outcome.seconds_until(
        STEP_SECONDS, lambda workers, slots: slots >= workers * LIMITS.max_concurrent
    )
    workers = outcome.seconds_until(STEP_SECONDS, lambda _, slots: slots >= FULL.slots)
    assert pools <= 2
    assert workers <= 10


@pytest.mark.parametrize("workers", COSTS)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", TRACES)
def test_costs_little_more_than_foresight(name: str, seed: int, workers: int) -> None:
    """Slot-seconds are little more than those of a scaler that knows the future."""
    outcome = scaled(name, seed, workers)
    needed = at_full_size(name, seed, workers).needed_slot_seconds(fleet(workers))
    assert outcome.slot_seconds() <= COSTS[workers] * needed


@pytest.mark.parametrize("workers", COSTS)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", TRACES)
def test_turns_at_most_once_a_minute(name: str, seed: int, workers: int) -> None:
    """Growing and shrinking alternate at most five times in five minutes."""
    assert len(scaled(name, seed, workers).reversals()) <= 5


@pytest.mark.parametrize("name", TRACES)
def test_waits_little_longer_than_at_full_size(name: str) -> None:
    """95 % of the tasks wait at most 5 s longer than with every slot from the start.

    On all loads but the step, which is beyond the full size, it is the target wait.
    """
    outcome, full = scaled(name), at_full_size(name)
    assert len(outcome.waits) == outcome.arrived
    longer = 5.0 if name == "step" else LIMITS.target_wait_seconds
    assert outcome.p95_wait() <= full.p95_wait() + longer


@pytest.mark.parametrize("name", TRACES)
def test_ends_small(name: str) -> None:
    """Five minutes of few tasks, or the end of many: the fleet is as small as its load."""
    outcome = scaled(name)
    if name in {"step", "idle"}:
        assert outcome.decisions[-1][1].size == (1, 1)


def test_missing_figures_under_load_cost_no_slot() -> None:
    """While nothing is seen for a minute in the middle of a step, the size stays."""
    gap = range(60, 120)
    outcome = Simulation(TRACES["step"], seen=lambda at: int(at) not in gap).run()

    sizes = {decision.size for at, decision in outcome.decisions if int(at) in gap}
    assert sizes == {FULL}


def test_every_change_is_explained() -> None:
    """Each change names both sizes and carries the figures it was made from."""
    outcome = scaled("ramp")
    changes = [d for _, d in outcome.decisions if d.direction is not Direction.HOLD]
    assert changes
    for decision in changes:
        assert f"to {decision.size}: " in decision.reason
        assert decision.figures["arrival_rate"] is not None


@pytest.mark.parametrize("name", TRACES)
def test_five_minutes_take_a_second(name: str) -> None:
    """The simulator is fast enough to be used in anger: a trace takes under a second of CPU."""
    started = time.process_time()
    Simulation(TRACES[name]).run()
    assert time.process_time() - started < 1.0
