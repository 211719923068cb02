"""Messages of durable queues through kombu: given out and settled."""

from __future__ import annotations

import time

import pytest
from kombu import Connection, Queue

from bridge.transport.transport import MAX_DELIVERIES
from tests.integration.conftest import Connect
from tests.support.inbox import Inbox, send
from tests.support.waiting import wait_until


def waiting(connection: Connection, queue: Queue) -> int:
    """How many messages the broker counts as waiting."""
    with connection.channel() as channel:
        return int(queue.bind(channel).queue_declare(passive=True).message_count)


def test_a_message_comes_with_all_it_was_sent_with(connect: Connect, name: str) -> None:
    """Body, headers and properties reach a consumer on another connection."""
    queue = Queue(name)
    send(
        connect(),
        queue,
        {"text": "grüße", "n": [1, None]},
        headers={"a": "1", "b": {"c": 2}},
        correlation_id="id-1",
        reply_to="answers",
        priority=7,
    )

    [message] = Inbox(connect(), queue).take()

    assert message.payload == {"text": "grüße", "n": [1, None]}
    assert message.headers == {"a": "1", "b": {"c": 2}}
    assert message.properties["correlation_id"] == "id-1"
    assert message.properties["reply_to"] == "answers"
    assert message.delivery_info["routing_key"] == name
    assert message.delivery_info["exchange"] == ""
    assert message.delivery_info["priority"] == 7
    assert message.delivery_info["redelivered"] is False
    assert (message.content_type, message.content_encoding) == ("application/json", "utf-8")


@pytest.mark.parametrize(
    ("serializer", "compression"),
    [("json", "zlib"), ("pickle", None), ("yaml", None), ("json", "bzip2")],
)
def test_bodies_of_any_form_survive(
    connect: Connect, name: str, serializer: str, compression: str | None
) -> None:
    """Binary, compressed and text bodies come back as the objects they were."""
    queue = Queue(name)
    body = {"words": ["x" * 1000, "ü"], "number": 5}
    send(connect(), queue, body, serializer=serializer, compression=compression)

    inbox = Inbox(connect(), queue)
    [message] = inbox.take()
    message.accept = {message.content_type}

    assert message.decode() == body


def test_acknowledged_messages_are_gone(connect: Connect, name: str) -> None:
    """Neither this consumer nor the next one sees them again."""
    queue = Queue(name)
    send(connect(), queue, "one", "two")
    first = Inbox(connect(), queue)
    for message in first.take(2):
        message.ack()
    first.connection.release()

    inbox = Inbox(connect(), queue)

    inbox.assert_quiet()
    assert waiting(connect(), queue) == 0


def test_ack_multiple_settles_all_up_to_it(connect: Connect, name: str) -> None:
    """One ack stands for everything delivered before it, and nothing after."""
    queue = Queue(name)
    send(connect(), queue, 1, 2, 3)
    inbox = Inbox(connect(), queue)
    messages = inbox.take(3)

    messages[1].ack(multiple=True)
    inbox.close()

    second = Inbox(connect(), queue)
    assert [message.payload for message in second.take()] == [3]
    second.assert_quiet()


def test_requeued_message_comes_again_and_says_so(connect: Connect, name: str) -> None:
    """`requeue` returns it at once, marked and with the count of earlier deliveries."""
    queue = Queue(name)
    send(connect(), queue, "again")
    inbox = Inbox(connect(), queue)
    [first] = inbox.take()
    assert "x-delivery-count" not in first.headers

    first.requeue()
    [second] = inbox.take()
    second.requeue()
    [third] = inbox.take()

    assert second.delivery_info["redelivered"] is True
    assert second.headers["x-delivery-count"] == 1
    assert third.headers["x-delivery-count"] == 2
    assert third.payload == "again"


