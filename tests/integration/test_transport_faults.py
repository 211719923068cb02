"""The transport when something goes wrong: too large, too slow, gone."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kombu import Connection, Exchange, Producer, Queue
from kombu.common import maybe_declare
from kombu.exceptions import OperationalError

from bridge.wire import JetStreamError, PayloadTooLarge
from tests.integration.conftest import Connect
from tests.support.inbox import Inbox
from tests.support.nats import NatsServer

ACK_WAIT_SECONDS = 1.5
#: A consumer in a process of its own: prints every body it gets and settles nothing.
HOLDER = """
import sys
from kombu import Connection, Consumer, Queue
connection = Connection(sys.argv[1], transport_options={"ack_wait": float(sys.argv[3])})
consumer = Consumer(
    connection, [Queue(sys.argv[2])],
    on_message=lambda message: print(message.payload, flush=True),
)
consumer.qos(prefetch_count=1)
consumer.consume()
while True:
    connection.drain_events()
"""


@pytest.fixture
def holder(shared_nats: NatsServer, name: str) -> Iterator[subprocess.Popen[str]]:
    """A process that takes one message of queue `name` and keeps it."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, shared_nats.url, name, str(ACK_WAIT_SECONDS)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def send(connection: Connection, queue: Queue, body: object) -> None:
    with connection.channel() as channel:
        Producer(channel).publish(body, routing_key=queue.name, declare=[queue])


def test_message_over_max_payload_is_refused_and_harms_nothing(connect: Connect, name: str) -> None:
    """The sender learns both sizes; connection, queue and what is unacked stay."""
    queue = Queue(name)
    connection = connect()
    inbox = Inbox(connection, queue)
    send(connect(), queue, "held")
    [held] = inbox.take()
    limit = connection.connection.wire.server_info["max_payload"]

    with pytest.raises(PayloadTooLarge, match="max_payload") as caught:
        send(connection, queue, "x" * (limit + 1))

    assert caught.value.limit == limit
    assert caught.value.size > limit
    held.ack()
    send(connection, queue, "fits")
    assert [message.payload for message in inbox.take()] == ["fits"]


def test_largest_message_that_fits_arrives(connect: Connect, name: str) -> None:
    """Almost max_payload, headers included, makes the way whole."""
    queue = Queue(name)
    connection = connect()
    body = "x" * (connection.connection.wire.server_info["max_payload"] - 1000)
    send(connection, queue, body)

    assert Inbox(connect(), queue).take()[0].payload == body


def test_too_large_for_an_exchange_reaches_nobody(connect: Connect, name: str) -> None:
    """Not even some of the queues get it."""
    exchange = Exchange(name, "fanout")
    inboxes = [Inbox(connect(), Queue(f"{name}-{number}", exchange)) for number in range(2)]
    connection = connect()

    with connection.channel() as channel, pytest.raises(PayloadTooLarge):
        Producer(channel, exchange).publish("x" * 9_000_000, declare=[exchange])

    for inbox in inboxes:
        inbox.assert_quiet()


def test_held_delivery_is_kept_alive(connect: Connect, name: str) -> None:
    """Longer than ack_wait, by a consumer that reads nothing meanwhile: it stays its own."""
    queue = Queue(name)
    first = Inbox(connect(transport_options={"ack_wait": ACK_WAIT_SECONDS}), queue, prefetch=1)
    send(connect(), queue, "long")
    [held] = first.take()
    second = Inbox(connect(transport_options={"ack_wait": ACK_WAIT_SECONDS}), queue)

    deadline = time.monotonic() + 2.5 * ACK_WAIT_SECONDS
    while time.monotonic() < deadline:
        second.assert_quiet()
    held.ack()
    first.close()

    second.assert_quiet()


