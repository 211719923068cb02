"""Exchanges and bindings through kombu, between connections that know nothing of another.

A message must reach every queue that was bound before it was sent, whoever bound it.
"""

from __future__ import annotations

from typing import Any

import pytest
from amqp.exceptions import InvalidCommand, NotFound
from kombu import Connection, Consumer, Exchange, Producer, Queue
from kombu.common import Broadcast

from tests.integration.conftest import Connect
from tests.support.inbox import Inbox, send

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


@pytest.mark.parametrize("odd", ODD_NAMES)
def test_names_may_hold_any_character(connect: Connect, name: str, odd: str) -> None:
    """Queues, exchanges and routing keys with what NATS subjects cannot hold."""
    odd = f"{name}{odd}"
    exchange = Exchange(f"x{odd}", "direct")
    durable = Queue(f"d{odd}", exchange, routing_key=f"k{odd}")
    mailbox = transient(f"t{odd}", exchange, f"k{odd}")
    inbox = Inbox(connect(), durable, mailbox)

    publish(connect(), exchange, f"k{odd}", "through")
    send(connect(), durable, 0)

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
    send(connect(), queue, 0)

    assert [message.payload for message in inbox.take()] == [0]
    inbox.assert_quiet()


def test_message_for_nobody_is_dropped(connect: Connect, name: str) -> None:
    """Publishing to an exchange or queue that nobody listens on is no error, as with AMQP."""
    connection = connect()
    publish(connection, Exchange(name, "direct"), "key", 1)
    with connection.channel() as channel:
        Producer(channel).publish(1, routing_key=f"{name}-nowhere")

    assert connection.connected


def test_what_changes_while_bindings_are_read_counts(
    connect: Connect, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list on its way is older than the news of a binding that was removed or made anew."""
    gone, kept = (Queue(f"{name}-{number}", Exchange(name), "key") for number in range(2))
    other, broker = connect(), connect().connection
    for queue in (gone, kept):
        queue.bind(other.channel()).declare()
    read = broker.bindings._bucket.items

    def change_meanwhile() -> dict[str, bytes]:
        listed: dict[str, bytes] = read()
        gone.bind(other.channel()).delete()
        Queue(kept.name, Exchange(name, "topic"), "key").bind(other.channel()).declare()
        broker.wire.flush()
        return listed

    monkeypatch.setattr(broker.bindings._bucket, "items", change_meanwhile)

    bindings = broker.bindings.for_exchange(name)
    assert [(one.queue, one.exchange_type) for one in bindings] == [(kept.name, "topic")]
