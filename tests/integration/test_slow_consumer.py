"""Nobody asks for more at once than the 64 MB that a server keeps for a client."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from celery import Celery, states
from celery.result import ResultSet
from kombu import Connection, Consumer, Message, Queue

from bridge.backend.chord_record import ChordRecord
from tests.support.celery_client import close_app, make_app
from tests.support.nats import NatsServer
from tests.support.proxy import Proxy

#: Together far more than a server holds
MANY, LARGE = 200, "x" * 1024 * 1024


@pytest.fixture
def server(nats_server: NatsServer) -> Iterator[NatsServer]:
    """A server that cut nobody off in the end."""
    yield nats_server
    nats_server.stop()
    assert not [line for line in nats_server.log if "Slow Consumer" in line]


@pytest.fixture
def app(server: NatsServer) -> Iterator[Celery]:
    app = make_app(server.url)
    yield app
    close_app(app)


def test_large_parts_of_a_chord(app: Celery) -> None:
    """Whoever completes a chord gets all of its parts."""

    def store(chord: ChordRecord) -> None:
        for number in range(MANY):
            chord.store(chord.part("task", number), LARGE.encode())

    app.backend._chord("chord", store)

    assert len(app.backend._chord("chord", ChordRecord.values)) == MANY


def test_large_results_of_a_group(app: Celery) -> None:
    """Who begins to wait for all of them at once gets them over the same connection."""
    for number in range(MANY):
        app.backend.store_result(str(number), LARGE, states.SUCCESS)

    group = ResultSet([app.AsyncResult(str(number)) for number in range(MANY)], app=app)

    assert group.get(timeout=30) == [LARGE] * MANY


def test_large_results_after_an_outage(server: NatsServer, app: Celery) -> None:
    """All that is waited for is asked for anew, and arrives."""
    with Proxy(server.port) as proxy:
        waiting = make_app(proxy.url)
        results = [waiting.AsyncResult(str(number)) for number in range(MANY)]
        waiting.backend.add_pending_results(results)
        assert proxy.reset() == 1
        for result in results:
            app.backend.store_result(result.id, LARGE, states.SUCCESS)

        for result in results:
            assert result.get(timeout=30) == LARGE
            result.forget()
        close_app(waiting)


@pytest.mark.parametrize("queues", [1, 3])
def test_large_tasks_for_an_unlimited_prefetch(server: NatsServer, queues: int) -> None:
    """They come as fast as they are read, over the same connection, of however many queues."""
    taken: list[str] = []

    def take(message: Message) -> None:
        time.sleep(0.002)  # work, while which nobody reads
        message.ack()
        taken.append(message.delivery_info["routing_key"])

    large = [Queue(f"large{number}") for number in range(queues)]
    with Connection(server.url) as sender:
        for number in range(MANY):
            queue = large[number % queues]
            sender.Producer().publish(LARGE, routing_key=queue.name, declare=[queue])
    with (
        Connection(server.url) as receiver,
        Consumer(receiver.channel(), large, on_message=take),
    ):
        while len(taken) < MANY:
            receiver.drain_events(timeout=10)
