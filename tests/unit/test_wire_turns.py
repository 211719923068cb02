"""Whose turn it is to read, and who waits meanwhile."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from bridge.wire.turns import Turns
from tests.support.waiting import wait_until

PATIENCE_SECONDS = 30.0


class Source:
    """Reads block until something is put in, and count how many threads read at once."""

    def __init__(self) -> None:
        self.readers = 0
        self._come = threading.Semaphore(0)

    def put(self) -> None:
        self._come.release()

    def read(self, timeout: float | None) -> bool:
        self.readers += 1
        assert self.readers == 1
        try:
            return self._come.acquire(timeout=timeout)
        finally:
            self.readers -= 1


@pytest.fixture
def source() -> Source:
    return Source()


def test_who_has_what_it_waits_for_does_not_read(source: Source) -> None:
    """What another thread read before is not waited for again."""
    assert Turns().read(source.read, None, lambda: True)


def test_one_reads_and_all_learn_of_it(source: Source) -> None:
    """Threads that wait while another reads go on when its read has ended."""
    turns = Turns()
    with ThreadPoolExecutor(8) as threads:
        waiting = [threads.submit(turns.read, source.read, PATIENCE_SECONDS, bool)]
        wait_until(lambda: source.readers)
        waiting += [threads.submit(turns.read, source.read, PATIENCE_SECONDS, bool) for _ in "1234"]
        wait_until(lambda: len(turns._read._waiters) == 4)  # type: ignore[attr-defined]

        source.put()

        assert all(reading.result(PATIENCE_SECONDS) for reading in waiting)


def test_reader_that_fails_leaves_its_turn(source: Source) -> None:
    """The error is its own; the next thread reads."""
    turns = Turns()

    def fail(_: float | None) -> bool:
        raise ConnectionError("broken")

    with pytest.raises(ConnectionError):
        turns.read(fail, None, bool)

    with ThreadPoolExecutor(1) as threads:
        source.put()
        assert threads.submit(turns.read, source.read, PATIENCE_SECONDS, bool).result()


def test_reader_may_read_in_what_it_reads(source: Source) -> None:
    """A callback's own read keeps the turn, and others learn of it before the first has ended."""
    turns = Turns()

    def outer(timeout: float | None) -> bool:
        with ThreadPoolExecutor(1) as threads:
            other = threads.submit(turns.read, source.read, PATIENCE_SECONDS, bool)
            wait_until(lambda: turns._read._waiters)  # type: ignore[attr-defined]
            source.put()
            turns.read(source.read, timeout, bool)
            return other.result(PATIENCE_SECONDS)

    assert turns.read(outer, PATIENCE_SECONDS, bool)


def test_time_limits_of_reader_and_waiter_are_their_own(source: Source) -> None:
    """Who waits for another's read gives up at its own time."""
    turns = Turns()
    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(turns.read, source.read, PATIENCE_SECONDS, bool)
        wait_until(lambda: source.readers)

        assert not turns.read(source.read, 0.01, bool)

        source.put()
        assert reading.result()
    assert not turns.read(source.read, 0, bool)
