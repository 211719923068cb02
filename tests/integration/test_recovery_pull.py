"""A request for messages that nobody waits for any more takes none."""

from __future__ import annotations

import pytest
from kombu import Consumer, Producer, Queue
from kombu.asynchronous import Hub

from bridge.errors import NatsConnectionError
from bridge.names import MAX_PRIORITY
from tests.integration.conftest import Connect
from tests.support.inbox import Inbox
from tests.support.nats import NatsServer


@pytest.mark.parametrize("held", [False, True], ids=["waiting", "given-back"])
def test_pull_that_gathers_when_its_consumer_is_cancelled(
    connect: Connect, name: str, held: bool
) -> None:
    """It goes out after all, at the hub's next turn, and takes nothing: all stay, in order."""
    queue, connection, hub = Queue(name), connect(), Hub()
    connection.register_with_event_loop(hub)
    with connect().channel() as channel:
        for number in range(3):
            Producer(channel).publish(
                number, routing_key=name, declare=[queue], priority=MAX_PRIORITY
            )
    holder = Inbox(connect(), queue, prefetch=3) if held else None
    if holder is not None:
        holder.wait(3)
    consumer = Consumer(connection.channel(), [queue], on_message=lambda message: None)

    consumer.consume()
    consumer.cancel()
    for _ in range(3):
        hub.call_soon(hub.stop)
        hub.run_forever()
    connection.connection.wire.flush()
    if holder is not None:
        holder.close()

    # Within seconds: what a dead pull had taken would come after ack_wait (30 s).
    assert [message.payload for message in Inbox(connect(), queue).take(3)] == [0, 1, 2]
    hub.close()


def test_server_that_stops_is_told_of_once(
    nats_server: NatsServer, connect: Connect, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It ends the pull of every priority; one line says so for the queue."""
    inbox = Inbox(connect(nats_server.url), Queue(name))
    inbox.assert_quiet()

    nats_server.stop()
    with pytest.raises(NatsConnectionError):
        inbox.take()

    told = [line for line in caplog.messages if line.startswith("pull on queue")]
    assert told == [f"pull on queue {name} ended: 409 Server Shutdown"]
