"""What kombu's own suite found: expiry and priority on core NATS, the order of what goes back."""

from __future__ import annotations

import time

import pytest
from kombu import Consumer, Queue

from bridge.transport.transient import EXPIRES_AT
from tests.integration.conftest import Connect


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
