"""Each reads what the other wrote: our client and nats-py, at one real server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from nats.aio.msg import Msg
from nats.js.kv import KeyValue

from bridge.names import Names, escape
from bridge.topology import BUCKET_TTL_SECONDS
from bridge.wire import Bucket, Connection, JetStream, Message
from tests.support.nats import NatsServer
from tests.support.wire import PATIENCE_SECONDS, OfficialClient, connected, read_until

HEADERS = {"Plain": "a", "Celery-args": '["é", 1]', "X": "colon: and = signs", "Empty": ""}
PAYLOADS = [b"", b"\r\nPING\r\n\0\xff", b"x" * 1_000_000]


@pytest.fixture
def other(shared_nats: NatsServer) -> Iterator[OfficialClient]:
    client = OfficialClient(shared_nats.url)
    yield client
    client.close()


@pytest.fixture
def ours(shared_nats: NatsServer) -> Iterator[Connection]:
    with connected(shared_nats.url) as connection:
        yield connection


@pytest.fixture(scope="module")
def names(shared_nats: NatsServer) -> Names:
    """A virtual host of this module, with its streams and buckets."""
    names = Names("wire-interop")
    with connected(shared_nats.url) as connection:
        JetStream(connection).ensure_topology(names)
    return names


async def subscribed(other: OfficialClient, subject: str) -> Any:
    subscription = await other.client.subscribe(subject)
    await other.client.flush()
    return subscription


@pytest.mark.parametrize("payload", PAYLOADS, ids=len)
@pytest.mark.parametrize("headers", [None, HEADERS], ids=["plain", "headers"])
def test_nats_py_reads_what_we_publish(
    ours: Connection, other: OfficialClient, payload: bytes, headers: dict[str, str] | None
) -> None:
    """Subject, reply, headers and payload arrive at the official client unchanged."""
    subscription = other.run(subscribed(other, "interop.a.>"))

    ours.publish("interop.a.b", payload, headers, reply="interop.reply")

    message: Msg = other.run(subscription.next_msg(PATIENCE_SECONDS))
    assert (message.subject, message.reply) == ("interop.a.b", "interop.reply")
    assert (message.data, message.headers) == (payload, headers)


@pytest.mark.parametrize("payload", PAYLOADS, ids=len)
@pytest.mark.parametrize("headers", [None, HEADERS], ids=["plain", "headers"])
def test_we_read_what_nats_py_publishes(
    ours: Connection, other: OfficialClient, payload: bytes, headers: dict[str, str] | None
) -> None:
    """Subject, reply, headers and payload arrive at our client unchanged."""
    received: list[Message] = []
    ours.subscribe("interop.c.*", received.append)
    ours.flush()

    other.run(other.client.publish("interop.c.d", payload, reply="interop.r", headers=headers))

    read_until(ours, lambda: received)
    [message] = received
    assert (message.subject, message.reply) == ("interop.c.d", "interop.r")
    assert (message.payload, message.headers) == (payload, headers or {})


def test_request_of_ours_answered_by_nats_py(ours: Connection, other: OfficialClient) -> None:
    """A service written with the official client answers our request, headers included."""

    async def answer(message: Msg) -> None:
        await other.client.publish(message.reply, message.data[::-1], headers={"Seen": "yes"})

    async def serve() -> None:
        await other.client.subscribe("interop.service", cb=answer)
        await other.client.flush()

    other.run(serve())

    reply = ours.request("interop.service", b"abc")

    assert (reply.payload, reply.headers) == (b"cba", {"Seen": "yes"})


def test_request_of_nats_py_answered_by_us(ours: Connection, other: OfficialClient) -> None:
    """Our subscriber answers the official client's request."""
    answered: list[Message] = []

    def answer(message: Message) -> None:
        ours.publish(message.reply, b"for " + message.payload)
        answered.append(message)

    ours.subscribe("interop.ours", answer)
    ours.flush()

    async def ask() -> asyncio.Task[Msg]:
        return asyncio.create_task(other.client.request("interop.ours", b"you", PATIENCE_SECONDS))

    task = other.run(ask())
    read_until(ours, lambda: answered)

    async def answer_of(task: asyncio.Task[Msg]) -> Msg:
        return await task

    assert other.run(answer_of(task)).data == b"for you"


def test_nats_py_fetches_what_we_stored(
    ours: Connection, other: OfficialClient, names: Names
) -> None:
    """A message whose PubAck we have is delivered to a consumer of the official client."""
    subject = names.task_subject("stored-by-us")
    ack = JetStream(ours).publish(subject, b"body", HEADERS)

    async def fetch() -> Msg:
        context = other.client.jetstream()
        pull = await context.pull_subscribe(subject, "stored-by-us", names.task_stream)
        [message] = await pull.fetch(1, PATIENCE_SECONDS)
        await message.ack_sync()
        return message

    message = other.run(fetch())
    assert ack.stream == names.task_stream
    assert message.metadata.sequence.stream == ack.seq
    assert (message.data, message.headers) == (b"body", HEADERS)


