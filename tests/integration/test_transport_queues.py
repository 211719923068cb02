"""Queues, exchanges and bindings through kombu, between connections that know nothing of another.

A message must reach every queue that was bound before it was sent, whoever bound it.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from amqp.exceptions import InvalidCommand, NotFound
from kombu import Connection, Consumer, Exchange, Producer, Queue
from kombu.common import Broadcast

from tests.integration.conftest import Connect
from tests.support.inbox import Inbox
from tests.support.nats import NatsServer

ODD_NAMES = [
    "with.dot",
    "with space",
    "star*",
    "gt>",
    "ümläut-日本",
    "a=2E/b\\c",
    "$JS.API",
    "'\"%",
]


def transient(name: str, exchange: Exchange | None = None, routing_key: str = "") -> Queue:
    """A queue that lives as long as its connection."""
    return Queue(name, exchange, routing_key, exclusive=True)


def publish(connection: Connection, exchange: Exchange, key: str, *bodies: Any) -> None:
    """Send through an exchange that nobody else declares."""
    with connection.channel() as channel:
        producer = Producer(channel, exchange)
        for body in bodies:
            producer.publish(body, routing_key=key, declare=[exchange])


def fill(connection: Connection, queue: Queue, count: int, **options: Any) -> None:
    """Put messages into a durable queue."""
    with connection.channel() as channel:
        producer = Producer(channel)
        for number in range(count):
            producer.publish(number, routing_key=queue.name, declare=[queue], **options)


def test_passive_declare_tells_whether_a_queue_is_there(connect: Connect, name: str) -> None:
    """NotFound for one that nobody created, its depth for one that somebody did."""
    bound = Queue(name).bind(connect().channel())
    with pytest.raises(NotFound, match=name):
        bound.queue_declare(passive=True)

    fill(connect(), Queue(name), 3)

    assert bound.queue_declare(passive=True) == (name, 3, 0)


def test_declare_counts_what_waits_and_not_what_is_held(connect: Connect, name: str) -> None:
    """As AMQP's message count, over all priorities."""
    queue = Queue(name)
    connection = connect()
    fill(connection, queue, 3)
    fill(connection, queue, 2, priority=9)
    inbox = Inbox(connect(), queue, prefetch=2)
    inbox.wait(2)

    assert queue.bind(connection.channel()).queue_declare().message_count == 3


def test_declare_again_changes_nothing(connect: Connect, name: str) -> None:
    """Every publisher and worker declares; messages and consumers stay."""
    queue = Queue(name)
    inbox = Inbox(connect(), queue)
    connection = connect()
    for _ in range(3):
        queue.bind(connection.channel()).declare()
    fill(connection, queue, 1)

    assert [message.payload for message in inbox.take()] == [0]


def test_purge_empties_and_counts(connect: Connect, name: str) -> None:
    """The queue stays and takes new messages."""
    queue = Queue(name)
    connection = connect()
    fill(connection, queue, 3)
    fill(connection, queue, 1, priority=8)
    bound = queue.bind(connection.channel())

    assert bound.purge() == 4
    assert bound.queue_declare(passive=True).message_count == 0
    assert bound.purge() == 0
    fill(connection, queue, 1)
    assert bound.queue_declare(passive=True).message_count == 1


@pytest.mark.parametrize("kind", ["headers", "x-delayed-message"])
def test_an_exchange_of_another_type_is_refused(connect: Connect, name: str, kind: str) -> None:
    """It would be taken for a direct one, and its messages go to the wrong queues or too early."""
    with pytest.raises(InvalidCommand, match=f"no type '{kind}', only direct, fanout, topic"):
        Exchange(name, type=kind).bind(connect().channel()).declare()


