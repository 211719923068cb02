"""Remote control, events, announcements and the other pools, on real workers of `tasks`."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from celery import Celery

from bridge.names import Names, escape
from bridge.records import WorkerRecord
from bridge.wire import Bucket, Connection, ConnectOptions, JetStream
from tests.support.celery_client import close_app, make_app
from tests.support.celery_worker import CeleryWorker
from tests.support.nats import NatsServer
from tests.support.proxy import Proxy
from tests.support.waiting import wait_until

VHOST = "celery-control"
NAMES = Names(VHOST)
GET_SECONDS = 20.0


@pytest.fixture(scope="module")
def url(shared_nats: NatsServer) -> str:
    return f"{shared_nats.url}/{VHOST}"


@pytest.fixture(scope="module")
def worker(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CeleryWorker]:
    """A worker of this project's own tasks; it sends a heartbeat every second."""
    worker = CeleryWorker(
        url,
        tmp_path_factory.mktemp("worker"),
        *("--heartbeat-interval", "1"),
        app="tasks.app:app",
        name="control",
    )
    worker.start()
    yield worker
    worker.stop()


@pytest.fixture(scope="module")
def app(url: str, worker: CeleryWorker) -> Iterator[Celery]:
    app = make_app(url)
    yield app
    close_app(app)


@pytest.fixture
def bucket(url: str) -> Iterator[Bucket]:
    """The bucket in which workers announce themselves."""
    connection = Connection(ConnectOptions.from_url(url))
    connection.connect()
    yield Bucket(JetStream(connection), NAMES.bucket("workers"))
    connection.close()


def inspect(app: Celery, worker: CeleryWorker, method: str, *args: Any) -> Any:
    """Ask one worker; waits no longer than its answer takes."""
    inspector = app.control.inspect([worker.hostname], timeout=10, limit=1)
    answer = getattr(inspector, method)(*args)
    assert answer is not None, f"no answer to {method}"
    return answer[worker.hostname]


def test_ping_is_answered_at_once(app: Celery, worker: CeleryWorker) -> None:
    """By every worker, without waiting for an interval."""
    started = time.monotonic()

    assert inspect(app, worker, "ping") == {"ok": "pong"}

    assert time.monotonic() - started < 1


def test_stats_tell_of_pool_and_broker(app: Celery, worker: CeleryWorker) -> None:
    """What Flower and operators look at."""
    stats = inspect(app, worker, "stats")

    assert stats["pool"]["max-concurrency"] == 2
    assert stats["broker"]["transport"] == "nats"
    assert stats["pid"] == worker.pid


def test_registered_tasks_and_queues(app: Celery, worker: CeleryWorker) -> None:
    """The names a client may send, and where it listens."""
    assert {"test", "noop", "sleep", "data_processing"} <= set(inspect(app, worker, "registered"))
    assert [queue["name"] for queue in inspect(app, worker, "active_queues")] == ["celery"]
    assert inspect(app, worker, "conf")["task_acks_late"] is True


def test_active_and_reserved_tasks_are_told(app: Celery, worker: CeleryWorker) -> None:
    """Running ones with their start, prefetched ones apart."""
    results = [app.send_task("sleep", (1.0,)) for _ in range(4)]

    active = wait_until(lambda: inspect(app, worker, "active"), lambda tasks: len(tasks) == 2)
    reserved = inspect(app, worker, "reserved")

    assert {task["name"] for task in active} == {"sleep"}
    assert {task["id"] for task in active + reserved} == {result.id for result in results}
    state, info = inspect(app, worker, "query_task", active[0]["id"])[active[0]["id"]]
    assert (state, info["id"]) == ("active", active[0]["id"])
    for result in results:
        result.get(timeout=GET_SECONDS)


def test_consumers_are_added_and_cancelled(app: Celery, worker: CeleryWorker) -> None:
    """A queue can be taken up and let go while the worker runs."""
    reply = app.control.add_consumer("extra", reply=True, limit=1, timeout=10)
    assert "ok" in reply[0][worker.hostname]
    assert app.send_task("test", ("hello",), queue="extra").get(timeout=GET_SECONDS) == "hello"

    app.control.cancel_consumer("extra", reply=True, limit=1, timeout=10)

    assert [queue["name"] for queue in inspect(app, worker, "active_queues")] == ["celery"]
    left = app.send_task("test", ("still there",), queue="extra")
    assert app.send_task("test", ("other",)).get(timeout=GET_SECONDS) == "other"
    assert left.state == "PENDING"


def test_broadcasts_reach_only_whom_they_name(app: Celery, worker: CeleryWorker) -> None:
    """A destination that is not there gets no answer from others."""
    assert app.control.ping(destination=["nobody@nowhere"], timeout=0.5) == []
    assert app.control.ping(destination=[worker.hostname], timeout=5, limit=1) == [
        {worker.hostname: {"ok": "pong"}}
    ]