def test_delivery_of_a_killed_process_comes_back(
    connect: Connect, name: str, holder: subprocess.Popen[str]
) -> None:
    """Nobody gave it back, so it returns when ack_wait has passed, and says so."""
    queue = Queue(name)
    send(connect(), queue, "orphan")
    assert holder.stdout is not None
    assert holder.stdout.readline().strip() == "orphan"
    second = Inbox(connect(transport_options={"ack_wait": ACK_WAIT_SECONDS}), queue)
    second.assert_quiet()

    holder.kill()
    killed = time.monotonic()
    [message] = second.take()

    assert time.monotonic() - killed < ACK_WAIT_SECONDS + 1
    assert message.delivery_info["redelivered"] is True
    message.ack()


def test_delivery_of_a_frozen_process_comes_back(
    connect: Connect, name: str, holder: subprocess.Popen[str]
) -> None:
    """A process that shows no sign of life loses what it holds, as a dead one does."""
    queue = Queue(name)
    send(connect(), queue, "orphan")
    assert holder.stdout is not None
    holder.stdout.readline()
    second = Inbox(connect(transport_options={"ack_wait": ACK_WAIT_SECONDS}), queue)

    os.kill(holder.pid, signal.SIGSTOP)

    assert [message.payload for message in second.take()] == ["orphan"]


def kept_seconds(connection: Connection, name: str) -> set[float]:
    """The ack_wait of a queue's consumers, as the server has it."""
    broker = connection.connection
    infos = broker.stored_queues.infos(name)
    return {info["config"]["ack_wait"] / 1e9 for info in infos}


def test_only_consumers_decide_how_long_deliveries_are_kept(connect: Connect, name: str) -> None:
    """A publisher declares the queue with a setting of its own and changes nothing."""
    queue = Queue(name)
    publisher = connect(transport_options={"ack_wait": 60})
    send(publisher, queue, 1)
    assert kept_seconds(publisher, name) == {60}

    Inbox(connect(transport_options={"ack_wait": ACK_WAIT_SECONDS}), queue)
    assert kept_seconds(publisher, name) == {ACK_WAIT_SECONDS}

    send(publisher, queue, 2)
    send(connect(), queue, 3)
    bound = queue.bind(connect().channel())
    assert bound.queue_declare().message_count == 3
    assert kept_seconds(publisher, name) == {ACK_WAIT_SECONDS}


@pytest.mark.parametrize("holds", [True, False], ids=["full", "idle"])
def test_a_consumer_does_not_shorten_what_others_have_to_tell(
    connect: Connect, name: str, caplog: pytest.LogCaptureFixture, holds: bool
) -> None:
    """Each shows its signs of life by its own ack_wait; the longest counts while it consumes."""
    queue, client = Queue(name), connect()
    first = Inbox(connect(transport_options={"ack_wait": 60}), queue, prefetch=1)
    if holds:
        send(client, queue, "held")
        first.wait(1)
    else:
        first.assert_quiet()

    shorter = Inbox(connect(transport_options={"ack_wait": ACK_WAIT_SECONDS}), queue)
    assert kept_seconds(client, name) == {60}
    [warning] = [line for line in caplog.messages if name in line]
    assert "ack_wait" in warning
    Inbox(connect(transport_options={"ack_wait": 90}), queue).close()
    assert kept_seconds(client, name) == {90}

    for inbox in (first, shorter):
        for message in inbox.messages:
            message.ack()
        inbox.close()
    Inbox(connect(transport_options={"ack_wait": ACK_WAIT_SECONDS}), queue)
    assert kept_seconds(client, name) == {ACK_WAIT_SECONDS}


def test_unreachable_server_is_told_by_name() -> None:
    """Where nobody listens, the error names host and port."""
    with (
        Connection("nats://127.0.0.1:1", connect_timeout=1) as connection,
        pytest.raises(OperationalError, match=r"127\.0\.0\.1:1"),
    ):
        connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0)


