"""Leadership over a real server: one at a time, taken over, and fenced."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator

import msgspec
import pytest
from celery import Celery
from celery.events.state import State

from bridge.errors import NatsConnectionError
from bridge.names import Names
from bridge.records import SCALING_KEY, ScalingState
from bridge.scaling import Autoscaler, Leader, Limits, NotLeading, Size, StoredHistory
from bridge.wire import Bucket, Connection, ConnectOptions, JetStream
from tests.support.inbox import Inbox
from tests.support.nats import NatsServer
from tests.support.waiting import wait_until_async

NAMES = Names()
TTL_SECONDS = 1

pytestmark = pytest.mark.anyio

#: A controller of its own process that leads, then writes whatever it believes.
WRITER = """
import asyncio, sys
from bridge.names import Names
from bridge.scaling import Leader, NotLeading
from bridge.wire import ConnectOptions

async def main():
    leader = Leader(ConnectOptions.from_url(sys.argv[1]), Names(), name="stopped", ttl_seconds=1)
    running = asyncio.create_task(leader.run(asyncio.Event()))
    while not leader.leads:
        await asyncio.sleep(0.01)
    print("leads", flush=True)
    # Blocks, so that it cannot learn of anything before it writes.
    sys.stdin.readline()
    leader._valid_until = float("inf")  # as if its clock had stood still with it
    try:
        await leader.put("target", b"of the stopped one")
    except NotLeading:
        print("refused", flush=True)
    else:
        print("written", flush=True)

asyncio.run(main())
"""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def bucket(nats_server: NatsServer) -> Iterator[Bucket]:
    """The bucket `status` of a server with everything a virtual host needs."""
    connection = Connection(ConnectOptions.from_url(nats_server.url))
    connection.connect()
    js = JetStream(connection)
    js.ensure_topology(NAMES)
    yield Bucket(js, NAMES.bucket("status"))
    connection.close()


def candidate(server: NatsServer, name: str) -> Leader:
    options = ConnectOptions.from_url(server.url, name=name)
    return Leader(options, NAMES, name=name, ttl_seconds=TTL_SECONDS)


@contextlib.asynccontextmanager
async def campaigning(*leaders: Leader) -> AsyncIterator[list[asyncio.Event]]:
    """Run candidates; each stops when its event is set, all in the end."""
    stops = [asyncio.Event() for _ in leaders]
    running = [
        asyncio.create_task(leader.run(stop)) for leader, stop in zip(leaders, stops, strict=True)
    ]
    try:
        yield stops
    finally:
        for stop in stops:
            stop.set()
        await asyncio.gather(*running)


async def test_one_of_many_leads(nats_server: NatsServer, bucket: Bucket) -> None:
    """Of five candidates one leads, over several renewals never two."""
    leaders = [candidate(nats_server, f"c{n}") for n in range(5)]
    async with campaigning(*leaders):
        await wait_until_async(lambda: any(leader.leads for leader in leaders))
        deadline = time.monotonic() + 2.5 * TTL_SECONDS
        while time.monotonic() < deadline:
            assert sum(leader.leads for leader in leaders) == 1
            await asyncio.sleep(0.02)


async def test_leader_that_stops_is_followed_at_once(
    nats_server: NatsServer, bucket: Bucket
) -> None:
    """A clean stop gives the lead away without waiting for it to expire."""
    first, second = candidate(nats_server, "first"), candidate(nats_server, "second")
    async with campaigning(first) as [stop]:
        await wait_until_async(lambda: first.leads)
        async with campaigning(second):
            await asyncio.sleep(0.1)
            stop.set()
            stopped = time.monotonic()
            await wait_until_async(lambda: second.leads)
            assert time.monotonic() - stopped < TTL_SECONDS / 2
    assert not first.leads


async def test_stopped_leader_is_followed_and_cannot_write(
    nats_server: NatsServer, bucket: Bucket
) -> None:
    """A leader that was frozen (SIGSTOP) is replaced, and its late write is refused."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, nats_server.url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    second = candidate(nats_server, "second")
    try:
        assert process.stdout.readline() == "leads\n"
        os.kill(process.pid, signal.SIGSTOP)
        async with campaigning(second):
            started = time.monotonic()
            await wait_until_async(lambda: second.leads)
            assert time.monotonic() - started < 2.5 * TTL_SECONDS
            await second.put("target", b"of the second")
            os.kill(process.pid, signal.SIGCONT)
            process.stdin.write("go on\n")
            process.stdin.flush()
            assert await asyncio.to_thread(process.stdout.readline) == "refused\n"
        assert bucket.get("target") == b"of the second"
    finally:
        process.kill()
        process.communicate()


async def test_expired_lead_is_no_lead(nats_server: NatsServer, bucket: Bucket) -> None:
    """While the server is away the leader stops leading in time, and leads again after it."""
    leader = candidate(nats_server, "only")
    async with campaigning(leader):
        await wait_until_async(lambda: leader.leads)
        nats_server.kill()
        killed = time.monotonic()
        await wait_until_async(lambda: not leader.leads)
        assert time.monotonic() - killed < 1.5 * TTL_SECONDS
        with pytest.raises((NotLeading, NatsConnectionError)):
            await leader.put("target", b"x")
        nats_server.start()
        await wait_until_async(lambda: leader.leads)
        await leader.put("target", b"x")
    assert await asyncio.to_thread(stored, nats_server.url, "target") == b"x"


def stored(url: str, key: str) -> bytes | None:
    connection = Connection(ConnectOptions.from_url(url))
    connection.connect()
    try:
        return Bucket(JetStream(connection), NAMES.bucket("status")).get(key)
    finally:
        connection.close()


@pytest.fixture
def events(nats_server: NatsServer, bucket: Bucket) -> Iterator[Inbox]:
    """What a monitor of Celery's receives."""
    app = Celery(broker=nats_server.url)
    with app.connection_for_read() as connection:
        inbox = Inbox(connection, app.events.Receiver(connection).queue, no_ack=True)
        yield inbox
        inbox.close()


async def test_decisions_are_stored_and_told(
    nats_server: NatsServer, bucket: Bucket, events: Inbox
) -> None:
    """A decision is in the bucket for the API, and an event for whoever listens to Celery's."""
    leader = candidate(nats_server, "c1@here")
    history = StoredHistory(leader, NAMES)
    sizes: list[Size] = []

    async def apply(size: Size) -> None:
        sizes.append(size)

    async def observe() -> None:
        return None

    limits = Limits(min_workers=1, max_workers=9, max_concurrent=5)
    scaler = Autoscaler(
        observe, apply, limits, history, initial=Size(1, 1), leads=lambda: leader.leads
    )
    async with campaigning(leader):
        await wait_until_async(lambda: leader.leads)
        await scaler.scale(workers=7)

    assert sizes == [Size(1, 1), Size(7, 1)]
    value = bucket.get(SCALING_KEY)
    assert value is not None
    state = msgspec.json.decode(value, type=ScalingState)
    assert (state.mode, state.workers) == ("manual", 7)
    [event] = await asyncio.to_thread(events.wait, 1)
    assert event.payload["type"] == "scaling-decided"
    assert event.payload["hostname"] == "c1@here"
    assert event.payload["reason"] == state.decisions[0].reason
    # Flower and other monitors fold every event into Celery's own state.
    State().event(event.payload)
