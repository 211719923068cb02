"""Many calls sent at once while the server dies, is silent or comes back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from kombu import Connection, Exchange, Producer, Queue

from bridge.bulk import apply_many
from bridge.transport.batch import BatchNotStored
from tests.support.bulk import MANY, Client
from tests.support.celery_client import close_app
from tests.support.nats import NatsServer


@pytest.fixture
def mortal(nats_server: NatsServer, name: str) -> Iterator[Client]:
    """A client of a server that the test may kill; a request may take half a second."""
    client = Client(nats_server.url, name, broker_transport_options={"timeout": 0.5})
    yield client
    close_app(client.app)


class Killing:
    """Kills the server when it is encoded."""

    def __init__(self, server: NatsServer) -> None:
        self._server = server

    def __json__(self) -> str:
        self._server.kill()
        return "killed"


def test_server_killed_in_the_middle(mortal: Client, nats_server: NatsServer) -> None:
    """Every call is stored, in doubt or told not to be sent; nothing is lost in silence."""
    calls: list[Any] = [((n,), {}) for n in range(3 * MANY)]
    calls[MANY] = ((Killing(nats_server),), {})

    with pytest.raises(BatchNotStored) as caught:
        apply_many(mortal.task, calls)

    nats_server.start()
    store = mortal.store()
    ids = [result.id for result in caught.value.results]
    told = caught.value.in_doubt.keys() | caught.value.refused.keys()
    assert store.ids() == [task_id for task_id in ids if task_id not in told]
    assert ids[MANY] in caught.value.in_doubt
    assert set(ids[-MANY:]) <= caught.value.refused.keys()
    store.close()


def test_silent_server_leaves_a_window_in_doubt(mortal: Client, nats_server: NatsServer) -> None:
    """No answer in time: what was sent may be stored, and was here; the rest was not sent."""
    apply_many(mortal.task, [((0,), {})])
    with nats_server.frozen(), pytest.raises(BatchNotStored) as caught:
        apply_many(mortal.task, [((n,), {}) for n in range(MANY)])

    store = mortal.store()
    ids = [result.id for result in caught.value.results]
    doubtful = list(caught.value.in_doubt)
    assert 0 < len(doubtful) < MANY
    assert ids[: len(doubtful)] == doubtful
    assert list(caught.value.refused) == ids[len(doubtful) :]
    assert set(store.ids()[1:]) <= set(doubtful)
    # The pool gave up the connection in question; the next call has another.
    [after] = apply_many(mortal.task, [((0,), {})])
    assert after.id in store.ids()
    store.close()


def test_server_restarted_between_two_bulks(mortal: Client, nats_server: NatsServer) -> None:
    """A connection that broke while idle is made anew, as `apply_async` does."""
    apply_many(mortal.task, [((1,), {})])
    nats_server.kill()
    nats_server.start()

    results = apply_many(mortal.task, [((2,), {}), ((3,), {})])

    store = mortal.store()
    assert store.ids()[1:] == [result.id for result in results]
    store.close()


def test_connection_lost_on_the_way_to_an_exchange(nats_server: NatsServer, name: str) -> None:
    """Asking for the queues of an exchange fails: what waits in the batch is told, not dropped."""
    exchange = Exchange(name, "topic")
    queue = Queue(name, exchange, routing_key="#")
    with Connection(nats_server.url) as connection:
        producer = Producer(connection, exchange)

        def publish_over_a_crash() -> None:
            with producer.batch():
                producer.publish(1, routing_key="a", message_id="first", declare=[queue])
                nats_server.kill()
                producer.publish(2, routing_key="a", message_id="second", retry=True)

        with pytest.raises(BatchNotStored) as caught:
            publish_over_a_crash()

    assert list(caught.value.refused) == ["first", "second"]
