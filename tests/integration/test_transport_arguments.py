"""What becomes of queues that are not durable, of their arguments and of their messages."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta

import pytest
from amqp.exceptions import NotFound
from kombu import Connection, Exchange, Producer, Queue

from tests.integration.conftest import Connect
from tests.support.inbox import Inbox
from tests.support.waiting import wait_until


def auto_delete(name: str, exchange: Exchange | None = None, **options: object) -> Queue:
    return Queue(name, exchange, name, durable=False, auto_delete=True, **options)


def send(connection: Connection, queue: Queue, body: str) -> None:
    """Declare a queue and send to it, as Celery does, on a connection that then goes."""
    with connection, connection.channel() as channel:
        key = queue.routing_key or queue.name
        Producer(channel).publish(body, exchange=queue.exchange, routing_key=key, declare=[queue])


def is_there(connection: Connection, queue: Queue) -> bool:
    """Ask the server, without creating it."""
    with connection.channel() as channel:
        try:
            queue.bind(channel).queue_declare(passive=True)
        except NotFound:
            return False
    return True


def test_queue_that_is_not_durable_is_stored(connect: Connect, name: str) -> None:
    """As on Redis: what was sent before anybody consumed is there, also for other connections."""
    queue = Queue(name, durable=False)
    send(connect(), queue, "early")

    assert [message.payload for message in Inbox(connect(), queue).take()] == ["early"]


@pytest.mark.parametrize("kind", ["direct", "topic"])
def test_auto_delete_queue_waits_for_its_first_consumer(
    connect: Connect, name: str, kind: str
) -> None:
    """A task sent before the worker of such a queue came up is not lost."""
    queue = auto_delete(name, Exchange(f"{name}-x", kind))
    send(connect(), queue, "early")

    assert [message.payload for message in Inbox(connect(), queue).take()] == ["early"]


def test_auto_delete_queue_without_an_exchange_is_shared(connect: Connect, name: str) -> None:
    """What `rpc://` does: declared on one connection, filled by a second, read by a third."""
    queue = auto_delete(name, expires=3600)
    with connect().channel() as channel:
        queue.bind(channel).declare()
        Producer(channel).publish("a task", routing_key=f"{name}-tasks")
    with connect().channel() as channel:
        Producer(channel).publish("its reply", routing_key=name)

    reply = queue.bind(connect().channel()).get(no_ack=True)

    assert reply.payload == "its reply"


def test_what_came_before_a_queue_was_stored_is_kept(connect: Connect, name: str) -> None:
    """Declared and not yet used, it may get messages from others."""
    channel = connect().channel()
    queue = auto_delete(name).bind(channel)
    queue.declare()
    with connect().channel() as other:
        Producer(other).publish("first", routing_key=name, priority=3)
    channel.broker.wire.flush()

    message = queue.get(no_ack=True)

    assert (message.payload, message.delivery_info["priority"]) == ("first", 3)


def test_auto_delete_queue_goes_with_its_last_consumer(connect: Connect, name: str) -> None:
    """Not while another one consumes."""
    queue, connection = auto_delete(name, Exchange(f"{name}-x")), connect()
    first, second = Inbox(connect(), queue), Inbox(connect(), queue)
    second.assert_quiet()
    first.consumer.cancel()
    assert is_there(connection, queue)

    second.consumer.cancel()

    assert not is_there(connection, queue)


def test_auto_delete_queue_with_messages_outlives_its_consumers(
    connect: Connect, name: str
) -> None:
    """Unlike AMQP's: what was accepted is not thrown away with a worker that restarts."""
    queue = auto_delete(name, Exchange(f"{name}-x"))
    inbox = Inbox(connect(), queue, prefetch=1)
    for body in ("one", "two"):
        send(connect(), queue, body)
    inbox.take()
    inbox.close()

    again = Inbox(connect(), queue)

    assert sorted(message.payload for message in again.take(2)) == ["one", "two"]


def test_messages_wait_no_longer_than_their_queue_allows(connect: Connect, name: str) -> None:
    """`x-message-ttl`, also for publishers that never saw the queue's declaration."""
    queue = Queue(name, message_ttl=1)
    queue.bind(connect().channel()).declare()
    with connect().channel() as channel:
        Producer(channel).publish("gone", routing_key=name)
        Producer(channel).publish("gone", routing_key=name, expiration=3600)
    bound = queue.bind(connect().channel())
    assert bound.queue_declare(passive=True).message_count == 2

    wait_until(lambda: bound.queue_declare(passive=True).message_count == 0)


