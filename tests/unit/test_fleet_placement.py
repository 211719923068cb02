"""Which worker runs on which host."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bridge.fleet import place

HOSTS = st.sets(st.sampled_from(["a", "b", "c", "d"]), min_size=1)
PLACED = st.dictionaries(
    st.integers(1, 30), st.sampled_from(["a", "b", "c", "d"]), max_size=20
).map(
    lambda owner: {
        host: [n for n, other in owner.items() if other == host] for host in set(owner.values())
    }
)


@given(count=st.integers(0, 40), hosts=HOSTS, placed=PLACED, taken=st.sets(st.integers(31, 60)))
def test_split_is_even_and_no_number_is_given_twice(
    count: int, hosts: set[str], placed: dict[str, list[int]], taken: set[int]
) -> None:
    """Whatever was before: `count` different numbers, evenly over the live hosts, none taken."""
    result = place(count, hosts, placed, taken=taken)

    numbers = [number for own in result.values() for number in own]
    sizes = [len(own) for own in result.values()]
    assert len(numbers) == len(set(numbers)) == count
    assert set(result) == hosts
    assert max(sizes) - min(sizes) <= 1
    assert not taken & set(numbers)


@given(count=st.integers(0, 40), hosts=HOSTS, placed=PLACED)
def test_what_is_placed_well_stays(
    count: int, hosts: set[str], placed: dict[str, list[int]]
) -> None:
    """Placing again what was placed moves nothing."""
    once = place(count, hosts, placed)

    assert place(count, hosts, once) == once


def test_idle_ones_go_before_busy_ones() -> None:
    """Fewer workers: those without a task go, of equals the highest number."""
    placed = {"a": [1, 2, 3, 4, 5]}

    assert place(3, ["a"], placed, busy={5: 2, 4: 1})["a"] == [1, 4, 5]
    assert place(3, ["a"], placed)["a"] == [1, 2, 3]


def test_a_worker_to_be_rid_of_goes_first_and_does_not_come_back() -> None:
    """The one that was named goes although it is busy."""
    placed = {"a": [1, 2, 3]}

    assert place(2, ["a"], placed, busy={1: 5}, unwanted={1})["a"] == [2, 3]
    assert place(3, ["a"], {"a": [2, 3]}, unwanted={1})["a"] == [2, 3, 4]


def test_share_of_a_dead_host_goes_to_the_others() -> None:
    """Each live host gets half of it, with numbers that nobody has."""
    placed = {"a": [1, 2], "b": [3, 4], "c": [5, 6]}

    assert place(6, ["a", "b"], placed) == {"a": [1, 2, 5], "b": [3, 4, 6]}