def test_we_fetch_what_nats_py_stored(
    ours: Connection, other: OfficialClient, names: Names
) -> None:
    """What the official client stored comes out of a pull of ours, and our ack settles it."""
    subject = names.task_subject("stored-by-other")
    other.run(other.client.jetstream().publish(subject, b"body", headers=HEADERS))
    js = JetStream(ours)
    consumer = f"{names.task_stream}.fetcher"
    config = {"durable_name": "fetcher", "filter_subject": subject, "ack_policy": "explicit"}
    js.api(
        f"CONSUMER.CREATE.{consumer}.{subject}",
        {"stream_name": names.task_stream, "config": config},
    )

    [message] = ours.collect(
        f"$JS.API.CONSUMER.MSG.NEXT.{consumer}", b'{"batch":1}', lambda _: True
    )
    assert (message.subject, message.payload, message.headers) == (subject, b"body", HEADERS)

    ours.request(message.reply, b"+ACK")  # with a reply subject the server confirms the ack
    assert js.api(f"CONSUMER.INFO.{consumer}")["num_ack_pending"] == 0
    assert js.get_last(names.task_stream, subject) is None


async def bucket_of(other: OfficialClient, names: Names) -> KeyValue:
    return await other.client.jetstream().key_value(names.bucket("tasks"))


def test_nats_py_reads_our_buckets(ours: Connection, other: OfficialClient, names: Names) -> None:
    """Values, overwritten values and deletions of ours are what the official client sees."""
    bucket = Bucket(JetStream(ours), names.bucket("tasks"))
    key = escape("task.with odd@key")
    bucket.put(key, b"one")
    revision = bucket.put(key, b"two")
    bucket.put("gone", b"x")
    bucket.delete("gone")

    async def read() -> tuple[bytes | None, int | None, list[str]]:
        kv = await bucket_of(other, names)
        entry = await kv.get(key)
        return entry.value, entry.revision, await kv.keys()

    value, seen_revision, keys = other.run(read())
    assert (value, seen_revision) == (b"two", revision)
    assert key in keys
    assert "gone" not in keys


def test_we_read_what_nats_py_put(ours: Connection, other: OfficialClient, names: Names) -> None:
    """Puts, deletions and purges of the official client are what our bucket shows."""

    async def write() -> int:
        kv = await bucket_of(other, names)
        await kv.put("deleted", b"x")
        await kv.delete("deleted")
        await kv.put("purged", b"x")
        await kv.purge("purged")
        return await kv.put("kept", b"value")

    other.run(write())

    bucket = Bucket(JetStream(ours), names.bucket("tasks"))
    assert bucket.get("kept") == b"value"
    assert bucket.get("deleted") is None
    assert bucket.get("purged") is None
    assert bucket.get("never") is None
    assert {"deleted", "purged", "never"}.isdisjoint(bucket.items())
    assert bucket.items()["kept"] == b"value"


def test_nats_py_watches_our_bucket(ours: Connection, other: OfficialClient, names: Names) -> None:
    """A watcher of the official client is told of our puts and deletions, in order."""
    bucket = Bucket(JetStream(ours), names.bucket("tasks"))

    async def watch() -> Any:
        return await (await bucket_of(other, names)).watch("watched")

    watcher = other.run(watch())
    bucket.put("watched", b"1")
    bucket.delete("watched")
    bucket.create("watched", b"2")

    async def seen() -> list[tuple[str | None, bytes | None]]:
        found: list[tuple[str | None, bytes | None]] = []
        while len(found) < 3:
            entry = await watcher.updates(PATIENCE_SECONDS)
            if entry is not None:  # None: everything that was there before has been told
                found.append((entry.operation, entry.value))
        await watcher.stop()
        return found

    assert other.run(seen()) == [(None, b"1"), ("DEL", b""), (None, b"2")]


def test_topology_has_every_bucket_nats_py_can_open(other: OfficialClient, names: Names) -> None:
    """All buckets are KV buckets to the official client, with the life time we promise."""

    async def times_to_live() -> dict[str, float]:
        context = other.client.jetstream()
        found = {}
        for name in BUCKET_TTL_SECONDS:
            status = await (await context.key_value(names.bucket(name))).status()
            found[name] = status.ttl or 0
        return found

    assert other.run(times_to_live()) == BUCKET_TTL_SECONDS
