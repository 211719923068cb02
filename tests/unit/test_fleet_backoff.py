"""When a crashed process is started again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.fleet.backoff import (
    CRASHES_BEFORE_LOST,
    STABLE_SECONDS,
    crashes_in_a_row,
    restart_delay_seconds,
)


@pytest.mark.parametrize(("crashes", "expected"), [(1, 0.5), (2, 1.0), (3, 2.0), (4, 4.0)])
def test_delay_doubles_with_each_crash(crashes: int, expected: float) -> None:
    """A process that keeps crashing is tried ever more rarely."""
    assert restart_delay_seconds(crashes, jitter=0) == expected


def test_lost_process_is_tried_slowly() -> None:
    """What crashed too often in a row no longer costs the host anything worth mentioning."""
    assert restart_delay_seconds(CRASHES_BEFORE_LOST, jitter=0) == 60.0


@given(crashes=st.integers(0, 10_000), jitter=st.floats(0, 1))
def test_delay_is_bounded_for_any_history(crashes: int, jitter: float) -> None:
    """Neither a long history nor any jitter makes the delay absurd."""
    assert 0.25 <= restart_delay_seconds(crashes, jitter) <= 60.0


def test_a_stable_run_forgives_earlier_crashes() -> None:
    """A crash after a healthy run is a first one again."""
    assert crashes_in_a_row(4, lived_seconds=STABLE_SECONDS) == 1
    assert crashes_in_a_row(4, lived_seconds=1.0) == 5


def test_a_killed_process_is_healthy_sooner() -> None:
    """Whoever is killed after having been up is not taken for one that cannot start."""
    assert crashes_in_a_row(3, 4.0, killed=True) == 1
    assert crashes_in_a_row(3, 1.0, killed=True) == 4
    assert crashes_in_a_row(3, 4.0) == 4