@pytest.mark.parametrize("by", ["option", "environment"])
def test_without_a_limit_of_deliveries_a_message_comes_again_for_ever(
    connect: Connect, name: str, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """`max_deliveries` 0 sets nothing aside, however often it was given back."""
    options = {"max_deliveries": 0} if by == "option" else {}
    monkeypatch.setenv("MAX_DELIVERIES", "3" if by == "option" else "0")
    queue = Queue(name)
    inbox = Inbox(connect(transport_options=options), queue)
    send(connect(), queue, "busy")

    for _ in range(MAX_DELIVERIES + 2):
        inbox.take()[0].requeue()

    assert inbox.take()[0].headers["x-delivery-count"] == MAX_DELIVERIES + 2


def test_rejected_message_is_gone(connect: Connect, name: str) -> None:
    """`reject` without requeue ends it."""
    queue = Queue(name)
    send(connect(), queue, "unwanted", "wanted")
    inbox = Inbox(connect(), queue)
    unwanted, _ = inbox.take(2)

    unwanted.reject()
    inbox.close()

    assert [message.payload for message in Inbox(connect(), queue).take()] == ["wanted"]


def test_recover_brings_everything_unsettled_again(connect: Connect, name: str) -> None:
    """What the channel holds comes back to it, redelivered; what was acked does not."""
    queue = Queue(name)
    send(connect(), queue, 1, 2, 3)
    inbox = Inbox(connect(), queue)
    inbox.take(3)[0].ack()

    inbox.consumer.recover(requeue=True)
    messages = inbox.take(2)

    assert sorted(message.payload for message in messages) == [2, 3]
    assert all(message.delivery_info["redelivered"] for message in messages)
    inbox.assert_quiet()


@pytest.mark.parametrize("whole_connection", [False, True])
def test_closing_gives_back_what_is_unsettled_at_once(
    connect: Connect, name: str, whole_connection: bool
) -> None:
    """Another consumer gets it in far less than ack_wait (30 s)."""
    queue = Queue(name)
    send(connect(), queue, *range(5))
    first = Inbox(connect(), queue)
    first.take(5)[0].ack()
    second = Inbox(connect(), queue)
    second.assert_quiet()

    started = time.monotonic()
    if whole_connection:
        first.connection.release()
    else:
        first.close()
    second.wait(4)

    assert time.monotonic() - started < 2
    assert sorted(second.bodies) == [1, 2, 3, 4]


def test_cancelled_consumer_gets_no_more(connect: Connect, name: str) -> None:
    """After a cancel the queue keeps what comes, and what was handed over can be acked."""
    queue = Queue(name)
    connection = connect()
    inbox = Inbox(connection, queue)
    send(connect(), queue, "before")
    [held] = inbox.take()

    inbox.consumer.cancel()
    send(connect(), queue, "after")

    inbox.assert_quiet()
    held.ack()
    assert [message.payload for message in Inbox(connect(), queue).take()] == ["after"]


def test_consumers_without_ack_leave_nothing_behind(connect: Connect, name: str) -> None:
    """`no_ack` settles a message as it is handed over."""
    queue = Queue(name)
    send(connect(), queue, 1, 2)
    inbox = Inbox(connect(), queue, no_ack=True, prefetch=1)
    inbox.take(2)
    inbox.connection.release()

    Inbox(connect(), queue).assert_quiet()


def test_a_waiting_consumer_is_woken_at_once(connect: Connect, name: str) -> None:
    """A message takes milliseconds to a consumer that has long been waiting."""
    queue = Queue(name)
    inbox = Inbox(connect(), queue)
    inbox.assert_quiet()
    sender = connect()

    times = []
    for number in range(20):
        started = time.monotonic()
        send(sender, queue, number)
        inbox.take()[0].ack()
        times.append(time.monotonic() - started)

    assert sorted(times)[10] < 0.05


def test_get_takes_one_message(connect: Connect, name: str) -> None:
    """`basic_get` gives the highest priority first, and None from an empty queue."""
    queue = Queue(name)
    connection = connect()
    send(connection, queue, "low", priority=1)
    send(connection, queue, "high", priority=8)
    bound = queue.bind(connection.channel())

    high, low = bound.get(), bound.get(no_ack=True)

    assert (high.payload, low.payload) == ("high", "low")
    assert bound.get() is None
    high.reject(requeue=True)
    again = bound.get()
    assert again.payload == "high"
    assert again.delivery_info["redelivered"] is True
    again.ack()
    assert bound.get() is None


def test_simple_queue(connect: Connect, name: str) -> None:
    """kombu's own queue interface puts, gets, counts and clears."""
    connection = connect()
    queue = connection.SimpleQueue(name)
    queue.put({"n": 1})
    queue.put({"n": 2})
    assert queue.qsize() == 2

    first = queue.get(timeout=5)
    first.ack()

    assert first.payload == {"n": 1}
    queue.get(timeout=5).ack()
    with pytest.raises(queue.Empty):
        queue.get(timeout=0.2)
    queue.put("gone")
    assert queue.clear() == 1
    with pytest.raises(queue.Empty):
        queue.get_nowait()
    queue.close()


def test_expired_messages_are_not_delivered(connect: Connect, name: str) -> None:
    """A message with an expiration is gone after it, one without it stays."""
    queue = Queue(name)
    connection = connect()
    send(connection, queue, "short", expiration=1)
    send(connection, queue, "long", expiration=3600)
    send(connection, queue, "stays")

    wait_until(lambda: waiting(connection, queue) <= 2)

    inbox = Inbox(connect(), queue)
    inbox.wait(2)
    inbox.assert_quiet()
    assert inbox.bodies == ["long", "stays"]
