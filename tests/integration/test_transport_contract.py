"""What kombu's own suite found: expiry and priority on core NATS, the order of what goes back."""

from __future__ import annotations

import time

import pytest
from kombu import Consumer, Queue
from kombu.common import itermessages

from bridge.transport.transient import EXPIRES_AT
from tests.integration.conftest import Connect
from tests.support.inbox import Inbox, send


def test_transient_messages_come_by_priority(connect: Connect, name: str) -> None:
    """A queue in memory hands over the highest priority first, and equals in order."""
    connection = connect()
    queue = connection.SimpleBuffer(name)
    for body, priority in (("low", 1), ("high", 7), ("also low", 1)):
        queue.put(body, priority=priority)
    connection.connection.wire.flush()
    taken = [queue.get(timeout=5).payload for _ in range(3)]
    queue.close()
    assert taken == ["high", "low", "also low"]


def test_transient_messages_are_taken_by_priority(connect: Connect, name: str) -> None:
    """`basic_get` on a queue in memory takes the highest priority first."""
    connection = connect()
    channel = connection.default_channel
    channel.queue_declare(name, exclusive=True)
    producer = connection.Producer()
    for body, priority in (("low", 1), ("high", 7)):
        producer.publish(body, routing_key=name, priority=priority)
    connection.connection.wire.flush()
    taken = [channel.message_to_python(channel.basic_get(name)).decode() for _ in range(2)]
    assert taken == ["high", "low"]
    assert channel.basic_get(name) is None


def test_expired_transient_message_is_not_delivered(connect: Connect, name: str) -> None:
    """A message that outlived its time in an unread socket is dropped, a living one is not."""
    connection = connect()
    channel = connection.default_channel
    channel.queue_declare(name, exclusive=True)
    producer = connection.Producer()
    producer.publish("dead", routing_key=name, expiration=0.001)
    producer.publish("alive", routing_key=name, expiration=60)
    deadline = time.time() + 0.001
    while time.time() < deadline:
        connection.connection.wire.flush()
    raw = channel.basic_get(name)
    assert channel.message_to_python(raw).decode() == "alive"
    assert raw.wire.headers[EXPIRES_AT].isdecimal()
    assert channel.basic_get(name) is None


@pytest.mark.parametrize("count", [2, 5])
def test_what_goes_back_after_a_cancel_keeps_its_order(
    connect: Connect, name: str, count: int
) -> None:
    """Messages given back once their consumer is gone come again in the order they had."""
    connection = connect()
    queue = Queue(name, routing_key=name)
    producer = connection.Producer()
    for number in range(count):
        producer.publish(number, routing_key=name, declare=[queue])
    held = []
    with Consumer(connection, [queue], on_message=held.append, accept=["json"]):
        while len(held) < count:
            connection.drain_events(timeout=5)
    for message in held:
        message.requeue()
    again: list[int] = []
    with Consumer(connection, [queue], callbacks=[lambda body, message: again.append(body)]):
        while len(again) < count:
            connection.drain_events(timeout=5)
    assert again == list(range(count))


@pytest.mark.parametrize("no_ack", [False, True])
def test_a_call_counts_for_one_message(connect: Connect, name: str, no_ack: bool) -> None:
    """Also where `drain_events` hands over all that is there, but for what would not come again."""
    connection = connect()
    queue = Queue(name)
    send(connection, queue, 0, 1, 2)
    inbox = Inbox(connection, queue, no_ack=no_ack)
    for count in (1, 2, 3):
        connection.drain_events(timeout=5)
        assert inbox.bodies == list(range(count if no_ack else 3))
    with pytest.raises(TimeoutError):
        connection.drain_events(timeout=0.1)


def test_a_prefetch_of_one_brings_one(connect: Connect, name: str) -> None:
    """What is acknowledged at once makes room, but for the next call's message."""
    connection, queue = connect(), Queue(name)
    send(connection, queue, 0, 1, 2)
    inbox = Inbox(connection, queue, prefetch=1)
    inbox.consumer.on_message = lambda message: (inbox.messages.append(message), message.ack())
    for count in (1, 2, 3):
        connection.drain_events(timeout=5)
        assert inbox.bodies == list(range(count))


@pytest.mark.parametrize("no_ack", [False, True])
def test_a_limit_is_kept(connect: Connect, name: str, no_ack: bool) -> None:
    """kombu's `itermessages` yields as many as it was asked for, and the others are not lost."""
    connection, queue = connect(), Queue(name)
    send(connection, queue, 0, 1, 2, 3)
    with connection.channel() as channel:
        taken = itermessages(connection, channel, queue, limit=3, timeout=5, no_ack=no_ack)
        for number, (body, message) in enumerate(taken):
            assert body == number
            if not no_ack:
                message.ack()
        assert number == 2
    left = queue.bind(connection.channel()).get(no_ack=True)
    assert left is not None
    assert left.payload == 3
