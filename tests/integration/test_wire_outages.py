"""What becomes of a connection when its server, its peer or its process goes another way."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from bridge.errors import NatsConnectionError, NatsTimeout
from bridge.names import Names
from bridge.wire import Connection, ConnectOptions, JetStream
from tests.support.nats import NatsServer
from tests.support.wire import PATIENCE_SECONDS, connected, drain_until_closed


@pytest.fixture
def ours(shared_nats: NatsServer) -> Iterator[Connection]:
    with connected(shared_nats.url) as connection:
        yield connection


@pytest.mark.parametrize("use", ["publish", "drain", "flush", "request", "close"])
def test_forked_child_cannot_use_its_parents_connection(ours: Connection, use: str) -> None:
    """In a child every use fails and closing is silent; the parent's connection lives on."""
    ours.request("$JS.API.INFO", b"")
    actions: dict[str, Callable[[], object]] = {
        "publish": lambda: ours.publish("wire.fork", b"ghost"),
        "drain": lambda: ours.drain(0.1),
        "flush": lambda: ours.flush(0.1),
        "request": lambda: ours.request("$JS.API.INFO", b""),
    }
    received: list[bytes] = []
    ours.subscribe("wire.fork", lambda m: received.append(m.payload))
    ours.flush()

    child = os.fork()
    if child == 0:
        status = 1
        try:
            if use == "close":
                ours.close()
                status = 0
            else:
                actions[use]()
        except NatsConnectionError as error:
            status = 0 if "fork" in str(error) else 2
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 0
    ours.publish("wire.fork", b"parent")
    ours.flush()
    assert received == [b"parent"]


def test_child_forked_while_a_thread_writes_does_not_hang(ours: Connection) -> None:
    """The lock of a thread that does not exist in the child holds up nobody there."""
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            ours.publish("wire.noise", b"x" * 10_000)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        children = []
        for _ in range(20):
            child = os.fork()
            if child == 0:
                try:
                    ours.close()
                    ours.publish("wire.noise", b"")
                except NatsConnectionError:
                    os._exit(0)
                finally:
                    os._exit(1)
            children.append(child)
        statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    finally:
        stop.set()
        writer.join(PATIENCE_SECONDS)

    assert statuses == [0] * 20


def test_server_killed_in_the_middle_of_a_request(nats_server: NatsServer) -> None:
    """Who waits for a reply of a server that dies is told at once, not after the time limit."""
    with connected(nats_server.url) as service, connected(nats_server.url) as client:
        service.subscribe("wire.never", lambda _: nats_server.kill())
        service.flush()
        thread = threading.Thread(target=drain_until_closed, args=(service,))
        thread.start()
        started = time.monotonic()
        try:
            with pytest.raises(NatsConnectionError) as caught:
                client.request("wire.never", b"", timeout=60)
        finally:
            thread.join(PATIENCE_SECONDS)

        assert not isinstance(caught.value, NatsTimeout)
        assert time.monotonic() - started < PATIENCE_SECONDS
        assert not client.connected


def test_nothing_is_published_after_a_failure(nats_server: NatsServer) -> None:
    """A publish that failed does not happen later: no ghost after the server's return."""
    names = Names()
    subject = names.task_subject("ghosts")
    with connected(nats_server.url) as connection:
        js = JetStream(connection)
        js.ensure_topology(names)
        js.publish(subject, b"stored")
        nats_server.kill()
        for _ in range(3):
            with pytest.raises(NatsConnectionError):
                js.publish(subject, b"ghost")
        nats_server.start()
        with pytest.raises(NatsConnectionError):
            js.publish(subject, b"ghost")

    with connected(nats_server.url) as connection:
        state = JetStream(connection).api(f"STREAM.INFO.{names.task_stream}")["state"]
        assert (state["messages"], state["last_seq"]) == (1, 1)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def test_next_server_is_taken_when_the_first_is_down(shared_nats: NatsServer) -> None:
    """Of several servers the first that answers is used."""
    url = f"nats://127.0.0.1:{free_port()},127.0.0.1:{shared_nats.port}"

    with connected(url) as connection:
        connection.flush()
        assert connection.server_info["port"] == shared_nats.port


def test_next_server_is_taken_when_the_first_refuses(
    shared_nats: NatsServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A server that refuses our login does not keep us from the next, greeted afresh."""
    closed = NatsServer(tmp_path_factory.mktemp("closed"), extra="authorization { token: t }\n")
    closed.start()
    try:
        with connected(f"nats://127.0.0.1:{closed.port},127.0.0.1:{shared_nats.port}") as ours:
            assert ours.server_info["port"] == shared_nats.port
    finally:
        closed.stop()


def test_no_server_at_all() -> None:
    """Where nothing listens, the error names the address and what to do."""
    port = free_port()
    connection = Connection(ConnectOptions.from_url(f"nats://127.0.0.1:{port}"))

    with pytest.raises(NatsConnectionError, match=f"127.0.0.1:{port}.*start it or correct"):
        connection.connect()


def test_unresolvable_host_is_a_connection_error() -> None:
    """A host name that cannot even be looked up is no other kind of failure."""
    connection = Connection(ConnectOptions.from_url(f"nats://{'a' * 70}.invalid"))

    with pytest.raises(NatsConnectionError, match="correct the URL"):
        connection.connect()


@pytest.mark.parametrize("greeting", [b"", b"SSH-2.0-OpenSSH_9.2\r\n", b"INFO {}"])
def test_something_else_listens(greeting: bytes) -> None:
    """A silent, a foreign and a stuck listener are refused within the time limit."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"nats://127.0.0.1:{listener.getsockname()[1]}"
        connection = Connection(ConnectOptions.from_url(url, connect_timeout=0.5))
        outcome: list[NatsConnectionError] = []

        def connect() -> None:
            try:
                connection.connect()
            except NatsConnectionError as error:
                outcome.append(error)

        client = threading.Thread(target=connect)
        client.start()
        accepted, _ = listener.accept()
        with accepted:
            accepted.sendall(greeting)
            client.join(PATIENCE_SECONDS)

    assert len(outcome) == 1
    assert not connection.connected


def _keep_until_broken(connection: Connection, silence_seconds: float) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        connection.check_peer(silence_seconds)
        if select.select([connection], [], [], 0.05)[0]:
            connection.drain(0)


def test_server_that_falls_silent_is_noticed(nats_server: NatsServer) -> None:
    """A half-open connection is closed once pings go unanswered, though no packet says so."""
    with connected(nats_server.url) as connection:
        connection.flush()
        with nats_server.frozen(), pytest.raises(NatsConnectionError, match="no sign of life"):
            _keep_until_broken(connection, silence_seconds=0.2)
        assert not connection.connected


def test_busy_reader_is_not_taken_for_a_dead_server(ours: Connection) -> None:
    """While answers lie unread, however long, the server counts as alive."""
    ours.check_peer(0.0)
    assert select.select([ours], [], [], PATIENCE_SECONDS)[0], "the PONG did not come"

    for _ in range(100):
        ours.check_peer(0.0)

    ours.flush()
    assert ours.connected


def test_quiet_connection_is_not_taken_for_dead(ours: Connection) -> None:
    """Silence before the first ping counts for nothing: nobody had been asked."""
    ours.check_peer(0.0)

    ours.flush()
    assert ours.connected
