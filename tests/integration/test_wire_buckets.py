"""JetStream and KV buckets: conditions, expiry, paging, and streams that others have made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from bridge import topology
from bridge.errors import NatsConnectionError
from bridge.names import Names
from bridge.wire import Bucket, Connection, JetStream, JetStreamError, KeyExists, PubAck
from tests.support.nats import NatsServer
from tests.support.waiting import wait_until
from tests.support.wire import PATIENCE_SECONDS, connected


@pytest.fixture
def connection(shared_nats: NatsServer) -> Iterator[Connection]:
    with connected(shared_nats.url) as connection:
        yield connection


@pytest.fixture
def names(request: pytest.FixtureRequest) -> Names:
    """A virtual host of this test's own."""
    return Names(f"wire-{request.node.name}")


@pytest.fixture
def js(connection: Connection, names: Names) -> JetStream:
    js = JetStream(connection, timeout=PATIENCE_SECONDS)
    js.ensure_topology(names)
    return js


@pytest.fixture
def bucket(js: JetStream, names: Names) -> Bucket:
    return Bucket(js, names.bucket("tasks"))


def test_value_is_overwritten_and_deleted(bucket: Bucket) -> None:
    """A key holds its last value until it is deleted."""
    first = bucket.put("k", b"1")
    second = bucket.put("k", b"2")

    assert second > first
    assert bucket.get("k") == b"2"
    bucket.delete("k")
    assert bucket.get("k") is None
    assert bucket.items() == {}


def test_empty_value_is_a_value(bucket: Bucket) -> None:
    """No bytes are something else than nothing there."""
    bucket.put("k", b"")

    assert bucket.get("k") == b""
    assert bucket.items() == {"k": b""}
    with pytest.raises(KeyExists):
        bucket.create("k", b"2")


def test_create_only_where_nothing_is(bucket: Bucket) -> None:
    """The second creator of a key is refused and changes nothing."""
    bucket.create("k", b"first")

    with pytest.raises(KeyExists, match="k is already in"):
        bucket.create("k", b"second")
    assert bucket.get("k") == b"first"


def test_create_after_deletion(bucket: Bucket) -> None:
    """The marker of a deleted key does not stand in the way, and only one creator wins."""
    bucket.put("k", b"old")
    bucket.delete("k")

    bucket.create("k", b"new")

    assert bucket.get("k") == b"new"
    with pytest.raises(KeyExists):
        bucket.create("k", b"again")


def test_value_expires_by_its_own_time(bucket: Bucket) -> None:
    """A value with a life time is gone after it, others stay, and the key is free again."""
    bucket.put("short", b"x", ttl_seconds=0.2)  # the server knows no less than a second
    bucket.put("long", b"x", ttl_seconds=3600)
    assert bucket.get("short") == b"x"

    wait_until(lambda: bucket.get("short") is None)
    assert bucket.items() == {"long": b"x"}
    bucket.create("short", b"y")


def test_items_of_many_pages(bucket: Bucket, js: JetStream) -> None:
    """More keys than one answer carries are all found, deleted ones not."""
    messages = [(bucket.subject(f"k{n}"), b"%d" % n, None) for n in range(2500)]
    assert all(isinstance(ack, PubAck) for ack in js.publish_many(messages))
    bucket.delete("k7")
    bucket.put("k8", b"changed")

    expected = {f"k{n}": b"%d" % n for n in range(2500) if n != 7} | {"k8": b"changed"}
    assert bucket.items() == expected


def test_items_larger_than_one_answer(bucket: Bucket) -> None:
    """Values that together exceed what a server sends at once come in several answers."""
    values = {f"k{n}": bytes([n]) * 5_000_000 for n in range(6)}
    for key, value in values.items():
        bucket.put(key, value)

    assert bucket.items() == values


def test_missing_bucket_is_an_error(connection: Connection) -> None:
    """Where there is no such bucket, that is told instead of an absent value."""
    bucket = Bucket(JetStream(connection), "never_made")

    with pytest.raises(NatsConnectionError, match="are the streams there"):
        bucket.get("k")
    with pytest.raises(NatsConnectionError, match="are the streams there"):
        bucket.items()


