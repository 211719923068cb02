"""The outbox: who waits is served in order, and nothing is sent later."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from bridge.errors import NatsConnectionError, NatsTimeout
from bridge.submission.deadline import Deadline
from bridge.submission.outbox import Outbox
from bridge.wire import Message
from tests.support.waiting import wait_until

_PATIENCE_SECONDS = 10.0


class Gate:
    """Stands for pool and connection: notes every write and answers it once let through."""

    is_clustered = False

    def __init__(self) -> None:
        self.writes: list[list[str]] = []
        self.failure: Exception | None = None
        self.entered = threading.Semaphore(0)
        self.passes = threading.Semaphore(0)

    @contextmanager
    def connection(self) -> Iterator[Gate]:
        yield self

    def request_many(self, requests: Any, timeout: float) -> list[Message]:
        subjects = [subject for subject, _, _ in requests]
        self.writes.append(subjects)
        self.entered.release()
        assert self.passes.acquire(timeout=_PATIENCE_SECONDS)
        if self.failure is not None:
            raise self.failure
        return [Message(subject, 1, "", b"", b'{"stream":"S","seq":1}') for subject in subjects]


class Caller(threading.Thread):
    """Stores one message and keeps what came of it."""

    def __init__(self, outbox: Outbox, subject: str, seconds: float = _PATIENCE_SECONDS) -> None:
        super().__init__()
        self._call = (outbox, subject, seconds)
        self.acks: list[Any] = []
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        outbox, subject, seconds = self._call
        try:
            self.acks = outbox.store([(subject, b"", None)], Deadline(seconds))
        except NatsConnectionError as error:
            self.error = error

    def finish(self) -> Caller:
        self.join(_PATIENCE_SECONDS)
        assert not self.is_alive()
        return self


def _queued(outbox: Outbox, subject: str, behind: int) -> Caller:
    """Start a caller and return once it waits behind `behind` others."""
    caller = Caller(outbox, subject)
    wait_until(lambda: len(outbox._waiting) > behind)
    return caller


def test_who_waits_goes_out_together_and_in_order() -> None:
    """Callers who come while a write is on its way share the next one, first come first."""
    gate = Gate()
    outbox = Outbox(gate)  # type: ignore[arg-type]
    first = Caller(outbox, "first")
    assert gate.entered.acquire(timeout=_PATIENCE_SECONDS)
    others = [_queued(outbox, f"other-{number}", number) for number in range(3)]

    gate.passes.release(2)

    assert [len(each.finish().acks) for each in (first, *others)] == [1, 1, 1, 1]
    assert gate.writes == [["first"], ["other-0", "other-1", "other-2"]]


def test_a_caller_whose_time_is_up_sends_nothing_later() -> None:
    """A caller who gave up waiting is told so, and its message is never written."""
    gate = Gate()
    outbox = Outbox(gate)  # type: ignore[arg-type]
    first = Caller(outbox, "first")
    assert gate.entered.acquire(timeout=_PATIENCE_SECONDS)

    hasty = Caller(outbox, "hasty", 0.02).finish()
    gate.passes.release(2)
    first.finish()
    last = Caller(outbox, "last").finish()

    assert isinstance(hasty.error, NatsTimeout)
    assert len(last.acks) == 1
    assert gate.writes == [["first"], ["last"]]


def test_a_broken_write_fails_its_callers_and_frees_the_next() -> None:
    """Everybody in a write that broke gets an error; who comes after is served."""
    gate = Gate()
    outbox = Outbox(gate)  # type: ignore[arg-type]
    first = Caller(outbox, "first")
    assert gate.entered.acquire(timeout=_PATIENCE_SECONDS)
    others = [_queued(outbox, f"other-{number}", number) for number in range(2)]
    gate.passes.release()
    assert gate.entered.acquire(timeout=_PATIENCE_SECONDS)
    gate.failure = NatsConnectionError("gone")
    gate.passes.release()
    assert [str(each.finish().error) for each in others] == ["gone", "gone"]
    gate.failure = None
    gate.passes.release()

    assert len(first.finish().acks) == 1
    assert len(Caller(outbox, "last").finish().acks) == 1


def test_a_killed_sender_leaves_no_one_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ends the caller that sends, those it took along are told to look again."""
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    gate = Gate()
    outbox = Outbox(gate)  # type: ignore[arg-type]
    first = Caller(outbox, "first")
    assert gate.entered.acquire(timeout=_PATIENCE_SECONDS)
    sender, along = (_queued(outbox, name, number) for number, name in enumerate(("a", "b")))
    gate.passes.release()
    assert gate.entered.acquire(timeout=_PATIENCE_SECONDS)
    gate.failure = KeyError("no failure of NATS")
    gate.passes.release()

    first.finish()
    sender.finish()
    assert isinstance(along.finish().error, NatsTimeout)
