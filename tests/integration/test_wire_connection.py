"""Publish, subscribe and request on one connection, its limits, and several threads on it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from bridge.errors import NatsConnectionError, NatsTimeout
from bridge.wire import Connection, ConnectOptions, Message, PayloadTooLarge
from tests.support.nats import NatsServer
from tests.support.wire import PATIENCE_SECONDS, connected, drain_until_closed, read_until

Serve = Callable[[str, Callable[[Message], bytes]], None]


@pytest.fixture
def ours(shared_nats: NatsServer) -> Iterator[Connection]:
    with connected(shared_nats.url) as connection:
        yield connection


@pytest.fixture
def serve(shared_nats: NatsServer) -> Iterator[Serve]:
    """Answers requests on a subject from another thread and connection."""
    connections: list[Connection] = []
    threads: list[threading.Thread] = []

    def start(subject: str, answer: Callable[[Message], bytes]) -> None:
        connection = Connection(ConnectOptions.from_url(shared_nats.url))
        connection.connect()
        connections.append(connection)
        connection.subscribe(subject, lambda m: connection.publish(m.reply, answer(m)))
        connection.flush()
        thread = threading.Thread(target=drain_until_closed, args=(connection,))
        threads.append(thread)
        thread.start()

    yield start
    for connection in connections:
        connection.close()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)


def test_request_is_answered(ours: Connection, serve: Serve) -> None:
    """The first reply to a request is returned."""
    serve("wire.echo", lambda message: message.payload.upper())

    assert ours.request("wire.echo", b"abc").payload == b"ABC"


def test_replies_come_in_the_order_of_the_requests(ours: Connection, serve: Serve) -> None:
    """Many requests go out in one write, and each gets the reply that is its own."""
    serve("wire.even", lambda message: b"even " + message.payload)
    serve("wire.odd", lambda message: b"odd " + message.payload)
    requests = [(f"wire.{('even', 'odd')[n % 2]}", b"%d" % n, None) for n in range(500)]

    replies = ours.request_many(requests, timeout=PATIENCE_SECONDS)

    assert [reply.payload for reply in replies] == [
        b"%s %d" % ((b"even", b"odd")[n % 2], n) for n in range(500)
    ]


def test_nobody_listens(ours: Connection) -> None:
    """A request nobody can answer fails at once, not after its time, and is recoverable."""
    started = time.monotonic()
    with pytest.raises(NatsConnectionError, match="nobody answers") as caught:
        ours.request("wire.nobody", b"", timeout=30)

    assert not isinstance(caught.value, NatsTimeout)
    assert time.monotonic() - started < PATIENCE_SECONDS
    ours.flush()


def test_request_times_out_and_its_late_reply_harms_nobody(
    shared_nats: NatsServer, ours: Connection
) -> None:
    """After a timeout the connection goes on, and the late reply is not taken for another's."""
    with connected(shared_nats.url) as service:
        late: list[Message] = []
        service.subscribe("wire.slow", late.append)
        service.flush()
        with pytest.raises(NatsTimeout):
            ours.request("wire.slow", b"first", timeout=0.1)
        read_until(service, lambda: late)
        service.publish(late[0].reply, b"too late")
        service.flush()
        service.subscribe("wire.fast", lambda m: service.publish(m.reply, b"in time"))
        service.flush()
        thread = threading.Thread(target=drain_until_closed, args=(service,))
        thread.start()

        assert ours.request("wire.fast", b"second").payload == b"in time"

        service.close()
        thread.join(PATIENCE_SECONDS)


def test_collect_returns_answers_until_the_last(ours: Connection) -> None:
    """One request may be answered by several messages; the last one ends it."""

    def answer(message: Message) -> None:
        for part in (b"1", b"2", b"end", b"after"):
            ours.publish(message.reply, part)

    ours.subscribe("wire.parts", answer)

    answers = ours.collect("wire.parts", b"", lambda message: message.payload == b"end")

    assert [message.payload for message in answers] == [b"1", b"2", b"end"]
    ours.flush()


def test_unsubscribe_and_flush_misses_nothing_sent_before(ours: Connection) -> None:
    """What the server had sent before the end of a subscription still reaches its callback."""
    received: list[bytes] = []
    sid = ours.subscribe("wire.ending", lambda m: received.append(m.payload))
    ours.publish("wire.ending", b"before")
    ours.unsubscribe_and_flush(sid)
    ours.publish("wire.ending", b"after")
    ours.flush()

    assert received == [b"before"]