def test_acks_and_refusals_come_in_order(js: JetStream, names: Names) -> None:
    """Of several messages each has its own PubAck or refusal."""
    subject = names.task_subject("q")
    acks = js.publish_many(
        [
            (subject, b"1", {"Nats-Msg-Id": "a"}),
            (subject, b"2", {"Nats-TTL": "nonsense"}),
            (subject, b"1", {"Nats-Msg-Id": "a"}),
        ]
    )

    assert isinstance(acks[0], PubAck)
    assert isinstance(acks[1], JetStreamError)
    assert "TTL" in acks[1].description
    assert acks[2] == PubAck(names.task_stream, acks[0].seq, duplicate=True)
    with pytest.raises(JetStreamError, match="refused"):
        js.publish(subject, b"", {"Nats-TTL": "nonsense"})


def test_api_errors_carry_the_servers_number(js: JetStream) -> None:
    """A refused API call is an error that tells the server's own words and number."""
    with pytest.raises(JetStreamError, match="stream not found") as caught:
        js.api("STREAM.INFO.nowhere")

    assert (caught.value.api_code, caught.value.err_code) == (404, 10059)


def test_answer_that_is_no_json_is_an_error(connection: Connection) -> None:
    """Something else that answers on an API subject is told as such."""
    connection.subscribe("$JS.API.FOREIGN", lambda m: connection.publish(m.reply, b"hello"))

    with pytest.raises(JetStreamError, match="no answer but"):
        JetStream(connection).api("FOREIGN")


def test_topology_can_be_ensured_again(js: JetStream, names: Names) -> None:
    """A second start changes nothing and loses nothing."""
    ack = js.publish(names.task_subject("q"), b"task")
    before = {c["name"]: js.api(f"STREAM.INFO.{c['name']}") for c in topology.streams(names)}

    js.ensure_topology(names)

    for name, info in before.items():
        assert js.api(f"STREAM.INFO.{name}")["config"] == info["config"]
    stored = js.get_last(names.task_stream, names.task_subject("q"))
    assert stored is not None
    assert stored.headers["Nats-Sequence"] == str(ack.seq)


def test_stream_of_an_earlier_version_is_brought_up_to_date(
    connection: Connection, names: Names
) -> None:
    """Missing abilities are added, an operator's own settings and the messages stay."""
    js = JetStream(connection)
    lacking = {"allow_msg_schedules", "allow_msg_ttl", "allow_direct"}
    old = {k: v for k, v in topology.task_stream(names).items() if k not in lacking}
    js.api(f"STREAM.CREATE.{names.task_stream}", {**old, "max_bytes": 1_000_000_000})
    js.publish(names.task_subject("q"), b"task")

    js.ensure_topology(names)

    info = js.api(f"STREAM.INFO.{names.task_stream}")
    assert {key: info["config"].get(key) for key in lacking} == dict.fromkeys(lacking, True)
    assert info["config"]["max_bytes"] == 1_000_000_000
    assert info["state"]["messages"] == 1
    assert js.api(f"STREAM.INFO.KV_{names.bucket('tasks')}")["config"]["allow_msg_ttl"]


def test_stream_that_cannot_be_changed_is_explained(connection: Connection, names: Names) -> None:
    """A stream of the same name but of another kind is an error that says what to do."""
    js = JetStream(connection)
    foreign = {"name": names.task_stream, "subjects": ["foreign.>"], "retention": "limits"}
    js.api(f"STREAM.CREATE.{names.task_stream}", foreign)

    with pytest.raises(JetStreamError, match=f"nats stream rm {names.task_stream}") as caught:
        js.ensure_topology(names)
    assert "retention" in caught.value.description


def test_foreign_stream_that_holds_our_subjects_is_explained(
    connection: Connection, names: Names
) -> None:
    """Another stream on our subjects is told in the server's words."""
    js = JetStream(connection)
    js.api("STREAM.CREATE.overlap", {"name": "overlap", "subjects": names.task_stream_subjects})

    with pytest.raises(JetStreamError, match="overlap"):
        js.ensure_topology(names)


def test_a_late_purge_takes_nothing_newer(
    js: JetStream, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frozen server wakes and does what nobody waits for any more: chords would lose parts."""
    for key in ("a.1", "a.2", "b.1"):
        bucket.put(key, b"old")
    ask = js.api_many

    def ask_late(calls: Iterable[tuple[str, Any]]) -> list[dict[str, Any]]:
        answers = ask(calls)
        bucket.put("a.2", b"new")
        return answers

    monkeypatch.setattr(js, "api_many", ask_late)
    assert js.purge((bucket.stream, bucket.subject("a.>"))) == 1

    assert bucket.items() == {"a.2": b"new", "b.1": b"old"}