def test_second_server_of_a_list_is_tried(shared_nats: NatsServer, name: str) -> None:
    """kombu's list of brokers works as with any other transport."""
    with Connection(f"nats://127.0.0.1:1;{shared_nats.url}", connect_timeout=1) as connection:
        connection.ensure_connection(max_retries=3, interval_start=0, interval_step=0)
        send(connection, Queue(name), 1)
        assert f":{shared_nats.port}/" in connection.as_uri()


@pytest.fixture
def closed_server(tmp_path: Path) -> Iterator[NatsServer]:
    """A server that lets in user `me` with a password full of odd characters."""
    server = NatsServer(
        tmp_path / "closed", extra='authorization { user: "me", password: "p@:/w" }'
    )
    server.start()
    yield server
    server.stop()


def test_credentials_come_from_the_url(closed_server: NatsServer, name: str) -> None:
    """Escaped in the URL, and never shown when the URL is printed."""
    url = closed_server.url.replace("//", "//me:p%40%3A%2Fw@")
    with Connection(url) as connection:
        send(connection, Queue(name), 1)
        assert "p%40" not in connection.as_uri()


def test_wrong_credentials_are_refused_clearly(closed_server: NatsServer) -> None:
    """Without them, or with wrong ones, the error says where they come from."""
    for url in (closed_server.url, closed_server.url.replace("//", "//me:wrong@")):
        with (
            Connection(url) as connection,
            pytest.raises(OperationalError, match="check the login"),
        ):
            connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0)


def test_sender_goes_on_after_a_restart(nats_server: NatsServer, name: str) -> None:
    """kombu's own retry connects again; what was stored before is still there."""
    queue = Queue(name)
    with Connection(nats_server.url) as connection:
        channel = connection.channel()
        producer = Producer(channel)
        producer.publish("before", routing_key=name, declare=[queue])

        nats_server.kill()
        restarted = threading.Thread(target=nats_server.start)
        restarted.start()
        producer.publish(
            "after",
            routing_key=name,
            declare=[queue],
            retry=True,
            retry_policy={"max_retries": 50, "interval_start": 0.1, "interval_step": 0},
        )
        restarted.join()

        inbox = Inbox(connection, queue)
        inbox.wait(2)
        assert inbox.bodies == ["before", "after"]


def test_sender_without_retry_gets_a_recoverable_error(nats_server: NatsServer, name: str) -> None:
    """It fails at once, as one of the transport's recoverable errors, and sends nothing later."""
    queue = Queue(name)
    with Connection(nats_server.url) as connection:
        producer = Producer(connection.channel())
        producer.publish("before", routing_key=name, declare=[queue])

        nats_server.kill()
        with pytest.raises(connection.recoverable_connection_errors):
            producer.publish("ghost", routing_key=name, declare=[queue])
        nats_server.start()

    with Connection(nats_server.url) as connection:
        inbox = Inbox(connection, queue)
        inbox.wait(1)
        inbox.assert_quiet()
        assert inbox.bodies == ["before"]


def test_consumer_goes_on_after_a_restart(nats_server: NatsServer, name: str) -> None:
    """The loop of kombu's documentation, `ensure` around `drain_events`, survives a crash."""
    queue = Queue(name)
    connection = Connection(nats_server.url, transport_options={"ack_wait": ACK_WAIT_SECONDS})
    inbox = Inbox(connection, queue)
    send(connection, queue, "one")
    inbox.take()[0].ack()
    send(connection, queue, "held")
    inbox.take()

    nats_server.kill()
    with pytest.raises(connection.connection_errors):
        connection.drain_events(timeout=5)
    nats_server.start()

    with connection.clone() as again:
        again.ensure_connection(max_retries=50, interval_start=0.1, interval_step=0)
        second = Inbox(again, queue)
        send(again, queue, "new")
        second.wait(2)
        assert sorted(second.bodies) == ["held", "new"]
    connection.release()