def test_a_passive_declaration_of_an_exchange_asks_only(connect: Connect, name: str) -> None:
    """One that is there keeps its type; one that nobody has bound anything to is not found."""
    exchange, passive = Exchange(name, "topic"), Exchange(name, passive=True)
    with pytest.raises(NotFound, match=f"no exchange '{name}'"):
        passive.bind(connect().channel()).declare()
    queue = Queue(name, exchange, routing_key="a.#")
    queue.bind(connect().channel()).declare()
    connection = connect()

    passive.bind(connection.channel()).declare()

    Producer(connection.channel(), passive).publish("through", routing_key="a.b")
    assert Inbox(connection, Queue(name)).take()[0].payload == "through"


def test_what_no_channel_does_is_told(connect: Connect, name: str) -> None:
    """Exchanges are not bound to exchanges, and channels not paused, as on Redis."""
    channel = connect().channel()

    with pytest.raises(NotImplementedError, match="bind its queues"):
        Exchange(name).bind(channel).bind_to(f"{name}-source")
    with pytest.raises(NotImplementedError, match="cancel the consumer"):
        Consumer(channel, [Queue(name)]).flow(active=False)


def test_purge_removes_what_is_due_later(connect: Connect, name: str) -> None:
    """A purge while no worker runs leaves nothing that runs hours later, as on other brokers."""
    queue = Queue(name)
    connection = connect()
    eta = (datetime.now(UTC) + timedelta(seconds=2)).isoformat()
    fill(connection, queue, 2, headers={"task": "late", "id": name, "eta": eta})
    fill(connection, queue, 1)
    inbox = Inbox(connect(), Queue(f"{name}-other"))
    fill(connection, Queue(f"{name}-other"), 1, headers={"task": "late", "id": name, "eta": eta})
    bound = queue.bind(connection.channel())

    assert bound.purge() == 3
    inbox.wait(1)  # as late as the others would have been
    assert bound.get() is None


def test_delete_removes_queue_and_messages(connect: Connect, name: str) -> None:
    """Declared again under the same name it is empty."""
    queue = Queue(name)
    connection = connect()
    fill(connection, queue, 2)
    bound = queue.bind(connection.channel())

    bound.delete()

    with pytest.raises(NotFound):
        bound.queue_declare(passive=True)
    assert bound.queue_declare().message_count == 0


def test_delete_if_empty_spares_a_full_queue(connect: Connect, name: str) -> None:
    """Nothing is lost by a clean-up that came too early."""
    queue = Queue(name)
    connection = connect()
    fill(connection, queue, 1)
    bound = queue.bind(connection.channel())

    bound.delete(if_empty=True)
    assert bound.queue_declare(passive=True).message_count == 1

    bound.purge()
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
    fill(connect(), queue, 1)

    assert [message.payload for message in inbox.take()] == [0]


@pytest.mark.parametrize("odd", ODD_NAMES)
def test_names_may_hold_any_character(connect: Connect, name: str, odd: str) -> None:
    """Queues, exchanges and routing keys with what NATS subjects cannot hold."""
    odd = f"{name}{odd}"
    exchange = Exchange(f"x{odd}", "direct")
    durable = Queue(f"d{odd}", exchange, routing_key=f"k{odd}")
    mailbox = transient(f"t{odd}", exchange, f"k{odd}")
    inbox = Inbox(connect(), durable, mailbox)

    publish(connect(), exchange, f"k{odd}", "through")
    fill(connect(), durable, 1)

    assert sorted(map(str, [m.payload for m in inbox.take(3)])) == ["0", "through", "through"]


def test_direct_exchange_goes_by_the_key(connect: Connect, name: str) -> None:
    """To every queue bound with the key, durable or not, and to no other."""
    exchange = Exchange(name, "direct")
    red = Queue(f"{name}-red", exchange, routing_key="red")
    both = [Queue(f"{name}-both", exchange, routing_key=key) for key in ("red", "blue")]
    mailbox = transient(f"{name}-mail", exchange, "blue")
    inboxes = {
        "red": Inbox(connect(), red),
        "both": Inbox(connect(), both[0]),
        "mail": Inbox(connect(), mailbox),
    }
    both[1].bind(connect().channel()).declare()

    sender = connect()
    publish(sender, exchange, "red", "r")
    publish(sender, exchange, "blue", "b")
    publish(sender, exchange, "green", "g")

    assert [m.payload for m in inboxes["red"].take()] == ["r"]
    assert [m.payload for m in inboxes["both"].take(2)] == ["r", "b"]
    assert [m.payload for m in inboxes["mail"].take()] == ["b"]
    for inbox in inboxes.values():
        inbox.assert_quiet()


