"""Waiting for answers: awake where they come at once, asleep where they do not."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from bridge.wire import wait

_LATE_SECONDS = 0.001
#: more than it takes to find out what is usual
_MANY = 30


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket.socketpair()
    yield near, far
    near.close()
    far.close()


@pytest.fixture
def spins(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Grows with every wait awake."""
    seen: list[float] = []
    spin = wait._spin

    def counted(sock: socket.socket, seconds: float) -> bool:
        seen.append(seconds)
        return spin(sock, seconds)

    monkeypatch.setattr(wait, "_spin", counted)
    return seen


def test_a_near_server_is_awaited_awake(
    ends: tuple[socket.socket, socket.socket], spins: list[float]
) -> None:
    """The answer is there before a sleeping process would have woken."""
    near, far = ends
    answers = wait.Answers()
    far.send(b"+OK")

    assert all(answers.readable(near, 1.0) for _ in range(_MANY))
    assert len(spins) == _MANY


def test_a_far_server_is_awaited_asleep(
    ends: tuple[socket.socket, socket.socket], spins: list[float]
) -> None:
    """No processor time for what will not come soon, once that is known; and back again."""
    near, far = ends
    answers = wait.Answers()
    for _ in range(_MANY):
        assert not answers.readable(near, _LATE_SECONDS)
    spins.clear()
    assert not answers.readable(near, _LATE_SECONDS)
    assert not spins

    far.send(b"+OK")
    assert all(answers.readable(near, 1.0) for _ in range(_MANY))
    assert spins


def test_it_waits_awake_no_longer_than_it_may(
    ends: tuple[socket.socket, socket.socket], spins: list[float]
) -> None:
    """A time limit shorter than the wait awake is kept."""
    near, _ = ends
    assert not wait.Answers().readable(near, _LATE_SECONDS / 10)
    assert spins == [_LATE_SECONDS / 10]


def test_what_was_closed_meanwhile_counts_as_readable(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    """Whoever reads it learns that it is closed."""
    near, _ = ends
    near.close()
    assert wait.Answers().readable(near, 1.0)