def test_scheduled_tasks_wait_no_longer_than_their_queue_allows(
    connect: Connect, name: str
) -> None:
    """The time counts from the moment they are due."""
    queue, connection = Queue(name, message_ttl=1), connect()
    eta = (datetime.now(UTC) + timedelta(seconds=2.5)).isoformat()
    headers = {"task": "a.task", "id": name}
    with connection.channel() as channel:
        producer = Producer(channel)
        producer.publish("due", routing_key=name, declare=[queue], headers={**headers, "eta": eta})
    bound = queue.bind(connection.channel())
    assert bound.queue_declare(passive=True).message_count == 0
    wait_until(lambda: bound.queue_declare(passive=True).message_count == 1)

    wait_until(lambda: bound.queue_declare(passive=True).message_count == 0)


def test_queue_nobody_uses_expires(connect: Connect, name: str) -> None:
    """`x-expires`: gone after that time without a consumer; a consumer keeps it."""
    used, unused = Queue(f"{name}-used", expires=1), Queue(f"{name}-unused", expires=1)
    connection = connect()
    for queue in (used, unused):
        queue.bind(connection.channel()).declare()
    inbox = Inbox(connect(), used)
    inbox.assert_quiet()

    wait_until(lambda: not is_there(connection, unused))

    assert is_there(connection, used)
    inbox.close()


def test_arguments_of_the_first_declaration_stay(connect: Connect, name: str) -> None:
    """A consumer that says nothing about them takes nothing away."""
    Queue(name, message_ttl=1).bind(connect().channel()).declare()

    Inbox(connect(), Queue(name)).close()

    bound = Queue(name).bind(connect().channel())
    with connect().channel() as channel:
        Producer(channel).publish("gone", routing_key=name)
    wait_until(lambda: bound.queue_declare(passive=True).message_count == 0)


def test_arguments_without_effect_are_named(
    connect: Connect, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Once a process, not once a connection."""
    queue = Queue(name, max_length=10, queue_arguments={"x-dead-letter-exchange": "dead"})
    with caplog.at_level(logging.WARNING, logger="nats"):
        for _ in range(2):
            queue.bind(connect().channel()).declare()

    assert [record.getMessage() for record in caplog.records] == [
        f"queue {name}: nats:// does not keep x-max-length, x-dead-letter-exchange"
    ]


def test_options_without_effect_are_named(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """Once a process: two applications that Redis kept apart would take each other's tasks."""
    options = {
        "global_keyprefix": "shop",
        "queue_order_strategy": "priority",
        "visibility_timeout": 3600,
    }
    with caplog.at_level(logging.WARNING, logger="nats"):
        for _ in range(2):
            connect(transport_options=options)

    assert [record.getMessage() for record in caplog.records] == [
        "broker_transport_options: global_keyprefix='shop' has no effect on nats://, where the "
        "URL's path keeps applications apart",
        "broker_transport_options: queue_order_strategy='priority' has no effect on nats://, "
        "where messages go by priority and queues take turns",
    ]


@pytest.mark.parametrize("options", [{"queue_order_strategy": "round_robin"}, {"sep": ":"}])
def test_options_that_change_nothing_are_borne(
    connect: Connect, caplog: pytest.LogCaptureFixture, options: dict[str, str]
) -> None:
    """What is left from Redis and asks for what happens anyway needs no word."""
    with caplog.at_level(logging.WARNING, logger="nats"):
        connect(transport_options=options)

    assert not caplog.records


def test_bindings_are_listed(connect: Connect, name: str) -> None:
    """What `celery list bindings` prints: durable queues, bound by whatever connection."""
    exchange = Exchange(f"{name}-x", "topic")
    Queue(name, exchange, "image.#").bind(connect().channel()).declare()

    found = connect().manager.get_bindings()

    assert {"destination": name, "source": f"{name}-x", "routing_key": "image.#"} in found


def test_delete_if_unused_or_empty(connect: Connect, name: str) -> None:
    """A queue with messages or a consumer stays where that was asked."""
    queue, connection = Queue(name), connect()
    send(connect(), queue, "waits")
    bound = queue.bind(connection.channel())
    assert bound.delete(if_empty=True) is None
    assert is_there(connection, queue)
    inbox = Inbox(connect(), queue)
    message = inbox.wait(1)[0]
    assert bound.delete(if_unused=True) is None
    assert is_there(connection, queue)
    message.ack()
    inbox.close()

    bound.delete(if_unused=True, if_empty=True)

    assert not is_there(connection, queue)
