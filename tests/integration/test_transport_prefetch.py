"""Which messages of durable queues come, how many at a time, and in which order."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from kombu import Connection, Consumer, Producer, Queue

from tests.integration.conftest import Connect
from tests.support.inbox import RECEIVE_SECONDS, Inbox, send


def drain_until(connection: Connection, condition: Callable[[], bool]) -> None:
    """Hand over what comes until the condition holds, or fail."""
    deadline = time.monotonic() + RECEIVE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "too few messages came"
        with contextlib.suppress(TimeoutError):
            connection.drain_events(timeout=1)


def test_prefetch_is_the_most_that_is_unsettled(connect: Connect, name: str) -> None:
    """Exactly so many come, and one more for every ack."""
    queue = Queue(name)
    send(connect(), queue, *range(10))
    inbox = Inbox(connect(), queue, prefetch=3)

    inbox.wait(3)
    inbox.assert_quiet()
    inbox.messages[0].ack()
    inbox.wait(4)
    inbox.assert_quiet()

    assert inbox.bodies == [0, 1, 2, 3]


def test_prefetch_holds_over_all_priorities_and_queues(connect: Connect, name: str) -> None:
    """Many sources at once do not add up to more than the limit."""
    queues = [Queue(f"{name}-{number}") for number in range(3)]
    inbox = Inbox(connect(), *queues, prefetch=2)
    inbox.assert_quiet()
    sender = connect()
    for priority in range(10):
        for queue in queues:
            send(sender, queue, priority, priority=priority)

    inbox.wait(2)
    inbox.assert_quiet()
    for number in range(30):
        inbox.wait(number + 1)[number].ack()
    inbox.assert_quiet()

    assert sorted(inbox.bodies) == sorted(list(range(10)) * 3)


def test_prefetch_may_change_while_consuming(connect: Connect, name: str) -> None:
    """More is fetched at once when raised; when lowered, acks bring nothing until it fits."""
    queue = Queue(name)
    send(connect(), queue, *range(10))
    inbox = Inbox(connect(), queue, prefetch=1)
    inbox.wait(1)
    inbox.assert_quiet()

    inbox.consumer.qos(prefetch_count=4)
    inbox.wait(4)
    inbox.assert_quiet()

    inbox.consumer.qos(prefetch_count=2)
    inbox.messages[0].ack()
    inbox.messages[1].ack()
    inbox.assert_quiet()
    inbox.messages[2].ack()
    inbox.wait(5)
    inbox.assert_quiet()


def test_no_prefetch_is_no_limit(connect: Connect, name: str) -> None:
    """A consumer that never acks gets them all, as with AMQP."""
    queue = Queue(name)
    send(connect(), queue, *range(2500))

    inbox = Inbox(connect(), queue)
    inbox.wait(2500)

    assert inbox.bodies == list(range(2500))


def test_higher_priorities_come_first(connect: Connect, name: str) -> None:
    """Over the whole range; a message without priority counts as 0; equal ones stay in order."""
    queue = Queue(name)
    sender = connect()
    send(sender, queue, "none-1", priority=None)
    for priority in [0, 9, 4, 5, 6, 1, 8, 2, 7, 3]:
        send(sender, queue, f"p{priority}", priority=priority)
    send(sender, queue, "none-2", priority=None)

    inbox = Inbox(connect(), queue, prefetch=1)
    for number in range(12):
        inbox.wait(number + 1)[number].ack()

    order = ["p9", "p8", "p7", "p6", "p5", "p4", "p3", "p2", "p1", "none-1", "p0", "none-2"]
    assert inbox.bodies == order


def test_an_urgent_message_overtakes_a_backlog(connect: Connect, name: str) -> None:
    """It is next as soon as there is room, whatever waits below it."""
    queue = Queue(name)
    sender = connect()
    send(sender, queue, *range(50), priority=1)
    inbox = Inbox(connect(), queue, prefetch=1)
    inbox.wait(1)

    send(sender, queue, "urgent", priority=9)
    inbox.messages[0].ack()
    inbox.wait(2)

    assert inbox.bodies[:2] == [0, "urgent"]


def test_several_queues_on_one_channel_share_it_fairly(connect: Connect, name: str) -> None:
    """No queue starves behind another one's backlog."""
    queues = [Queue(f"{name}-a"), Queue(f"{name}-b")]
    sender = connect()
    send(sender, queues[0], *["a"] * 200)
    send(sender, queues[1], "b")

    inbox = Inbox(connect(), *queues, prefetch=1)
    seen = 0
    while "b" not in inbox.bodies:
        inbox.wait(seen + 1)[seen].ack()
        seen += 1

    assert seen < 50


def test_two_consumers_of_one_queue_share_its_messages(connect: Connect, name: str) -> None:
    """Each message goes to one of them; cancelling one leaves the other working."""
    queue = Queue(name)
    connection = connect()
    channel = connection.channel()
    first: list[Any] = []
    second: list[Any] = []
    one, two = (
        Consumer(channel, [queue], on_message=keep.append, no_ack=True) for keep in (first, second)
    )
    one.consume()
    two.consume()

    send(connect(), queue, *range(20))
    drain_until(connection, lambda: len(first) + len(second) == 20)
    one.cancel()
    send(connect(), queue, "last")
    drain_until(connection, lambda: bool(second) and second[-1].payload == "last")

    assert sorted(message.payload for message in first + second[:-1]) == list(range(20))


def test_control_messages_take_no_room(connect: Connect, name: str) -> None:
    """With room for one task, it comes also where what needs no slot has come in front of it."""
    tasks, mailbox = Queue(name), Queue(f"{name}.mail", exclusive=True)
    connection, sender = connect(), connect()
    inbox = Inbox(connection, tasks, mailbox)
    inbox.channel.intake.room = lambda: 1
    inbox.assert_quiet()

    with sender.channel() as channel:
        producer = Producer(channel)
        for number in range(3):
            producer.publish(number, routing_key=mailbox.name)
        producer.publish("task", routing_key=tasks.name)
    taken = inbox.take(4)

    assert [message.payload for message in taken if isinstance(message.payload, int)] == [0, 1, 2]
    [task] = [message for message in taken if message.payload == "task"]
    assert not task.delivery_info["redelivered"]