def test_messages_tell_exchange_and_key(connect: Connect, name: str) -> None:
    """A consumer of several bindings sees which one a message came by."""
    exchange = Exchange(name, "topic")
    for queue in (Queue(f"{name}-d", exchange, "a.#"), transient(f"{name}-t", exchange, "a.#")):
        inbox = Inbox(connect(), queue)
        publish(connect(), exchange, "a.b", 1)
        [message] = inbox.take()
        assert message.delivery_info["exchange"] == name
        assert message.delivery_info["routing_key"] == "a.b"
        inbox.close()


@pytest.mark.parametrize("durable", [True, False])
def test_topic_exchange_goes_by_patterns(connect: Connect, name: str, durable: bool) -> None:
    """`*` is one word and `#` any number; overlapping bindings deliver a message once."""
    exchange = Exchange(name, "topic")
    patterns = ["task.*", "#.failed", "worker.#", "task.failed"]
    options = {} if durable else {"durable": False, "auto_delete": True}
    inbox = Inbox(connect(), Queue(f"{name}-q", exchange, routing_key=patterns[0], **options))
    bound = Queue(f"{name}-q", exchange, **options).bind(inbox.channel)
    for pattern in patterns[1:]:
        bound.bind_to(exchange, routing_key=pattern)

    sender = connect()
    keys = ["task.sent", "task.failed", "task", "task.a.b", "a.b.failed", "failed", "worker"]
    for key in keys:
        publish(sender, exchange, key, key)
    publish(sender, exchange, "worker.online.now", "end")

    expected = ["task.sent", "task.failed", "a.b.failed", "failed", "worker", "end"]
    assert [message.payload for message in inbox.take(len(expected))] == expected
    inbox.assert_quiet()


def test_fanout_exchange_goes_to_all(connect: Connect, name: str) -> None:
    """Every queue gets its own copy, whatever the keys say."""
    exchange = Exchange(name, "fanout")
    inboxes = [
        Inbox(connect(), Queue(f"{name}-1", exchange)),
        Inbox(connect(), Queue(f"{name}-2", exchange, routing_key="ignored")),
        Inbox(connect(), transient(f"{name}-3", exchange)),
        Inbox(connect(), transient(f"{name}-4", exchange, "ignored.too")),
    ]

    publish(connect(), exchange, "any.key", "news")

    for inbox in inboxes:
        assert [message.payload for message in inbox.take()] == ["news"]
        inbox.assert_quiet()


def test_broadcast_queue_reaches_every_listener(connect: Connect, name: str) -> None:
    """kombu's Broadcast: each consumer has a queue of its own, gone with its connection."""
    inboxes = [Inbox(connect(), Broadcast(name)) for _ in range(3)]
    sender = connect()

    publish(sender, Broadcast(name).exchange, "", "to all")

    for inbox in inboxes:
        [message] = inbox.take()
        message.ack()
        assert message.payload == "to all"
        inbox.connection.release()
    publish(sender, Broadcast(name).exchange, "", "to nobody")
    Inbox(connect(), Broadcast(name)).assert_quiet()


def test_a_publisher_sees_bindings_made_after_its_first_message(
    connect: Connect, name: str
) -> None:
    """It has been publishing for long when a new queue is bound: nothing may get lost."""
    exchange = Exchange(name, "direct")
    sender = connect()
    publish(sender, exchange, "key", "before")

    for number in range(20):
        queue = Queue(f"{name}-{number}", exchange, routing_key="key")
        queue.bind(connect().channel()).declare()
        publish(sender, exchange, "key", number)
        message = queue.bind(connect().channel()).get(no_ack=True)
        assert message is not None, f"message {number} got lost"
        assert message.payload == number