def test_frozen_server_is_noticed(nats_server: NatsServer, name: str) -> None:
    """A request to a server that does not answer ends with an error and not in a hang."""
    with Connection(nats_server.url, transport_options={"timeout": 1}) as connection:
        send(connection, Queue(name), 1)
        with nats_server.frozen():
            started = time.monotonic()
            with pytest.raises(connection.connection_errors):
                send(connection, Queue(name), 2)
            assert time.monotonic() - started < 5


def test_declaration_within_a_publish_is_tried_again(nats_server: NatsServer, name: str) -> None:
    """kombu looks at the channel's connection to learn that it needs another."""
    queue = Queue(name)
    with Connection(nats_server.url, transport_options={"timeout": 0.5}) as connection:
        producer = connection.Producer()
        producer.publish(1, routing_key=name)
        with nats_server.frozen():
            thaw = threading.Timer(0.8, os.kill, (nats_server.pid, signal.SIGCONT))
            thaw.start()
            producer.publish(
                2, routing_key=name, declare=[queue], retry=True, retry_policy={"max_retries": 5}
            )
            thaw.join()

        with Connection(nats_server.url) as other:
            assert [message.payload for message in Inbox(other, queue).take()] == [2]


def test_producer_goes_on_where_a_declaration_connected_anew(
    nats_server: NatsServer, name: str
) -> None:
    """As with `rpc://`: the reply queue is declared first, on a connection that proves broken."""
    with Connection(nats_server.url) as connection:
        producer = connection.Producer()
        channel = producer.channel
        nats_server.kill()
        nats_server.start()
        maybe_declare(Queue(f"{name}-reply")(channel), retry=True)

        producer.publish(1, routing_key=name, declare=[Queue(name)], retry=True)

        assert Queue(name)(connection.channel()).queue_declare(passive=True).message_count == 1


def test_declaration_goes_on_at_another_server_where_the_first_stays_silent(
    nats_server: NatsServer, shared_nats: NatsServer, name: str
) -> None:
    """kombu closes the connection that still stands, and its channels, before it tries the next."""
    url = f"{nats_server.url};{shared_nats.url}"
    with Connection(url, transport_options={"timeout": 0.5}) as connection:
        producer = connection.Producer()
        producer.publish("before", routing_key=name)
        with nats_server.frozen():
            producer.publish(
                "after",
                routing_key=name,
                declare=[Queue(name)],
                retry=True,
                retry_policy={"max_retries": 1},
            )

        waiting = Queue(name)(connection.channel()).queue_declare(passive=True).message_count
        assert (connection.port, waiting) == (shared_nats.port, 1)


def test_connection_that_fails_to_begin_leaves_no_socket(nats_server: NatsServer) -> None:
    """The streams cannot be made: what was opened for that is closed."""
    connection = Connection(nats_server.url, transport_options={"replicas": 3})
    with pytest.raises(JetStreamError, match="replicas"):
        connection.channel()

    gc.collect()  # an unclosed socket says so, which fails the test


def test_broadcast_that_reaches_no_server_fails(nats_server: NatsServer, name: str) -> None:
    """A remote control command is with the server once it is sent, or the sender is told."""
    exchange = Exchange(name, "fanout", durable=False)
    with Connection(nats_server.url) as connection:
        producer = Producer(connection, exchange)
        producer.publish("first", declare=[exchange])
        with nats_server.frozen(), pytest.raises(connection.connection_errors):
            producer.publish("second")


def test_transport_is_known_without_importing_the_bridge(shared_nats: NatsServer) -> None:
    """A program that imports kombu as its documentation does may use nats:// at once."""
    program = (
        "import sys\n"
        "from kombu import Connection, Queue\n"
        "with Connection(sys.argv[1]) as connection:\n"
        "    connection.connect()\n"
        "    print(connection.transport.driver_type, connection.connected)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, shared_nats.url],
        capture_output=True,
        text=True,
        timeout=30,
        cwd="/",
        check=False,
    )

    assert done.stdout == "nats True\n", done.stderr
    assert done.stderr == ""
