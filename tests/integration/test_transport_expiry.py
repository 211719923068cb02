"""A queue that the server has dropped takes its bindings and messages along, and no other does."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from amqp.exceptions import NotFound
from kombu import Connection, Exchange, Producer, Queue

from bridge.transport.broker import BrokerConnection
from bridge.wire import JetStreamError
from tests.integration.conftest import Connect
from tests.support.inbox import Inbox, send
from tests.support.nats import NatsServer
from tests.support.waiting import wait_until

EXPIRES = 1.0


class Sender:
    """Publishes to one exchange on a connection that knows its queues from before."""

    def __init__(self, connection: Connection, exchange: Exchange) -> None:
        self._producer = Producer(connection.channel(), exchange)
        self.broker: BrokerConnection = connection.connection

    def send(self, body: str) -> None:
        self._producer.publish(body, routing_key="a.key")

    def bound(self, queue: str) -> list[str]:
        """The keys by which a queue is bound."""
        self.broker.wire.flush()
        return [b.binding_key for b in self.broker.bindings.all() if b.queue == queue]

    def stored(self, queue: str) -> bool:
        """Whether a message lies under the queue's name."""
        names = self.broker.names
        found = self.broker.js.get_stored(names.task_stream, [names.queue_subjects(queue)])
        return any(found)

    def lose(self, queue: str, *priorities: int) -> None:
        """Remove consumers of a queue, as the server does when its time is up."""
        names = self.broker.names
        for priority in priorities:
            consumer = names.consumer(queue, priority)
            self.broker.js.api(f"CONSUMER.DELETE.{names.task_stream}.{consumer}")

    def wait_for_end(self, queue: str) -> None:
        wait_until(lambda: not self.broker.stored_queues.is_there(queue))


@pytest.fixture
def topic(name: str) -> Exchange:
    return Exchange(f"{name}-x", "topic")


@pytest.fixture
def sender(connect: Connect, topic: Exchange) -> Sender:
    return Sender(connect(), topic)


#: Consumes a queue of a name of its own, says what it is called, and waits to be killed.
CONSUMER = """
import sys
from kombu import Connection, Consumer, Exchange, Queue
url, exchange, expires = sys.argv[1:]
connection = Connection(url)
queue = Queue("", Exchange(exchange, "topic"), "#", auto_delete=True, expires=float(expires))
consumer = Consumer(connection.channel(), [queue], on_message=print)
consumer.consume()
print(consumer.queues[0].name, flush=True)
while True:
    connection.drain_events()
"""


