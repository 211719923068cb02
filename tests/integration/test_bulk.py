"""Publishing many tasks with one wait: `Producer.batch()` and `apply_many` on a real server."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, Task, group, signals
from celery._state import _task_stack
from celery.result import GroupResult
from kombu import Connection, Exchange, Producer, Queue

from bridge.bulk import apply_many, can_be_alike
from bridge.transport.batch import BatchNotStored
from bridge.wire import Message, PayloadTooLarge
from tests.integration.conftest import Connect
from tests.support.bulk import MANY, Client, Store, double
from tests.support.celery_client import close_app, make_app
from tests.support.celery_worker import CeleryWorker
from tests.support.inbox import Inbox
from tests.support.nats import NatsServer

GET_SECONDS = 20.0
#: What is another for each call, and what counts from the call's own time.
_OWN = {"Celery-id", "Correlation-Id", "Celery-eta", "Celery-expires", "Nats-Schedule"}
#: What the server adds on reading.
_READ_AS = {
    *("Nats-Stream", "Nats-Subject", "Nats-Sequence", "Nats-Time-Stamp"),
    *("Nats-Num-Pending", "Nats-Last-Sequence"),
}


def add(x: int, y: int) -> int:
    return x + y


@pytest.fixture
def client(shared_nats: NatsServer, name: str) -> Iterator[Client]:
    client = Client(shared_nats.url, name, task_default_queue="q")
    yield client
    close_app(client.app)


@pytest.fixture
def store(client: Client) -> Iterator[Store]:
    with client.app.connection_for_write() as connection:
        connection.connect()
    store = client.store()
    yield store
    store.close()


def comparable(message: Message) -> dict[str, str]:
    return {k: v for k, v in message.headers.items() if k not in _OWN | _READ_AS}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"priority": 9},
        {"queue": "other", "shadow": "dub", "headers": {"x-trace": 7}},
        {"countdown": 3600},
        {"countdown": 3600, "expires": 7200, "priority": 2},
        {"ignore_result": True, "time_limit": 9, "soft_time_limit": 5},
        {"link": {"task": "double", "args": [1], "kwargs": {}, "options": {}}, "reply_to": "me"},
        {"stamped_headers": ["tenant"], "tenant": "a"},
        {"compression": "gzip"},
        {"serializer": "yaml"},
    ],
    ids=str,
)
def test_same_message_as_apply_async(client: Client, store: Store, options: Any) -> None:
    """Each call of `apply_many` is on the wire what `apply_async` would have made."""
    args, kwargs = (2,), {"word": "grün"}
    client.task.apply_async(args, kwargs, **options)
    results = apply_many(client.task, [((1,), {}), (args, kwargs)], **options)

    single, _, last = store.messages()
    assert last.payload == single.payload
    assert comparable(last) == comparable(single)
    assert last.headers["Celery-id"] == last.headers["Correlation-Id"] == results[1].id
    for moment in {"Celery-eta", "Celery-expires", "Nats-Schedule"} & single.headers.keys():
        assert last.headers[moment] >= single.headers[moment]
    subjects = [message.headers["Nats-Subject"] for message in (single, last)]
    if "countdown" in options:
        assert (
            subjects[1].split(".")[:-1]
            == store.names.schedule_subject("q", results[1].id, "nonce").split(".")[:-1]
        )
    else:
        assert subjects[0] == subjects[1]


def test_returned_is_stored_in_order(client: Client, store: Store) -> None:
    """When `apply_many` returns, the stream holds every call, over several windows."""
    assert can_be_alike(client.task, {})

    results = apply_many(client.task, [((n,), {}) for n in range(MANY)])

    assert store.ids() == [result.id for result in results]


def test_wrong_arguments_send_nothing(client: Client, store: Store) -> None:
    """One call that does not fit the task is told before any is sent."""
    with pytest.raises(TypeError):
        apply_many(client.task, [((1,), {}), ((), {}), ((2,), {})])

    assert store.ids() == []


class Unencodable:
    """Nothing JSON knows."""


@pytest.mark.parametrize("place", [0, 1, 400])
def test_refused_call_harms_no_other(client: Client, store: Store, place: int) -> None:
    """Too large or not to be encoded: all others are stored, and the error names these."""
    calls: list[Any] = [((n,), {}) for n in range(MANY)]
    calls[place] = (("x" * 9_000_000,), {})
    calls[place + 1] = ((Unencodable(),), {})

    with pytest.raises(BatchNotStored, match="2 not stored") as caught:
        apply_many(client.task, calls)

    ids = [result.id for result in caught.value.results]
    assert list(caught.value.refused) == ids[place : place + 2]
    assert "max_payload" in caught.value.refused[ids[place]]
    assert caught.value.in_doubt == {}
    assert store.ids() == ids[:place] + ids[place + 2 :]


def test_refused_by_jetstream(client: Client, store: Store) -> None:
    """The server's own refusal in the middle of a window is told for that task alone."""
    stream = store.names.task_stream
    config = store.js.api(f"STREAM.INFO.{stream}")["config"]
    store.js.api(f"STREAM.UPDATE.{stream}", {**config, "max_msg_size": 5000})
    calls: list[Any] = [((1,), {}), (("x" * 5000,), {}), ((2,), {})]

    with pytest.raises(BatchNotStored) as caught:
        apply_many(client.task, calls)

    ids = [result.id for result in caught.value.results]
    assert list(caught.value.refused) == [ids[1]]
    assert store.ids() == [ids[0], ids[2]]


