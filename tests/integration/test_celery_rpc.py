"""`rpc://` results, the common ones with RabbitMQ, over a nats:// broker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from celery import Celery, states
from celery.result import AsyncResult

from tests.support.celery_worker import CeleryWorker
from tests.support.nats import NatsServer
from tests.support.proxy import Proxy

#: Its own, so that no other test's connection is taken out of kombu's pool for it.
VHOST = "rpc"
GET_SECONDS = 10.0


@pytest.fixture(scope="module")
def worker(
    shared_nats: NatsServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CeleryWorker]:
    worker = CeleryWorker(
        f"{shared_nats.url}/{VHOST}",
        tmp_path_factory.mktemp("rpc"),
        name="rpc",
        environ={"CELERY_RESULT_BACKEND": "rpc://"},
    )
    worker.start()
    yield worker
    worker.stop()


@pytest.fixture
def proxy(shared_nats: NatsServer) -> Iterator[Proxy]:
    with Proxy(shared_nats.port) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: Proxy, worker: CeleryWorker) -> Iterator[Celery]:
    url = f"{proxy.url}/{VHOST}"
    app = Celery("client", broker=url, backend="rpc://", set_as_current=False)
    app.conf.task_default_queue = "foreign"
    yield app
    if app.backend.result_consumer._consumer is not None:
        app.backend.result_consumer.stop()
    app.close()


def finished(client: Celery, worker: CeleryWorker, *args: int) -> AsyncResult:
    """Send a task and return when its result has been sent."""
    result = client.send_task("foreign.add", args)
    worker.wait_for_log(f"foreign.add[{result.id}] succeeded")
    return result


def test_result_that_came_first_is_found(client: Celery, worker: CeleryWorker) -> None:
    """`get()` long after the task finds what its queue has kept."""
    assert finished(client, worker, 1, 2).get(timeout=GET_SECONDS) == 3


def test_state_is_asked_for(client: Celery, worker: CeleryWorker) -> None:
    """Without a consumer, on whatever connection of the pool."""
    result = finished(client, worker, 2, 2)

    assert result.state == states.SUCCESS
    assert result.result == 4


def test_many_results_come_in_any_order(client: Celery) -> None:
    """One queue serves all results of a process."""
    results = [client.send_task("foreign.add", (number, 1)) for number in range(20)]

    assert [result.get(timeout=GET_SECONDS) for result in reversed(results)] == list(
        reversed(range(1, 21))
    )


def test_first_task_on_a_connection_that_proves_broken(
    client: Celery, worker: CeleryWorker, proxy: Proxy
) -> None:
    """Its reply queue is declared before kombu connects anew for the task itself."""
    with client.producer_pool.acquire(block=True) as producer:
        assert producer.channel
    proxy.reset()

    assert finished(client, worker, 3, 4).get(timeout=GET_SECONDS) == 7
