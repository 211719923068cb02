"""What a broken connection held: kombu consumers, without Celery's worker."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from kombu import Connection, Queue

from bridge.errors import NatsConnectionError
from bridge.wire import SILENCE_SECONDS
from tests.integration.conftest import Connect
from tests.support.inbox import Inbox
from tests.support.nats import NatsServer
from tests.support.proxy import Proxy
from tests.support.recovery import consumer_counts
from tests.support.waiting import wait_until

#: So long that nothing here waits for it, but where it is to run out.
LONG = {"ack_wait": 60}
SHORT = {"ack_wait": 1}


@pytest.fixture
def proxy(nats_server: NatsServer) -> Iterator[Proxy]:
    with Proxy(nats_server.port) as proxy:
        yield proxy


def send(connection: Connection, name: str, *bodies: object) -> None:
    with connection.channel() as channel:
        for body in bodies:
            connection.Producer(channel).publish(body, routing_key=name, declare=[Queue(name)])


def see_it_broken(connection: Connection) -> None:
    """Read until the connection is known to be broken, as a consumer's loop does."""
    with pytest.raises(connection.connection_errors):
        connection.drain_events(timeout=10)


def test_unacknowledged_messages_come_back_at_once(
    connect: Connect, nats_server: NatsServer, proxy: Proxy, name: str
) -> None:
    """Those the consumer still has as well: like an AMQP broker, JetStream gives them out again."""
    connection = connect(proxy.url, transport_options=LONG)
    inbox = Inbox(connection, Queue(name))
    send(connect(nats_server.url), name, "one", "two", "three")
    kept, *_ = inbox.take(3)
    inbox.messages.clear()

    proxy.reset()
    see_it_broken(connection)
    again = connect(proxy.url, transport_options=LONG)
    messages = Inbox(again, Queue(name)).take(3)

    assert sorted(message.payload for message in messages) == ["one", "three", "two"]
    kept.ack()  # of a delivery that is over: of no effect, and no error
    assert consumer_counts(proxy.url, name) == (0, 3)
    for message in messages:
        message.ack()


def test_acknowledgement_on_a_broken_connection_is_sent_on_the_next(
    connect: Connect, nats_server: NatsServer, proxy: Proxy, name: str
) -> None:
    """What was done is not done again, though the connection broke before that could be said."""
    connection = connect(proxy.url, transport_options=LONG)
    inbox = Inbox(connection, Queue(name))
    send(connect(nats_server.url), name, "done", "rejected", "not done")
    done, rejected, _ = inbox.take(3)

    proxy.reset()
    see_it_broken(connection)
    done.ack()
    rejected.reject()
    again = Inbox(connect(proxy.url, transport_options=LONG), Queue(name))

    assert again.take()[0].payload == "not done"
    again.assert_quiet()
    assert consumer_counts(proxy.url, name) == (0, 1)


def test_acknowledgement_that_a_broken_connection_took_along_is_sent_again(
    connect: Connect, nats_server: NatsServer, proxy: Proxy, name: str
) -> None:
    """It was written and never read by the server, which nobody is told."""
    connection = connect(proxy.url, transport_options=LONG)
    inbox = Inbox(connection, Queue(name))
    send(connect(nats_server.url), name, "done")
    [done] = inbox.take()

    proxy.silence()
    done.ack()
    proxy.reset()
    see_it_broken(connection)
    assert consumer_counts(proxy.url, name) == (0, 1)
    Inbox(connect(proxy.url, transport_options=LONG), Queue(name)).assert_quiet()

    assert consumer_counts(proxy.url, name) == (0, 0)


def test_nothing_is_given_back_that_may_be_somebody_elses(
    connect: Connect, nats_server: NatsServer, proxy: Proxy, name: str
) -> None:
    """After an outage longer than ack_wait another one has the message, and keeps it."""
    connection = connect(proxy.url, transport_options=SHORT)
    inbox = Inbox(connection, Queue(name))
    send(connect(nats_server.url), name, "one")
    inbox.take()
    proxy.reset()
    see_it_broken(connection)
    other = Queue(name, channel=connect(nats_server.url, transport_options=SHORT).channel())
    message = wait_until(other.get)

    again = Inbox(connect(proxy.url, transport_options=SHORT), Queue(name))

    again.assert_quiet()
    message.ack()
    assert consumer_counts(proxy.url, name) == (0, 0)


def test_acknowledgement_is_not_sent_to_another_store(
    connect: Connect, nats_server: NatsServer, name: str
) -> None:
    """A server that lost its store counts from one again: the same numbers, another message."""
    connection = connect(nats_server.url, transport_options=LONG)
    inbox = Inbox(connection, Queue(name))
    send(connect(nats_server.url), name, "lost")
    [old] = inbox.take()

    nats_server.kill()
    shutil.rmtree(nats_server.store_dir)
    nats_server.start()
    see_it_broken(connection)
    old.ack()
    again = connect(nats_server.url, transport_options=LONG)
    send(again, name, "new")
    new = Queue(name, channel=again.channel()).get()
    assert new is not None
    Inbox(again, Queue(name)).assert_quiet()

    assert new.payload == "new"
    assert consumer_counts(nats_server.url, name) == (0, 1)


def test_silent_peer_of_a_connection_without_durable_queues(
    connect: Connect, proxy: Proxy, name: str
) -> None:
    """Control mailboxes and event receivers notice a half-open connection as others do."""
    connection = connect(proxy.url)
    Inbox(connection, Queue(name, durable=False, exclusive=True, auto_delete=True))

    proxy.silence()

    with pytest.raises(NatsConnectionError):
        connection.drain_events(timeout=3 * SILENCE_SECONDS)