def test_killed_consumers_leave_no_binding_and_no_message(
    shared_nats: NatsServer, topic: Exchange, sender: Sender
) -> None:
    """Each start of such a process made a queue that got a copy of everything for ever."""
    command = [sys.executable, "-c", CONSUMER, shared_nats.url, topic.name, str(EXPIRES)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            queue = process.stdout.readline().strip()
            assert sender.bound(queue) == ["#"]
        finally:
            process.kill()
    sender.send("nobody is there yet to see it")
    sender.wait_for_end(queue)

    sender.send("nobody will see it")

    assert sender.bound(queue) == []
    assert not sender.stored(queue)


@pytest.mark.parametrize("options", [{"expires": EXPIRES}, {"expires": EXPIRES, "message_ttl": 60}])
def test_expired_queue_leaves_nothing(
    connect: Connect, name: str, topic: Exchange, sender: Sender, options: dict[str, float]
) -> None:
    """Without auto-delete too; what waited in it goes as on RabbitMQ, and other queues stay."""
    other = Inbox(connect(), Queue(f"{name}-other", topic, "#"))
    Queue(name, topic, "#", **options).bind(connect().channel()).declare()
    sender.send("early")
    assert sender.stored(name)
    sender.wait_for_end(name)

    sender.send("late")

    assert sender.bound(name) == []
    assert not sender.stored(name)
    other.wait(2)
    assert other.bodies == ["early", "late"]


def test_queue_declared_anew_while_it_is_removed_keeps_its_binding(
    connect: Connect, name: str, topic: Exchange, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever removes it finds a later revision, and delivers to it."""
    queue, connection = Queue(name, topic, "#", expires=EXPIRES), connect()
    queue.bind(connection.channel()).declare()
    sender.send("early")
    sender.wait_for_end(name)
    inboxes: list[Inbox] = []
    remove = sender.broker.bindings.remove_revisions

    def declare_before(revisions: dict[str, int]) -> bool:
        inboxes.append(Inbox(connection, queue))
        return remove(revisions)

    monkeypatch.setattr(sender.broker.bindings, "remove_revisions", declare_before)
    sender.send("late")

    [inbox] = inboxes
    assert sender.bound(name) == ["#"]
    inbox.wait(2)
    assert inbox.bodies == ["early", "late"]


def test_queue_that_two_find_expired_is_removed_once(
    connect: Connect, name: str, topic: Exchange, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second to come does not take the first's removal for a new declaration."""
    Queue(name, topic, "#", expires=EXPIRES).bind(connect().channel()).declare()
    sender.wait_for_end(name)
    other = Sender(connect(), topic)
    remove = sender.broker.bindings.remove_revisions

    def be_second(revisions: dict[str, int]) -> bool:
        other.send("first")
        return remove(revisions)

    monkeypatch.setattr(sender.broker.bindings, "remove_revisions", be_second)
    sender.send("second")

    assert sender.bound(name) == []
    assert not sender.stored(name)


def test_queue_of_a_busy_consumer_has_not_expired(
    connect: Connect, name: str, topic: Exchange, sender: Sender
) -> None:
    """The server drops those of its ten consumers of which nobody asks for anything."""
    queue = Queue(name, topic, "#", expires=60)
    inbox = Inbox(connect(), queue, prefetch=1)
    sender.send("long")
    [long] = inbox.take()
    fresh = Sender(connect(), topic)
    fresh.lose(name, *range(1, 10))

    fresh.send("next")

    assert fresh.bound(name) == ["#"]
    long.ack()
    assert [message.payload for message in inbox.take()] == ["next"]


def test_queue_of_a_consumer_that_is_busy_with_another_has_not_expired(
    connect: Connect, name: str, topic: Exchange, sender: Sender
) -> None:
    """Nothing is asked of it for longer than it lasts, and none of its messages is held."""
    other = Queue(f"{name}-other")
    inbox = Inbox(connect(transport_options={"ack_wait": EXPIRES}), other, prefetch=1)
    send(inbox.connection, other, "long")
    inbox.wait(1)
    inbox.consumer.add_queue(Queue(name, topic, "#", expires=EXPIRES))
    inbox.consumer.consume()
    sender.send("waits")
    unused = Queue(f"{name}-unused", expires=EXPIRES)
    for _ in range(2):
        unused.bind(inbox.connection.channel()).declare()
        sender.wait_for_end(unused.name)

    sender.send("next")

    for body in ("long", "waits", "next"):
        [message] = inbox.take()
        assert message.payload == body
        message.ack()


def test_consumer_that_lost_its_queue_binds_it_again(
    connect: Connect, name: str, topic: Exchange, sender: Sender
) -> None:
    """As after a process was stopped for longer than its queue lasts."""
    inbox = Inbox(connect(), Queue(name, topic, "#", expires=60))
    inbox.assert_quiet()
    sender.lose(name, *range(10))
    sender.send("to nobody")
    assert sender.bound(name) == []

    wait_until(lambda: inbox.assert_quiet() or bool(sender.bound(name)))

    sender.send("again")
    assert [message.payload for message in inbox.take()] == ["again"]


def test_what_another_unbound_is_not_bound_again(
    connect: Connect, name: str, topic: Exchange, sender: Sender
) -> None:
    """Who lost its queue restores what went with it, not what was removed on purpose."""
    queue = Queue(name, topic, "a.#", expires=60)
    inbox = Inbox(connect(), queue)
    for key in ("#", "*.key"):
        queue.bind(inbox.channel).bind_to(topic, key)
    for key in ("a.#", "*.key"):
        queue.bind(connect().channel()).unbind_from(topic, key)
    queue.bind(inbox.channel).bind_to(topic, "*.key")  # this one is wanted again
    sender.lose(name, *range(10))
    sender.send("to nobody")
    assert sender.bound(name) == []

    wait_until(lambda: inbox.assert_quiet() or bool(sender.bound(name)))

    assert sorted(sender.bound(name)) == ["#", "*.key"]


def test_queue_without_an_expiry_is_never_removed(
    connect: Connect, name: str, topic: Exchange, sender: Sender
) -> None:
    """Consumers lost otherwise, by an operator's hand, cost no message."""
    queue = Queue(name, topic, "#")
    queue.bind(connect().channel()).declare()
    sender.lose(name, *range(10))

    sender.send("waits")

    assert sender.bound(name) == ["#"]
    assert [message.payload for message in Inbox(connect(), queue).take()] == ["waits"]


@pytest.mark.parametrize("condition", ["if_unused", "if_empty"])
def test_deleting_an_expired_queue_removes_its_bindings(
    connect: Connect, name: str, topic: Exchange, sender: Sender, condition: str
) -> None:
    """It has no consumers to ask about any more."""
    bound = Queue(name, topic, "#", expires=EXPIRES).bind(connect().channel())
    bound.declare()
    sender.wait_for_end(name)

    assert bound.delete(**{condition: True}) == 0

    assert sender.bound(name) == []


def test_get_from_a_queue_of_which_some_consumers_expired(
    connect: Connect, name: str, topic: Exchange, sender: Sender
) -> None:
    """Messages are got at once whatever their priority, also where its consumer is gone."""
    queue = Queue(name, topic, "#", expires=60).bind(connect().channel())
    queue.declare()
    sender.lose(name, 9, 3, 0)
    sender.send("of a lost priority")

    asked = time.monotonic()
    message = queue.get(no_ack=True)

    assert message is not None
    assert message.payload == "of a lost priority"
    assert queue.get() is None
    assert time.monotonic() - asked < 1.0


def test_get_from_an_expired_queue(connect: Connect, name: str, sender: Sender) -> None:
    """One that is gone altogether is not made again."""
    channel = connect().channel()
    Queue(name, expires=60).bind(channel).declare()
    sender.lose(name, *range(10))

    with pytest.raises(NotFound):
        channel.basic_get(name)

    assert not sender.broker.stored_queues.is_there(name)


def test_get_tells_why_the_server_refuses(nats_server: NatsServer) -> None:
    """A queue that nothing can be told of is not one that is not there."""
    with Connection(nats_server.url) as connection:
        channel = connection.channel()
        Queue("kept").bind(channel).declare()
        channel.broker.js.api(f"STREAM.DELETE.{channel.broker.names.task_stream}")

        with pytest.raises(JetStreamError, match="stream not found"):
            channel.basic_get("kept")
