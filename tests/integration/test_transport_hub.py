"""The transport on Celery's event loop: what it sends when, and what wakes it."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from kombu import Connection, Consumer, Producer, Queue
from kombu.asynchronous import Hub

from bridge.transport import broker as broker_module
from tests.integration.conftest import Connect
from tests.support.waiting import wait_until

_SECONDS = 30.0


@pytest.fixture
def hub() -> Iterator[Hub]:
    """kombu's own event loop, as a worker runs it."""
    hub = Hub()
    yield hub
    hub.close()


def turn_until(hub: Hub, condition: Callable[[], bool]) -> float:
    """Run the loop until the condition holds; return the seconds it took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() < started + _SECONDS, "too few messages came"
        next(hub.loop)
    return time.monotonic() - started


def consume(
    connection: Connection, queue: Queue, prefetch: int, on_message: Callable[[Any], None]
) -> None:
    """Consume on a channel of its own."""
    consumer = Consumer(connection.channel(), [queue], on_message=on_message)
    consumer.qos(prefetch_count=prefetch)
    consumer.consume()


def publish(connection: Connection, queue: Queue, count: int) -> None:
    """Send numbers to a durable queue."""
    producer = Producer(connection.channel())
    for number in range(count):
        producer.publish(number, routing_key=queue.name, declare=[queue])


def count_writes(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return how many acks and pulls each write has from now on."""
    wire = connection.connection.wire
    sent: list[int] = []
    publish_many = wire.publish_many

    def counted(messages: list[Any]) -> None:
        sent.append(len(messages))
        publish_many(messages)

    monkeypatch.setattr(wire, "publish_many", counted)
    return sent


@pytest.mark.parametrize("acks_early", [False, True])
def test_what_another_thread_ends_wakes_the_hub(
    connect: Connect, name: str, hub: Hub, acks_early: bool
) -> None:
    """The hub sleeps while a thread pool ends a task, and the next message comes at once.

    Where it was acknowledged before, the thread says that it has ended. Asleep, the hub looks
    around once a second: 20 messages, one at a time, would take 20 s.
    """
    queue, received, running, connection = Queue(name), [], set(), connect()
    broker = connection.connection
    publish(connect(), queue, 20)

    def on_message(message: Any) -> None:
        received.append(message)
        running.add(message)
        if acks_early:
            message.ack()
        message.channel.intake.room = lambda: 1 - len(running)
        threading.Timer(0.01, end, [message]).start()

    def end(message: Any) -> None:
        running.discard(message)
        if acks_early:
            broker.ask_for_more()
        else:
            message.ack()

    connection.register_with_event_loop(hub)
    consume(connection, queue, 1, on_message)

    assert turn_until(hub, lambda: len(received) == 20) < 10


def test_what_another_thread_gives_back_wakes_the_hub(
    connect: Connect, name: str, hub: Hub
) -> None:
    """A message of a queue in memory that a thread pool requeues comes again at once."""
    queue, received, connection = Queue(name, exclusive=True), [], connect()

    def on_message(message: Any) -> None:
        received.append(message)
        threading.Timer(0.01, message.requeue).start()

    connection.register_with_event_loop(hub)
    consume(connection, queue, 1, on_message)
    connect().Producer().publish(0, routing_key=name)

    assert turn_until(hub, lambda: len(received) == 20) < 10


def test_what_wakes_the_hub_too_late_writes_into_no_other_file(connect: Connect, hub: Hub) -> None:
    """A thread may be about to wake it when the connection goes and its pipe's number is reused."""
    connection = connect()
    connection.register_with_event_loop(hub)
    broker = connection.connection
    waker = broker._waker  # what a thread has that is about to write
    number = waker.fileno()
    broker.collect()
    with ExitStack() as files:
        others = [files.enter_context(end) for _ in range(4) for end in socket.socketpair()]

        waker.wake()
        broker._wake()

        assert select.select(others, [], [], 0)[0] == []
    del waker
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


def test_acks_and_pulls_of_a_moment_go_out_together(
    connect: Connect, name: str, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that takes a backlog writes much less often than once a message."""
    queue, received, connection = Queue(name), [], connect()
    publish(connect(), queue, 400)
    sent = count_writes(connection, monkeypatch)

    def on_message(message: Any) -> None:
        received.append(message.payload)
        message.ack()

    connection.register_with_event_loop(hub)
    consume(connection, queue, 16, on_message)
    turn_until(hub, lambda: len(received) == 400)

    assert received == list(range(400))
    assert len(sent) < 200


def test_an_ack_alone_does_not_hold_up_its_task(
    connect: Connect, name: str, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An early one comes while the task is on its way to its process; the write can wait."""
    monkeypatch.setattr(broker_module, "_GATHER_SECONDS", _SECONDS)
    queue, received, connection = Queue(name), [], connect()
    connection.register_with_event_loop(hub)
    consume(connection, queue, 8, received.append)
    publish(connect(), queue, 1)
    turn_until(hub, lambda: received)
    broker = connection.connection
    broker.tick()
    sent = count_writes(connection, monkeypatch)

    received[0].ack()
    broker.tick()
    assert sent == []
    broker._end_gathering()
    broker.tick()
    assert sent == [1]


def test_acks_are_sent_while_the_hub_stands_still(connect: Connect, name: str, hub: Hub) -> None:
    """A solo pool runs a task on the hub's thread; who is done before it must not come again."""
    queue, connection = Queue(name), connect(transport_options={"ack_wait": 3})
    other = connect()
    publish(other, queue, 2)
    received, unacknowledged = [], []

    def on_message(message: Any) -> None:
        received.append(message)
        if len(received) == 1:
            message.ack()
        else:
            wait_until(lambda: unacknowledged_on(other, name) == 1)
            unacknowledged.append(message)

    connection.register_with_event_loop(hub)
    consume(connection, queue, 8, on_message)

    turn_until(hub, lambda: unacknowledged)
    assert [message.payload for message in received] == [0, 1]


def unacknowledged_on(connection: Connection, queue: str) -> int:
    """How many messages of a queue are delivered and not acknowledged."""
    infos = connection.connection.stored_queues.infos(queue)
    return sum(info["num_ack_pending"] for info in infos)


def test_gathered_acks_are_sent_before_a_connection_closes(
    connect: Connect, name: str, hub: Hub
) -> None:
    """What was acknowledged a moment before a clean stop does not come again."""
    queue, received, connection = Queue(name), [], connect()
    publish(connect(), queue, 3)

    def on_message(message: Any) -> None:
        received.append(message.payload)
        message.ack()

    connection.register_with_event_loop(hub)
    consume(connection, queue, 8, on_message)
    turn_until(hub, lambda: len(received) == 3)
    connection.release()

    assert unacknowledged_on(connect(), name) == 0


def test_a_connection_that_retires_hands_over_no_control_command(
    connect: Connect, name: str, hub: Hub
) -> None:
    """Behind one that ends its worker lies another: it must not end the end."""
    connection = connect()
    commands: list[Any] = []
    mailbox = Queue(name, exclusive=True)

    def on_command(message: Any) -> None:
        commands.append(message.payload)
        raise SystemExit

    Consumer(connection.channel(), [mailbox], on_message=on_command, no_ack=True).consume()
    connection.transport.register_with_event_loop(connection.connection, hub)
    producer = Producer(connect().channel())
    for number in range(2):
        producer.publish(number, routing_key=name)
    producer.channel.broker.wire.flush()

    with pytest.raises(SystemExit):
        turn_until(hub, lambda: False)
    connection.connection.retire()

    assert commands == [0]
