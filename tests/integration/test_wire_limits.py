"""Accounts whose limits are an operator's: what fits works, what does not says what to raise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bridge import topology
from bridge.names import Names
from bridge.wire import Connection, ConnectOptions, JetStream, JetStreamError
from tests.support.nats import NatsServer

STREAMS = len(topology.streams(Names()))


@contextmanager
def limited(directory: Path, limits: str) -> Iterator[JetStream]:
    """JetStream in an account with `limits`, in the configuration language of the server."""
    account = f"jetstream: {{ {limits} }}, users: [ {{ user: u, password: p }} ]"
    server = NatsServer(directory, extra=f"accounts {{ A: {{ {account} }} }}\n")
    server.start()
    url = f"nats://u:p@127.0.0.1:{server.port}"
    connection = Connection(ConnectOptions.from_url(url))
    connection.connect()
    try:
        yield JetStream(connection)
    finally:
        connection.close()
        server.stop()


def test_limit_of_consumers_below_ours(tmp_path: Path) -> None:
    """An account that limits consumers, as hosted ones do, takes our streams, also again."""
    with limited(tmp_path, "max_file: 1G, max_consumers: 1000") as js:
        for _ in range(2):
            js.ensure_topology(Names())

        stream = js.api(f"STREAM.INFO.{Names().task_stream}")
        assert stream["config"]["max_consumers"] == -1


def test_streams_made_beforehand_where_each_needs_max_bytes(tmp_path: Path) -> None:
    """Where the account asks for max_bytes an operator creates the streams, and keeps the limit."""
    with limited(tmp_path, "max_file: 1G, max_bytes_required: true") as js:
        for config in topology.streams(Names()):
            js.api(f"STREAM.CREATE.{config['name']}", {**config, "max_bytes": 10_000_000})

        js.ensure_topology(Names())

        stream = js.api(f"STREAM.INFO.{Names().task_stream}")
        assert stream["config"]["max_bytes"] == 10_000_000


@pytest.mark.parametrize(
    ("limits", "setting"),
    [
        ("max_file: 1G, max_streams: 3", "max_streams"),
        ("max_file: 100M", "room on disk"),
        ("max_file: 1G, max_bytes_required: true", "create the streams beforehand"),
    ],
)
def test_limit_that_is_too_low_is_named(tmp_path: Path, limits: str, setting: str) -> None:
    """The refusal names what to raise and where it says how far."""
    with (
        limited(tmp_path, limits) as js,
        pytest.raises(JetStreamError, match=rf"{setting}.*docs/operations\.md"),
    ):
        js.ensure_topology(Names())


def test_limits_told_by_the_documentation_suffice(tmp_path: Path) -> None:
    """The fewest streams that docs/operations.md names are enough."""
    with limited(tmp_path, f"max_file: 1G, max_streams: {STREAMS}") as js:
        js.ensure_topology(Names())

    told = Path("docs/operations.md").read_text(encoding="utf-8")
    assert f"`max_streams` | {STREAMS} " in told