def test_events_tell_the_life_of_a_task(app: Celery, worker: CeleryWorker) -> None:
    """A receiver sees received, started, succeeded and the worker's heartbeat, in order."""
    events: list[dict[str, Any]] = []

    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": events.append})
        with receiver.consumer_context(wakeup=False) as (consuming, _, _):
            result = app.send_task("test", ("watched",))

            def seen(kind: str) -> bool:
                return any(e["type"] == kind and e.get("uuid") in (None, result.id) for e in events)

            deadline = time.monotonic() + 15
            while not (seen("task-succeeded") and seen("worker-heartbeat")):
                assert time.monotonic() < deadline, [event["type"] for event in events]
                try:
                    consuming.drain_events(timeout=1)
                except TimeoutError:
                    continue

    mine = [event["type"] for event in events if event.get("uuid") == result.id]
    assert mine == ["task-received", "task-started", "task-succeeded"]
    assert {e["hostname"] for e in events if e.get("uuid") == result.id} == {worker.hostname}


def test_worker_announces_what_it_runs(bucket: Bucket, worker: CeleryWorker) -> None:
    """Its record tells pool, queues and the schema of every task."""
    value = bucket.get(escape(worker.hostname))
    assert value is not None
    record = msgspec.json.decode(value, type=WorkerRecord)

    assert (record.hostname, record.pid, record.concurrency) == (worker.hostname, worker.pid, 2)
    assert record.pool == "prefork"
    assert record.queues == ["celery"]
    types = {task_type.name: task_type for task_type in record.types}
    assert types["test"].schema["required"] == ["message"]
    assert not any(name.startswith("celery.") for name in types)


@pytest.mark.parametrize("pool", ["threads", "solo", "gevent", "eventlet"])
def test_other_pools(
    *,
    shared_nats: NatsServer,
    app: Celery,
    bucket: Bucket,
    tmp_path_factory: pytest.TempPathFactory,
    pool: str,
) -> None:
    """Results, retries, countdowns and control work, and the worker takes its record back.

    On gevent control has a connection of its own, and outlasts its end.
    """
    proxy = Proxy(shared_nats.port)
    worker = CeleryWorker(
        f"{proxy.url}/{VHOST}",
        tmp_path_factory.mktemp(pool),
        *("-Q", pool, "--without-mingle"),
        app="tasks.app:app",
        name=pool,
        pool=pool,
        concurrency=4,
    )
    with proxy:
        worker.start()
        try:
            later = app.send_task("test", ("later",), queue=pool, countdown=1.1)
            many = [app.send_task("test", (str(n),), queue=pool) for n in range(50)]
            texts = [result.get(timeout=GET_SECONDS) for result in many]
            assert texts == [str(n) for n in range(50)]
            assert app.send_task("flaky", (2,), queue=pool).get(timeout=GET_SECONDS) == 3
            assert inspect(app, worker, "ping") == {"ok": "pong"}
            if pool == "gevent":
                mailbox = NAMES.exchange_subjects("celery.pidbox").encode()
                assert proxy.reset(b"SUB " + mailbox) == 1
                wait_until(app.control.inspect([worker.hostname], timeout=1, limit=1).ping)
            assert later.get(timeout=GET_SECONDS) == "later"
            assert bucket.get(escape(worker.hostname)) is not None
            worker.stop()
        finally:
            worker.kill()
    assert bucket.get(escape(worker.hostname)) is None


def test_busy_solo_worker_keeps_its_task(
    url: str, app: Celery, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Longer than ack_wait in the one thread there is: the task is not given to another."""
    environ = {"ACK_WAIT_SECONDS": "1"}
    workers = [
        CeleryWorker(
            url,
            tmp_path_factory.mktemp("busy"),
            *("-Q", "busy", "--without-mingle", "--without-gossip"),
            app="tasks.app:app",
            name=f"busy{number}",
            pool="solo",
            environ=environ,
        )
        for number in range(2)
    ]
    try:
        for worker in workers:
            worker.start()
        result = app.send_task("sleep", (2.5,), queue="busy")
        assert result.get(timeout=GET_SECONDS) == 2.5
        received = sum(worker.output.count(f"[{result.id}] received") for worker in workers)
        assert received == 1
        for worker in workers:
            worker.stop()
    finally:
        for worker in workers:
            worker.kill()


def test_remote_shutdown(url: str, app: Celery, tmp_path_factory: pytest.TempPathFactory) -> None:
    """`celery control shutdown` ends one worker cleanly."""
    worker = CeleryWorker(
        url,
        tmp_path_factory.mktemp("shutdown"),
        *("-Q", "shutdown", "--without-mingle"),
        app="tasks.app:app",
        name="shutdown",
        pool="solo",
    )
    worker.start()
    try:
        app.control.shutdown(destination=[worker.hostname])
        assert worker.wait() == 0
    finally:
        worker.kill()


def test_command_line_knows_the_broker(url: str, worker: CeleryWorker) -> None:
    """`celery nats ping` and `celery inspect ping` need nothing but the distribution."""
    environ = {**os.environ, "CELERY_BROKER_URL": url, "CELERY_RESULT_BACKEND": url}
    for arguments, expected in [
        (["nats", "ping"], "nats-server 2."),
        (["inspect", "-d", worker.hostname, "-t", "5", "ping"], "pong"),
    ]:
        done = subprocess.run(
            [sys.executable, "-m", "celery", "-A", "tasks.app:app", *arguments],
            env=environ,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout
