"""Two beats at the same time: one sends, the other takes over."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from bridge.beat import LEASE_SECONDS
from bridge.names import Names
from bridge.wire import Connection, ConnectOptions, Message
from tests.support.nats import NatsServer
from tests.support.service import free_ports

_INTERVAL = timedelta(seconds=0.5)
StartBeat = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start_beat(nats_server: NatsServer, tmp_path: Path) -> Iterator[StartBeat]:
    """Starts `celery beat` on the server, or on a list of URLs; all are ended with the test."""
    beats: list[subprocess.Popen[bytes]] = []

    def start(broker_url: str = nats_server.url) -> subprocess.Popen[bytes]:
        with (tmp_path / f"beat-{len(beats)}.log").open("wb") as log:
            beat = subprocess.Popen(
                [
                    *(sys.executable, "-m", "celery", "-A", "tests.support.beat_app", "beat"),
                    *("-S", "bridge.beat:NatsScheduler", "--pidfile", "", "-l", "INFO"),
                ],
                env={**os.environ, "CELERY_BROKER_URL": broker_url},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        beats.append(beat)
        return beat

    yield start
    for beat in beats:
        beat.kill()
        beat.wait()


@pytest.fixture
def sent(nats_server: NatsServer) -> Iterator[Callable[[int, float], list[datetime]]]:
    """Waits until a number of tasks was sent; returns the time of each."""
    connection = Connection(ConnectOptions.from_url(nats_server.url))
    connection.connect()
    messages: list[Message] = []
    times: list[datetime] = []

    def on_message(message: Message) -> None:
        messages.append(message)
        times.append(datetime.now())  # noqa: DTZ005 (only differences matter)

    connection.subscribe(Names().queue_subjects("celery"), on_message)
    connection.flush()

    def wait(count: int, timeout: float) -> list[datetime]:
        deadline = time.monotonic() + timeout
        while len(messages) < count:
            connection.drain(deadline - time.monotonic())
        return list(times)

    yield wait
    connection.close()


def test_two_beats_do_not_send_twice_and_one_takes_over(
    start_beat: StartBeat, sent: Callable[[int, float], list[datetime]]
) -> None:
    """While both live each run is sent once; when the sender is killed the other goes on."""
    first = start_beat()
    sent(2, 20)
    start_beat()

    together = sent(16, 30)
    first.kill()
    first.wait()
    seen = len(sent(0, 1))
    killed = time.monotonic()
    after = sent(seen + 4, 30)

    gaps = [later - earlier for earlier, later in itertools.pairwise(together[2:])]
    assert min(gaps) > _INTERVAL / 2
    assert time.monotonic() - killed < LEASE_SECONDS + 6
    resumed = [later - earlier for earlier, later in itertools.pairwise(after[seen + 1 :])]
    assert min(resumed) > _INTERVAL / 2


def test_a_stopped_beat_hands_over_at_once(
    start_beat: StartBeat, sent: Callable[[int, float], list[datetime]]
) -> None:
    """A beat that ends in order gives its lease back: no run is missed for long."""
    first = start_beat()
    sent(2, 20)
    second = start_beat()
    sent(8, 20)

    first.terminate()
    first.wait(20)
    seen = len(sent(0, 1))
    ended = time.monotonic()
    sent(seen + 1, 20)

    assert second.poll() is None
    assert time.monotonic() - ended < LEASE_SECONDS - 1


def test_beat_sends_through_the_second_of_two_servers(
    start_beat: StartBeat, sent: Callable[[int, float], list[datetime]], nats_server: NatsServer
) -> None:
    """The lease is held, and tasks are sent, where the first server is dead."""
    [dead_port] = free_ports(1)
    start_beat(f"nats://127.0.0.1:{dead_port};{nats_server.url}")

    sent(2, 20)