def test_unbound_queue_gets_no_more(connect: Connect, name: str) -> None:
    """Unbinding one key leaves the others, on every connection."""
    exchange = Exchange(name, "direct")
    sender = connect()
    for queue in (Queue(f"{name}-d", exchange, "keep"), transient(f"{name}-t", exchange, "keep")):
        inbox = Inbox(connect(), queue)
        bound = queue.bind(inbox.channel)
        bound.bind_to(exchange, routing_key="drop")
        publish(sender, exchange, "drop", 1)
        inbox.take()[0].ack()

        bound.unbind_from(exchange, routing_key="drop")
        inbox.connection.default_channel.queue_declare(f"{name}-sync", auto_delete=True)
        publish(sender, exchange, "drop", 2)
        publish(sender, exchange, "keep", 3)

        assert [message.payload for message in inbox.take()] == [3]
        inbox.assert_quiet()


def test_deleted_exchange_delivers_to_nobody(connect: Connect, name: str) -> None:
    """Its bindings go with it; the queues stay."""
    exchange = Exchange(name, "direct")
    queue = Queue(f"{name}-q", exchange, routing_key="key")
    inbox = Inbox(connect(), queue)
    publish(connect(), exchange, "key", 1)
    inbox.take()[0].ack()

    exchange.bind(connect().channel()).delete()
    publish(connect(), exchange, "key", 2)
    fill(connect(), queue, 1)

    assert [message.payload for message in inbox.take()] == [0]
    inbox.assert_quiet()


def test_message_for_nobody_is_dropped(connect: Connect, name: str) -> None:
    """Publishing to an exchange or queue that nobody listens on is no error, as with AMQP."""
    connection = connect()
    publish(connection, Exchange(name, "direct"), "key", 1)
    with connection.channel() as channel:
        Producer(channel).publish(1, routing_key=f"{name}-nowhere")

    assert connection.connected


def test_transient_queue_dies_with_its_connection(connect: Connect, name: str) -> None:
    """Nothing of it is left in the server, and another connection may use its name."""
    first = Inbox(connect(), transient(name))
    with connect().channel() as channel:
        Producer(channel).publish("one", routing_key=name)
    first.take()
    first.connection.release()

    second = Inbox(connect(), transient(name))
    with connect().channel() as channel:
        Producer(channel).publish("two", routing_key=name)

    assert [message.payload for message in second.take()] == ["two"]


def test_transient_queue_keeps_messages_until_it_is_consumed(connect: Connect, name: str) -> None:
    """A reply may come before its receiver looks."""
    connection = connect()
    queue = transient(name).bind(connection.channel())
    queue.declare()
    with connect().channel() as channel:
        Producer(channel).publish("early", routing_key=name)
        Producer(channel).publish("later", routing_key=name)
    with pytest.raises(TimeoutError):
        connection.drain_events(timeout=0.3)

    early = queue.get(no_ack=True)

    assert early.payload == "early"
    assert queue.purge() == 1


def test_virtual_hosts_see_nothing_of_each_other(connect: Connect, name: str) -> None:
    """The same queue name in two of them is two queues."""
    queue = Queue(name)
    url = connect().as_uri().rstrip("/")
    there, here = connect(f"{url}/{name}"), connect()
    fill(there, queue, 2)
    queue.bind(here.channel()).declare()

    assert queue.bind(here.channel()).queue_declare(passive=True).message_count == 0
    assert queue.bind(there.channel()).queue_declare(passive=True).message_count == 2


def test_more_than_a_hundred_queues(connect: Connect, nats_server: NatsServer) -> None:
    """Every client of `rpc://` has one; left alone, the server takes a hundred of ten consumers."""
    channel = connect(nats_server.url).channel()
    for number in range(101):
        Queue(f"q{number}").bind(channel).declare()

    assert Queue("q100").bind(channel).queue_declare(passive=True).message_count == 0
