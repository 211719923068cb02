"""An absolute size out of pool_grow and pool_shrink, against a worker made of its answers."""

from __future__ import annotations

from typing import Any

import pytest

from bridge.control import Resized, deltas
from bridge.errors import ScalingError

PREFORK = "celery.concurrency.prefork:TaskPool"


class PlainWorker:
    """Answers as Celery's own worker does; `deaf` has it accept a change and do nothing."""

    def __init__(self, size: int, *, busy: int = 0, deaf: bool = False) -> None:
        self.size = size
        self.busy = busy
        self.deaf = deaf
        self.changes: list[tuple[str, int]] = []

    def ask(self, command: str, **arguments: int) -> Any:
        if command in {"active", "reserved"}:
            return [{}] * (self.busy if command == "active" else 0)
        if command == "stats":
            processes = list(range(self.size))
            # Celery shows here what the worker was started with.
            return {
                "pool": {"implementation": PREFORK, "max-concurrency": 2, "processes": processes}
            }
        self.changes.append((command, arguments["n"]))
        if not self.deaf:
            self.size += arguments["n"] if command == "pool_grow" else -arguments["n"]
        return {"ok": "pool will change"}

    def resize(self, target: int) -> Resized:
        return deltas.resize_by_deltas(self.ask, "w@h", target, self.ask("stats"))


def test_growth_is_the_difference_to_the_true_size() -> None:
    """The change is counted from the children that are there."""
    worker = PlainWorker(3)

    assert worker.resize(5) == Resized(before=3, after=5, target=5, pending_shrink=0)
    assert worker.changes == [("pool_grow", 2)]


def test_same_size_changes_nothing() -> None:
    """Asking twice for one size is asking once."""
    worker = PlainWorker(3)

    assert worker.resize(3) == Resized(before=3, after=3, target=3, pending_shrink=0)
    assert worker.changes == []


def test_shrink_takes_only_what_is_idle() -> None:
    """Celery's pool_shrink might end a task, so slots in use are left, and counted as pending."""
    worker = PlainWorker(6, busy=4)

    assert worker.resize(1) == Resized(before=6, after=4, target=1, pending_shrink=3)
    assert worker.changes == [("pool_shrink", 2)]


def test_busy_worker_is_not_shrunk() -> None:
    """Where every slot is in use the answer is a refusal, and no command is sent."""
    worker = PlainWorker(3, busy=5)

    with pytest.raises(ScalingError, match="busy in all its 3 slots"):
        worker.resize(1)
    assert worker.changes == []


def test_change_that_does_not_come_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """An accepted command is not yet a new size."""
    monkeypatch.setattr(deltas, "SETTLE_SECONDS", 0.0)

    with pytest.raises(ScalingError, match="asked for 5 slots and has 3"):
        PlainWorker(3, deaf=True).resize(5)


def test_refusal_of_a_worker_is_passed_on() -> None:
    """The worker's own words reach whoever asked."""
    with pytest.raises(ScalingError, match="w@h cannot be resized: it is Sunday"):
        deltas.accepted("w@h", {"error": "it is Sunday"})


def test_size_of_greenlets_is_their_limit() -> None:
    """Only prefork pools list processes."""
    stats = {"pool": {"implementation": "celery.concurrency.gevent:TaskPool", "max-concurrency": 7}}

    assert deltas.size_of(stats) == 7
