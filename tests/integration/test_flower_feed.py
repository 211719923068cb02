"""The feed behind Flower's task list gives every stored event once, whatever happens between."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator

import pytest

from bridge.errors import NatsConnectionError
from bridge.flower import feed
from bridge.flower.feed import EventFeed, Position, StoredEvent
from bridge.names import Names
from bridge.wire import Connection, ConnectOptions, JetStream
from tests.support.nats import NatsServer
from tests.support.waiting import wait_until

_EVERYTHING = 1_000_000


@pytest.fixture
def names() -> Names:
    return Names(f"feed-{uuid.uuid4().hex[:8]}")


@pytest.fixture
def js(shared_nats: NatsServer, names: Names) -> Iterator[JetStream]:
    connection = Connection(ConnectOptions.from_url(shared_nats.url))
    connection.connect()
    jetstream = JetStream(connection)
    jetstream.ensure_topology(names)
    yield jetstream
    connection.close()


class _Reader:
    """Reads with a connection of its own, as Flower after each interruption."""

    def __init__(self, url: str, names: Names, position: Position, limit: int) -> None:
        self.events: list[StoredEvent] = []
        self._connection = Connection(ConnectOptions.from_url(url))
        self._connection.connect()
        js = JetStream(self._connection)
        self.feed = EventFeed(js, names, position, limit, self.events.append)

    def wait(self, count: int) -> list[bytes]:
        """Return the payloads of all events once there are `count`."""
        while len(self.events) < count:
            self._connection.drain(10)
        return [event.message.payload for event in self.events]

    def drain(self, seconds: float) -> None:
        self._connection.drain(seconds)

    def close(self) -> None:
        self._connection.close()


Read = Callable[..., _Reader]


@pytest.fixture
def read(shared_nats: NatsServer, names: Names) -> Iterator[Read]:
    readers: list[_Reader] = []

    def open_reader(position: Position, limit: int = _EVERYTHING) -> _Reader:
        readers.append(_Reader(shared_nats.url, names, position, limit))
        return readers[-1]

    yield open_reader
    for reader in readers:
        reader.close()


def _tell(js: JetStream, names: Names, payloads: list[bytes], key: str = "task.sent") -> None:
    """Send events; return once they are stored, which nobody tells the sender."""
    last_seq = _last_seq(js, names) + len(payloads)
    subject = names.exchange_subject("celeryev", key)
    for payload in payloads:
        js.connection.publish(subject, payload)
    wait_until(lambda: _last_seq(js, names) == last_seq)


def _last_seq(js: JetStream, names: Names) -> int:
    return int(js.api(f"STREAM.INFO.{names.event_stream}")["state"]["last_seq"])


def _numbers(first: int, last: int) -> list[bytes]:
    return [b"%d" % number for number in range(first, last)]


def test_each_event_comes_once_over_two_connections(
    js: JetStream, names: Names, read: Read
) -> None:
    """The second connection begins where the first ended, with what came between."""
    position = Position()
    _tell(js, names, _numbers(0, 5))
    first = read(position)
    assert first.wait(5) == _numbers(0, 5)
    first.close()
    _tell(js, names, _numbers(5, 8))

    second = read(position)

    assert second.wait(3) == _numbers(5, 8)
    _tell(js, names, [b"live"])
    assert second.wait(4)[-1] == b"live"
    assert position.past_seq == 5


def test_more_than_the_server_sends_unasked(js: JetStream, names: Names, read: Read) -> None:
    """A backlog beyond the server's window arrives whole and in order: flow control is answered."""
    padding = b"x" * 2000
    backlog = [b"%d %s" % (number, padding) for number in range(20_000)]
    _tell(js, names, backlog)

    assert read(Position()).wait(len(backlog)) == backlog


def test_limit_counts_task_events_alone(js: JetStream, names: Names, read: Read) -> None:
    """The last three task events come, however many heartbeats lie between them."""
    for number in range(6):
        _tell(js, names, [b"beat"] * 10, "worker.heartbeat")
        _tell(js, names, [b"%d" % number])

    reader = read(Position(), 3)

    assert reader.wait(3) == _numbers(3, 6)


def test_limit_of_nothing_gives_what_comes_later(js: JetStream, names: Names, read: Read) -> None:
    """With no room for the past, the feed begins with the next event."""
    _tell(js, names, _numbers(0, 5))
    reader = read(Position(), 0)

    _tell(js, names, [b"new"])

    assert reader.wait(1) == [b"new"]


def test_stream_made_anew_is_read_from_its_begin(js: JetStream, names: Names, read: Read) -> None:
    """A position in a stream that is gone does not hide the events of its successor."""
    position = Position()
    _tell(js, names, _numbers(0, 5))
    reader = read(position)
    reader.wait(5)
    reader.close()
    js.api(f"STREAM.DELETE.{names.event_stream}")
    js.ensure_topology(names)
    _tell(js, names, [b"successor"])

    assert read(position).wait(1) == [b"successor"]


def test_lost_consumer_is_noticed(
    js: JetStream, names: Names, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the server has forgotten the consumer, the feed says so instead of waiting for ever."""
    monkeypatch.setattr(feed, "_HEARTBEAT_SECONDS", 0.2)
    monkeypatch.setattr(feed, "_SILENCE_SECONDS", 0.6)
    reader = read(Position())
    reader.drain(5)
    reader.feed.check()
    [consumer] = js.api(f"CONSUMER.NAMES.{names.event_stream}")["consumers"]
    js.api(f"CONSUMER.DELETE.{names.event_stream}.{consumer}")

    with pytest.raises(NatsConnectionError, match="no sign of life"):
        _check_for(reader, seconds=10)


def _check_for(reader: _Reader, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        reader.feed.check()
        try:
            reader.drain(0.1)
        except TimeoutError:
            continue
