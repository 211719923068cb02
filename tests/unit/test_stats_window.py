"""Durations and throughput over the last minutes."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.stats.window import WINDOW_SECONDS, Window

NOW = 1_800_000_000.0


@given(st.lists(st.floats(1e-3, 1e4), min_size=1, max_size=200), st.floats(0.01, 1))
def test_percentile_is_within_a_bucket_of_the_exact_one(
    durations: list[float], share: float
) -> None:
    """A percentile is off by no more than the width of its bucket."""
    window = Window()
    for duration in durations:
        window.add(NOW, duration)

    [found] = window.percentiles(share)

    exact = sorted(durations)[math.ceil(share * len(durations)) - 1]
    assert found == pytest.approx(exact, rel=0.03)


def test_window_forgets_what_is_older() -> None:
    """An old task counts neither for percentiles nor for throughput."""
    window = Window()
    window.add(NOW, 1.0)

    window.expire(NOW + WINDOW_SECONDS + 10)

    assert window.slots == {}
    assert window.percentiles(0.5) == [None]


def test_throughput_counts_only_the_asked_time() -> None:
    """Tasks finished before the asked moment are left out."""
    window = Window()
    for age in (10, 30, 70, 200):
        window.add(NOW - age, None)

    assert window.finished_since(NOW - 60) == 2


def test_clock_that_was_set_back_does_no_harm() -> None:
    """A negative or absurd duration is counted in an outer bucket."""
    window = Window()
    window.add(NOW, -5.0)
    window.add(NOW, 1e300)

    low, high = window.percentiles(0.5, 1.0)

    assert low is not None
    assert high is not None
    assert low < 1e-4 < 1e6 < high


def test_window_survives_being_stored() -> None:
    """What is written to a bucket reads back as the same."""
    window = Window()
    window.add(NOW, 0.5)

    assert msgspec.json.decode(msgspec.json.encode(window), type=Window) == window
