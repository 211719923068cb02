"""The snapshot, out of a real server's streams."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import nats
import pytest
from nats.aio.client import Client

from bridge import topology
from bridge.envelope import from_epoch
from bridge.names import Names, bucket_subject, escape
from bridge.records import SNAPSHOT_KEY, Snapshot, WorkerRecord
from bridge.stats import Collector, FleetView
from bridge.stats.client import session
from bridge.wire import ConnectOptions
from tests.support.nats import NatsServer

NAMES = Names()
WORKER = "celery@there"
FLEET = FleetView(worker_type="general", concurrency=5, target=0, members=[])


async def create_streams(client: Client) -> None:
    for config in topology.streams(NAMES):
        reply = await client.request(
            f"$JS.API.STREAM.CREATE.{config['name']}", msgspec.json.encode(config)
        )
        assert b'"error"' not in reply.data, reply.data


async def send_events(client: Client, *events: dict[str, Any]) -> None:
    for event in events:
        subject = NAMES.exchange_subject("celeryev", event["type"].replace("-", "."))
        await client.publish(subject, msgspec.json.encode({"hostname": WORKER, **event}))
    await client.flush()


async def snapshot_where(
    client: Client, condition: Callable[[Snapshot], bool], after_epoch: float = 0.0
) -> Snapshot:
    """Wait for a snapshot that fits; the first look is at the stored one."""
    subject = bucket_subject(NAMES.bucket("status"), SNAPSHOT_KEY)
    updates = await client.subscribe(subject)
    try:
        async with asyncio.timeout(15):
            while True:
                message = await updates.next_msg(10)
                snapshot = msgspec.json.decode(message.data, type=Snapshot)
                if snapshot.taken_epoch > after_epoch and condition(snapshot):
                    return snapshot
    finally:
        await updates.unsubscribe()


@contextlib.asynccontextmanager
async def collecting(server: NatsServer) -> AsyncIterator[Client]:
    """A running collector on `server`, and nats-py beside it."""
    options = ConnectOptions.from_url(server.url)
    client = await nats.connect(server.url)

    async def prepare() -> None:
        async with session(options) as own:
            await create_streams(own)

    async def fleet() -> FleetView:
        return FLEET

    stop = asyncio.Event()
    collector = Collector(options, NAMES, prepare=prepare, fleet=fleet)
    running = asyncio.create_task(collector.run(stop))
    try:
        yield client
    finally:
        stop.set()
        await running
        await client.close()


def test_events_become_figures(nats_server: NatsServer) -> None:
    """Single events and groups of them are counted; foreign messages do no harm."""

    async def scenario() -> Snapshot:
        async with collecting(nats_server) as client:
            await snapshot_where(client, lambda _: True)
            await client.publish(NAMES.exchange_subject("celeryev", "odd"), b"no json")
            await send_events(
                client,
                {"type": "task-received", "uuid": "a", "name": "noop"},
                {"type": "task-started", "uuid": "a"},
                {"type": "task-succeeded", "uuid": "a", "runtime": 0.25},
                {"type": "task-started", "uuid": "b"},
            )
            group = [
                {"type": "task-failed", "uuid": "c", "hostname": WORKER},
                {"type": "task-retried", "uuid": "d", "hostname": WORKER},
            ]
            await client.publish(
                NAMES.exchange_subject("celeryev", "task.multi"), msgspec.json.encode(group)
            )
            await client.flush()
            return await snapshot_where(client, lambda s: s.figures.tasks_retried == 1)

    snapshot = asyncio.run(scenario())

    figures = snapshot.figures
    assert (figures.tasks_processed, figures.tasks_failed) == (2, 1)
    assert figures.average_duration_seconds == 0.25
    assert [task.task_id for task in snapshot.active] == ["b"]
    [worker] = snapshot.workers
    assert (worker.worker_id, worker.state, worker.active_tasks) == (WORKER, "running", 1)


def test_counts_survive_restarts_exactly(nats_server: NatsServer) -> None:
    """What happened while no controller ran is counted once, and nothing twice."""

    async def scenario() -> Snapshot:
        async with collecting(nats_server) as client:
            await snapshot_where(client, lambda _: True)
            await send_events(client, *[{"type": "task-failed", "uuid": str(n)} for n in range(30)])
            await snapshot_where(client, lambda s: s.figures.tasks_failed == 30)
        async with await nats.connect(nats_server.url) as client:
            await send_events(client, {"type": "task-failed", "uuid": "between"})
        nats_server.restart()
        async with collecting(nats_server) as client:
            await snapshot_where(client, lambda _: True)
            await send_events(client, {"type": "task-failed", "uuid": "after"})
            return await snapshot_where(client, lambda s: s.figures.tasks_failed >= 32)

    assert asyncio.run(scenario()).figures.tasks_failed == 32


def test_backlog_larger_than_a_batch_is_read_whole(nats_server: NatsServer) -> None:
    """Events that piled up are all read, in order and without a gap."""

    async def scenario() -> Snapshot:
        async with collecting(nats_server) as client:
            await snapshot_where(client, lambda _: True)
            await send_events(
                client, *[{"type": "task-failed", "uuid": str(n)} for n in range(2500)]
            )
            return await snapshot_where(client, lambda s: s.figures.tasks_failed >= 2500)

    assert asyncio.run(scenario()).figures.tasks_failed == 2500


def test_collector_goes_on_after_an_outage(nats_server: NatsServer) -> None:
    """A server that was killed and came back is read again, with the counts it had."""

    async def scenario() -> Snapshot:
        async with collecting(nats_server) as client:
            await snapshot_where(client, lambda _: True)
            await send_events(client, {"type": "task-failed", "uuid": "before"})
            before = await snapshot_where(client, lambda s: s.figures.tasks_failed == 1)
            await asyncio.to_thread(nats_server.kill)
            await asyncio.to_thread(nats_server.start)
            async with await nats.connect(nats_server.url) as second:
                return await snapshot_where(second, lambda _: True, before.taken_epoch)

    assert asyncio.run(scenario()).figures.tasks_failed == 1


def test_queue_depths_are_the_servers(nats_server: NatsServer) -> None:
    """Waiting, fetched and scheduled messages are told apart, with the age of the oldest."""

    async def scenario() -> Snapshot:
        async with collecting(nats_server) as client:
            await snapshot_where(client, lambda _: True)
            js = client.jetstream()
            for priority in (5, 5, 5, 9):
                await js.publish(NAMES.task_subject("odd queue", priority), b"x")
            for number in range(4):
                await js.publish(
                    NAMES.schedule_subject("odd queue", f"t{number}", "n"),
                    b"x",
                    headers={
                        "Nats-Schedule": f"@at {from_epoch(4e9)}",
                        "Nats-Schedule-Target": NAMES.task_subject("odd queue"),
                    },
                )
            for priority in (5, 9):
                consumer = NAMES.consumer("odd queue", priority)
                subscription = await js.pull_subscribe(
                    NAMES.task_subject("odd queue", priority),
                    durable=consumer,
                    stream=NAMES.task_stream,
                )
                if priority == 5:
                    await subscription.fetch(1)
            return await snapshot_where(
                client, lambda s: bool(s.queues) and s.queues[0].in_flight == 1
            )

    [queue] = asyncio.run(scenario()).queues

    assert (queue.name, queue.waiting, queue.in_flight, queue.scheduled) == ("odd queue", 3, 1, 4)
    assert queue.oldest_waiting_seconds is not None
    assert 0 < queue.oldest_waiting_seconds < 15


def test_announced_worker_is_shown_until_it_is_deleted(nats_server: NatsServer) -> None:
    """A worker record appears in the snapshot and goes with its deletion."""
    record = WorkerRecord(
        hostname=WORKER,
        pid=1,
        pool="threads",
        concurrency=3,
        queues=["celery"],
        types=[],
        started_epoch=1.0,
        announced_epoch=1.0,
    )

    async def scenario() -> tuple[Snapshot, Snapshot]:
        async with collecting(nats_server) as client:
            await snapshot_where(client, lambda _: True)
            workers = await client.jetstream().key_value(NAMES.bucket("workers"))
            await workers.put(escape(WORKER), msgspec.json.encode(record))
            shown = await snapshot_where(client, lambda s: bool(s.workers))
            await workers.delete(escape(WORKER))
            return shown, await snapshot_where(client, lambda s: not s.workers)

    shown, gone = asyncio.run(scenario())

    assert [(w.state, w.pool, w.max_concurrent) for w in shown.workers] == [
        ("running", "threads", 3)
    ]
    assert gone.workers == []


@pytest.mark.parametrize("login", ["token: s3cret", "user: u, password: p"])
def test_controller_connection_logs_in(tmp_path: Any, login: str) -> None:
    """Credentials that work for our own client work for the controller's."""
    server = NatsServer(tmp_path / "nats", extra=f"authorization {{ {login} }}\n")
    server.start()
    fields = {"token": "s3cret"} if login.startswith("token") else {"user": "u", "password": "p"}

    async def scenario() -> bool:
        async with session(ConnectOptions.from_url(server.url, **fields)) as client:
            return client.is_connected

    try:
        assert asyncio.run(scenario())
    finally:
        server.stop()