def test_signal_receivers_see_each_call(client: Client, store: Store) -> None:
    """What they write into the headers of one message stays with that message."""

    def number(headers: dict[str, Any], body: Any, **_: Any) -> None:
        headers["x-number"] = body[0][0]

    signals.before_task_publish.connect(number)
    try:
        apply_many(client.task, [((n,), {}) for n in range(3)])
    finally:
        signals.before_task_publish.disconnect(number)

    assert [m.headers["Celery-x-number"] for m in store.messages()] == ["0", "1", "2"]


def test_called_in_a_task(client: Client, store: Store) -> None:
    """The calls are children of the running task, as those of `apply_async`."""
    parent = client.task
    parent.push_request(id="parent", root_id="root", called_directly=False, children=[])
    _task_stack.push(parent)
    try:
        results = apply_many(client.task, [((1,), {}), ((2,), {})])
        children = parent.request.children
    finally:
        _task_stack.pop()
        parent.pop_request()

    assert children == results
    for message in store.messages():
        assert message.headers["Celery-root_id"] == "root"
        assert message.headers["Celery-parent_id"] == "parent"


@pytest.mark.parametrize("settings", [{"task_always_eager": True}, {}], ids=["eager", "memory"])
def test_on_other_brokers(settings: dict[str, Any]) -> None:
    """Eager calls run at once, and a broker that is not ours gets its messages one by one."""
    app = Celery("other", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.update(settings)
    task = app.task(double, name="double", shared=False)

    results = apply_many(task, [((n,), {}) for n in range(3)])

    if settings:
        assert [result.get() for result in results] == [0, 2, 4]
    else:
        with app.connection_for_read() as connection:
            queue = connection.SimpleQueue("celery")
            messages = [queue.get(timeout=GET_SECONDS) for _ in results]
            assert [m.headers["id"] for m in messages] == [result.id for result in results]
            queue.close()
    app.close()


def test_batch_stores_its_windows_as_they_fill(client: Client, store: Store) -> None:
    """Neither client nor server holds all; what is left is stored at the end of the block."""
    with client.app.producer_or_acquire() as producer, producer.batch():
        assert producer.supports_batch_publish
        results = [client.task.apply_async((n,), producer=producer) for n in range(300)]
        assert store.ids() == [result.id for result in results[:256]]

    assert store.ids() == [result.id for result in results]


def test_batch_of_many_queues_and_priorities(client: Client, store: Store) -> None:
    """Each message finds its queue, priority and time, as without a batch."""
    wanted = [(f"q{n % 3}", n % 10) for n in range(30)]

    with client.app.producer_or_acquire() as producer, producer.batch():
        for queue, priority in wanted:
            client.task.apply_async((1,), queue=queue, priority=priority, producer=producer)
        client.task.apply_async((1,), queue="q0", countdown=3600, producer=producer)

    *now, later = [message.headers["Nats-Subject"] for message in store.messages()]
    assert now == [store.names.task_subject(*each) for each in wanted]
    assert later.startswith(store.names.queue_schedules("q0").removesuffix(">"))


def test_batch_refuses_a_large_message_where_it_is_made(client: Client, store: Store) -> None:
    """Who catches it there goes on with the batch."""
    with client.app.producer_or_acquire() as producer, producer.batch():
        first = client.task.apply_async((1,), producer=producer)
        with pytest.raises(PayloadTooLarge):
            client.task.apply_async(("x" * 9_000_000,), producer=producer)
        last = client.task.apply_async((2,), producer=producer)

    assert store.ids() == [first.id, last.id]


def test_block_that_raises_drops_what_waits(
    client: Client, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """As kombu has it; the log names what was not sent."""
    results: list[Any] = []

    def publish_and_raise() -> None:
        with client.app.producer_or_acquire() as producer, producer.batch():
            results.extend(client.task.apply_async((n,), producer=producer) for n in range(3))
            raise ZeroDivisionError

    with caplog.at_level(logging.WARNING, "nats"), pytest.raises(ZeroDivisionError):
        publish_and_raise()

    assert store.ids() == []
    assert f"3 messages of a batch were not sent, because its block raised ({results[0].id}" in (
        caplog.text
    )


def test_batch_through_an_exchange(connect: Connect, name: str) -> None:
    """Durable queues get the message at the end of the batch, transient ones at once."""
    exchange = Exchange(name, "fanout")
    durable = [Inbox(connect(), Queue(f"{name}-{number}", exchange)) for number in range(2)]
    transient = Inbox(connect(), Queue(f"{name}-t", exchange, durable=False, auto_delete=True))
    connection: Connection = connect()

    with connection.channel() as channel, Producer(channel, exchange).batch() as batch:
        batch.producer.publish("hello", declare=[exchange])
        assert transient.take()[0].payload == "hello"
        durable[0].assert_quiet()

    assert [inbox.take()[0].payload for inbox in durable] == ["hello", "hello"]


def test_group_and_bulk_run_on_a_worker(shared_nats: NatsServer, name: str, tmp_path: Path) -> None:
    """A real worker takes both, priorities and countdown included; results come back."""
    url = f"{shared_nats.url}/{name}"
    app = make_app(url, task_default_queue="foreign")
    adding: Task = app.task(add, name="foreign.add", shared=False)
    worker = CeleryWorker(url, tmp_path, name="bulk")
    worker.start()
    try:
        with app.producer_or_acquire() as producer, producer.batch():
            grouped = group(adding.s(n, n) for n in range(20)).apply_async(producer=producer)
        results = apply_many(adding, [((n, 1), {}) for n in range(20)], priority=5)
        results += apply_many(adding, [((n, 2), {}) for n in range(3)], countdown=1.5)
        named = apply_many(adding, [((n, 3), {}) for n in range(5)], group_id="named")

        assert grouped.get(timeout=GET_SECONDS) == [2 * n for n in range(20)]
        numbers = [result.get(timeout=GET_SECONDS) for result in results]
        assert numbers == [n + 1 for n in range(20)] + [2, 3, 4]
        together = GroupResult("named", named, app=app)
        assert together.get(timeout=GET_SECONDS) == [3, 4, 5, 6, 7]
    finally:
        worker.stop()
        close_app(app)