def test_callback_may_ask_the_server_itself(ours: Connection, serve: Serve) -> None:
    """A request from within a callback works, and messages are handed over in order."""
    serve("wire.inner", lambda message: message.payload)
    begun: list[bytes] = []
    answers: list[bytes] = []

    def receive(message: Message) -> None:
        begun.append(message.payload)
        answers.append(ours.request("wire.inner", message.payload).payload)

    ours.subscribe("wire.outer", receive)
    ours.publish_many([("wire.outer", b"%d" % n, "") for n in range(5)])
    read_until(ours, lambda: len(answers) == 5)
    assert begun == [b"0", b"1", b"2", b"3", b"4"]
    assert sorted(answers) == begun


def test_failing_callback_loses_no_other_message(ours: Connection) -> None:
    """What was read together with a message whose callback fails is still handed over."""
    received: list[bytes] = []

    def receive(message: Message) -> None:
        received.append(message.payload)
        if message.payload == b"bad":
            raise RuntimeError("callback failed")

    ours.subscribe("wire.failing", receive)
    ours.publish_many([("wire.failing", payload, "") for payload in (b"1", b"bad", b"2", b"3")])

    with pytest.raises(RuntimeError, match="callback failed"):
        read_until(ours, lambda: len(received) == 4)
    read_until(ours, lambda: len(received) == 4)
    assert received == [b"1", b"bad", b"2", b"3"]


def test_too_large_message_is_not_sent(ours: Connection) -> None:
    """A message over the server's limit is refused here, and the connection stays usable."""
    limit = ours.server_info["max_payload"]
    received: list[int] = []
    ours.subscribe("wire.large", lambda m: received.append(len(m.payload)))

    for send in (
        lambda: ours.publish("wire.large", b"x" * (limit + 1)),
        lambda: ours.publish("wire.large", b"x" * limit, {"K": "v"}),
        lambda: ours.request("wire.large", b"x" * (limit + 1)),
        lambda: ours.publish_many([("wire.large", b"x" * (limit + 1), "")]),
    ):
        with pytest.raises(PayloadTooLarge, match="max_payload"):
            send()
    ours.publish("wire.large", b"x" * limit)
    ours.flush(timeout=PATIENCE_SECONDS)

    assert received == [limit]


def test_large_messages_both_ways_while_another_thread_writes(ours: Connection) -> None:
    """8 MB messages come back whole though a second thread's frames go out between them."""
    payload = bytes(range(256)) * (8 * 4096)
    received: list[bytes] = []
    small: list[bytes] = []
    ours.subscribe("wire.big", lambda m: received.append(m.payload))
    ours.subscribe("wire.small", lambda m: small.append(m.payload))

    def write_small() -> None:
        for number in range(300):
            ours.publish("wire.small", b"%d" % number)

    writer = threading.Thread(target=write_small)
    writer.start()
    for _ in range(3):
        ours.publish("wire.big", payload)
    writer.join(PATIENCE_SECONDS)
    ours.flush(timeout=PATIENCE_SECONDS)

    assert received == [payload] * 3
    assert small == [b"%d" % number for number in range(300)]


def test_closing_wakes_the_reader(ours: Connection) -> None:
    """A thread that waits without limit ends when another closes the connection."""
    outcome: list[Exception] = []
    reading = threading.Event()
    ours.subscribe("wire.wake", lambda _: reading.set())

    def read() -> None:
        try:
            while True:
                ours.drain()
        except NatsConnectionError as error:
            outcome.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    ours.publish("wire.wake", b"")
    assert reading.wait(PATIENCE_SECONDS)
    ours.close()
    reader.join(PATIENCE_SECONDS)

    assert len(outcome) == 1
    with pytest.raises(NatsConnectionError, match="closed"):
        ours.publish("wire.wake", b"")


def test_unused_connection_says_what_is_missing(shared_nats: NatsServer) -> None:
    """Before `connect`, using a connection is an error of the connection kind."""
    connection = Connection(ConnectOptions.from_url(shared_nats.url))

    assert not connection.connected
    with pytest.raises(NatsConnectionError, match="not connected"):
        connection.publish("a", b"")
