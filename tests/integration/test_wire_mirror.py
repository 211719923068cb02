"""A live copy of a bucket follows it through everything."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bridge.names import Names
from bridge.wire import Bucket, BucketMirror, ConnectOptions, JetStream, KeyExists
from tests.support.nats import NatsServer
from tests.support.wire import PATIENCE_SECONDS, connected

NAME = Names("wire-mirror").bucket("workers")
Mirror = BucketMirror[dict[str, Any]]
StartMirror = Callable[..., Mirror]


@pytest.fixture
def start_mirror() -> Iterator[StartMirror]:
    """Starts mirrors of JSON objects; all are stopped in the end, and their threads gone."""
    mirrors: list[Mirror] = []

    def start(url: str, **fields: Any) -> Mirror:
        mirror: Mirror = BucketMirror(ConnectOptions.from_url(url), NAME, json.loads, **fields)
        mirrors.append(mirror)
        mirror.start()
        return mirror

    yield start
    for mirror in mirrors:
        mirror.stop()
    assert not [t for t in threading.enumerate() if t.name == f"mirror-{NAME}"]


@pytest.fixture
def bucket(nats_server: NatsServer) -> Iterator[Bucket]:
    with connected(nats_server.url) as connection:
        js = JetStream(connection, timeout=PATIENCE_SECONDS)
        js.ensure_topology(Names("wire-mirror"))
        yield Bucket(js, NAME)


def becomes(mirror: Mirror, values: dict[str, Any]) -> bool:
    return mirror.wait_for(lambda found: found == values, PATIENCE_SECONDS)


def connection_is(mirror: Mirror, connected: bool) -> bool:
    with mirror.changed:
        return mirror.changed.wait_for(lambda: mirror.connected is connected, PATIENCE_SECONDS)


def test_mirror_follows_puts_and_deletions(
    nats_server: NatsServer, bucket: Bucket, start_mirror: StartMirror
) -> None:
    """What was there before, what comes, what changes and what goes."""
    bucket.put("a", b'{"n": 1}')
    mirror = start_mirror(nats_server.url)
    assert becomes(mirror, {"a": {"n": 1}})
    assert mirror.connected

    bucket.put("b", b'{"n": 2}')
    bucket.put("a", b'{"n": 3}')
    assert becomes(mirror, {"a": {"n": 3}, "b": {"n": 2}})
    bucket.delete("a")
    assert becomes(mirror, {"b": {"n": 2}})


def test_values_are_replaced_not_changed(
    nats_server: NatsServer, bucket: Bucket, start_mirror: StartMirror
) -> None:
    """A reader that holds on to `values` sees one state, whatever happens meanwhile."""
    bucket.put("a", b"{}")
    mirror = start_mirror(nats_server.url)
    assert becomes(mirror, {"a": {}})
    held = mirror.values

    bucket.put("b", b"{}")

    assert becomes(mirror, {"a": {}, "b": {}})
    assert held == {"a": {}}


def test_expired_value_goes_even_while_others_keep_changing(
    nats_server: NatsServer, bucket: Bucket, start_mirror: StartMirror
) -> None:
    """Nobody tells of an expiry, so the bucket is read anew however much else happens."""
    bucket.put("dies", b"{}", ttl_seconds=1)
    mirror = start_mirror(nats_server.url, resync_seconds=0.2)
    assert mirror.wait_for(lambda values: "dies" in values, PATIENCE_SECONDS)
    stop = threading.Event()

    def beat() -> None:
        with connected(nats_server.url) as connection:
            heart = Bucket(JetStream(connection), NAME)
            while not stop.wait(0.02):
                heart.put("lives", b"{}")

    heart = threading.Thread(target=beat)
    heart.start()
    try:
        assert becomes(mirror, {"lives": {}})
    finally:
        stop.set()
        heart.join(PATIENCE_SECONDS)


def test_mirror_outlives_its_server(
    nats_server: NatsServer, bucket: Bucket, start_mirror: StartMirror
) -> None:
    """While the server is away the last values stay, marked as old; afterwards all is current."""
    bucket.put("a", b'{"n": 1}')
    mirror = start_mirror(nats_server.url)
    assert becomes(mirror, {"a": {"n": 1}})

    nats_server.kill()
    assert connection_is(mirror, connected=False)
    assert mirror.values == {"a": {"n": 1}}
    nats_server.start()
    with connected(nats_server.url) as connection:
        Bucket(JetStream(connection), NAME).put("a", b'{"n": 2}')

    assert becomes(mirror, {"a": {"n": 2}})
    assert connection_is(mirror, connected=True)


def test_mirror_waits_for_a_bucket_that_is_made_later(
    nats_server: NatsServer, start_mirror: StartMirror
) -> None:
    """Started before the streams exist, a mirror finds them when they do."""
    mirror = start_mirror(nats_server.url)
    with connected(nats_server.url) as connection:
        js = JetStream(connection, timeout=PATIENCE_SECONDS)
        js.ensure_topology(Names("wire-mirror"))
        Bucket(js, NAME).put("a", b"{}")

    assert becomes(mirror, {"a": {}})


def test_unreadable_value_hides_no_other(
    nats_server: NatsServer,
    bucket: Bucket,
    start_mirror: StartMirror,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A value of a foreign or newer program is logged and left out, before and after the start."""
    bucket.put("bad", b"\xff")
    bucket.put("good", b"{}")
    mirror = start_mirror(nats_server.url)
    assert becomes(mirror, {"good": {}})

    bucket.put("worse", b"{")
    bucket.put("better", b"{}")
    assert becomes(mirror, {"good": {}, "better": {}})
    assert f"bad in {NAME} is not readable" in caplog.text
    assert f"worse in {NAME} is not readable" in caplog.text


def test_stop_ends_a_mirror_that_finds_no_server(start_mirror: StartMirror) -> None:
    """Also while it waits to try again; the fixture sees that the thread is gone."""
    mirror = start_mirror("nats://127.0.0.1:1")
    assert not mirror.wait_for(bool, 0.05)

    mirror.stop()

    assert not mirror.connected


def test_refused_write_is_not_mirrored(
    nats_server: NatsServer, bucket: Bucket, start_mirror: StartMirror
) -> None:
    """A value JetStream did not store never shows, not even for a moment."""
    bucket.put("a", b'{"n": 1}')
    mirror = start_mirror(nats_server.url)
    assert becomes(mirror, {"a": {"n": 1}})
    seen: list[dict[str, Any]] = []

    with pytest.raises(KeyExists):
        bucket.create("a", b'{"n": 2}')
    bucket.put("b", b"{}")

    def watch(values: dict[str, Any]) -> bool:
        seen.append(values)
        return "b" in values

    assert mirror.wait_for(watch, PATIENCE_SECONDS)
    assert all(values["a"] == {"n": 1} for values in seen)
