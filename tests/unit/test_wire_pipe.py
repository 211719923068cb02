"""The socket of a connection: what belongs together is one write."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from bridge.wire.pipe import Pipe

_PATIENCE_SECONDS = 10.0


@pytest.fixture
def ends() -> Iterator[tuple[Pipe, socket.socket]]:
    """A pipe, and the server's end of it."""
    near, far = socket.socketpair()
    near.setblocking(False)
    far.settimeout(_PATIENCE_SECONDS)
    pipe = Pipe(near, _PATIENCE_SECONDS)
    yield pipe, far
    pipe.close()
    far.close()


def test_what_is_sent_together_is_one_write(ends: tuple[Pipe, socket.socket]) -> None:
    """Nothing leaves before the end of the block, and then all of it, in order."""
    pipe, far = ends
    with pipe.together():
        pipe.send(b"first ")
        pipe.send(b"second")
        far.setblocking(False)
        with pytest.raises(BlockingIOError):
            far.recv(100)
        far.settimeout(_PATIENCE_SECONDS)

    assert far.recv(100) == b"first second"


def test_another_thread_writes_after_the_block(ends: tuple[Pipe, socket.socket]) -> None:
    """A keeper's write neither gets lost nor into the middle of what belongs together."""
    pipe, far = ends
    other = threading.Thread(target=pipe.send, args=(b"keeper",))
    with pipe.together():
        pipe.send(b"a")
        other.start()
        pipe.send(b"b")
    other.join(_PATIENCE_SECONDS)

    received = b""
    while len(received) < 8:
        received += far.recv(100)
    assert received in {b"abkeeper", b"keeperab"}


def test_a_block_that_fails_sends_nothing(ends: tuple[Pipe, socket.socket]) -> None:
    """Half of what belongs together never leaves, and the next write goes out as usual."""
    pipe, far = ends
    with contextlib.suppress(KeyError), pipe.together():
        pipe.send(b"half")
        raise KeyError
    pipe.send(b"whole")

    assert far.recv(100) == b"whole"
