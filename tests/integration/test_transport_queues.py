"""Queues through kombu, between connections that know nothing of another."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from amqp.exceptions import NotFound
from kombu import Queue

from tests.integration.conftest import Connect
from tests.support.inbox import Inbox, send
from tests.support.nats import NatsServer
from tests.support.waiting import wait_until


def declared_with(bound: Queue, count: int) -> Any:
    """Return what a passive declaration does once the server, which acks first, counts so many."""
    return wait_until(
        lambda: bound.queue_declare(passive=True), lambda told: told.message_count == count
    )


def test_passive_declare_tells_whether_a_queue_is_there(connect: Connect, name: str) -> None:
    """NotFound for one that nobody created, its depth for one that somebody did."""
    bound = Queue(name).bind(connect().channel())
    with pytest.raises(NotFound, match=name):
        bound.queue_declare(passive=True)

    send(connect(), Queue(name), *range(3))

    assert declared_with(bound, 3) == (name, 3, 0)


def test_declare_counts_what_waits_and_not_what_is_held(connect: Connect, name: str) -> None:
    """As AMQP's message count, over all priorities."""
    queue = Queue(name)
    connection = connect()
    send(connection, queue, *range(3))
    send(connection, queue, *range(2), priority=9)
    inbox = Inbox(connect(), queue, prefetch=2)
    inbox.wait(2)

    bound = queue.bind(connection.channel())
    declared_with(bound, 3)
    assert bound.queue_declare().message_count == 3


def test_declare_again_changes_nothing(connect: Connect, name: str) -> None:
    """Every publisher and worker declares; messages and consumers stay."""
    queue = Queue(name)
    inbox = Inbox(connect(), queue)
    connection = connect()
    for _ in range(3):
        queue.bind(connection.channel()).declare()
    send(connection, queue, 0)

    assert [message.payload for message in inbox.take()] == [0]


def test_a_publisher_declares_once_on_each_connection(
    connect: Connect, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is known to be declared costs nothing; after a reconnect nothing is known."""
    queue, copies = Queue(name), []
    copy = Queue.__copy__
    monkeypatch.setattr(Queue, "__copy__", lambda self: copies.append(self) or copy(self))
    connection = connect()
    producer = connection.Producer()

    def publish() -> None:
        producer.publish({}, routing_key=name, declare=[queue], retry=True)

    publish()
    first = len(copies)
    publish()
    assert first
    assert len(copies) == first

    queue.bind(connect().channel()).delete()
    connection.connection.wire.close()
    publish()
    declared_with(queue.bind(connect().channel()), 1)


def test_purge_empties_and_counts(connect: Connect, name: str) -> None:
    """The queue stays and takes new messages."""
    queue = Queue(name)
    connection = connect()
    send(connection, queue, *range(3))
    send(connection, queue, 0, priority=8)
    bound = queue.bind(connection.channel())

    assert bound.purge() == 4
    assert bound.queue_declare(passive=True).message_count == 0
    assert bound.purge() == 0
    send(connection, queue, 0)
    declared_with(bound, 1)


def test_purge_removes_what_is_due_later(connect: Connect, name: str) -> None:
    """A purge while no worker runs leaves nothing that runs hours later, as on other brokers."""
    queue = Queue(name)
    connection = connect()
    eta = (datetime.now(UTC) + timedelta(seconds=2)).isoformat()
    send(connection, queue, *range(2), headers={"task": "late", "id": name, "eta": eta})
    send(connection, queue, 0)
    inbox = Inbox(connect(), Queue(f"{name}-other"))
    send(connection, Queue(f"{name}-other"), 0, headers={"task": "late", "id": name, "eta": eta})
    bound = queue.bind(connection.channel())

    assert bound.purge() == 3
    inbox.wait(1)  # as late as the others would have been
    assert bound.get() is None


def test_delete_removes_queue_and_messages(connect: Connect, name: str) -> None:
    """Declared again under the same name it is empty."""
    queue = Queue(name)
    connection = connect()
    send(connection, queue, *range(2))
    bound = queue.bind(connection.channel())

    bound.delete()

    with pytest.raises(NotFound):
        bound.queue_declare(passive=True)
    assert bound.queue_declare().message_count == 0


def test_delete_if_empty_spares_a_full_queue(connect: Connect, name: str) -> None:
    """Nothing is lost by a clean-up that came too early, nor what somebody has given back."""
    queue = Queue(name)
    connection = connect()
    send(connection, queue, 0)
    bound = queue.bind(connection.channel())

    assert bound.delete(if_empty=True) is None
    assert bound.queue_declare(passive=True).message_count == 1
    bound.get().requeue()
    assert bound.delete(if_empty=True) is None
    bound.get().ack()
    later = {"task": "t", "id": name, "eta": "2100-01-01T00:00:00"}
    connection.Producer().publish({}, routing_key=name, headers=later)
    assert bound.delete(if_empty=True) is None

    assert bound.purge() == 1
    bound.delete(if_empty=True)
    with pytest.raises(NotFound):
        bound.queue_declare(passive=True)


def test_consumer_survives_the_loss_of_its_queue(connect: Connect, name: str) -> None:
    """A queue deleted under a consumer is declared again, and the consumer goes on."""
    queue = Queue(name)
    inbox = Inbox(connect(), queue)
    inbox.assert_quiet()
    other = connect()

    queue.bind(other.channel()).delete()
    send(connect(), queue, 0)

    assert [message.payload for message in inbox.take()] == [0]


def test_virtual_hosts_see_nothing_of_each_other(connect: Connect, name: str) -> None:
    """The same queue name in two of them is two queues."""
    queue = Queue(name)
    url = connect().as_uri().rstrip("/")
    there, here = connect(f"{url}/{name}"), connect()
    send(there, queue, *range(2))
    queue.bind(here.channel()).declare()

    assert queue.bind(here.channel()).queue_declare(passive=True).message_count == 0
    declared_with(queue.bind(there.channel()), 2)


def test_more_than_a_hundred_queues(connect: Connect, nats_server: NatsServer) -> None:
    """Every client of `rpc://` has one; left alone, the server takes a hundred of ten consumers."""
    channel = connect(nats_server.url).channel()
    for number in range(101):
        Queue(f"q{number}").bind(channel).declare()

    assert Queue("q100").bind(channel).queue_declare(passive=True).message_count == 0
