"""Connections that threads, forks and greenlets borrow."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from bridge.errors import NatsConnectionError, NatsPermissionError, NatsTimeout
from bridge.wire import Connection, ConnectionPool, ConnectOptions, Message
from bridge.wire.election import ask
from tests.support.greenlets import PATCHES, assert_works_green
from tests.support.nats import NatsServer
from tests.support.proxy import Proxy
from tests.support.wire import PATIENCE_SECONDS, connected


@pytest.fixture
def pool(shared_nats: NatsServer) -> Iterator[ConnectionPool]:
    pool = ConnectionPool(ConnectOptions.from_url(shared_nats.url))
    yield pool
    pool.close()


def test_connection_is_used_again(pool: ConnectionPool) -> None:
    """One borrower after another gets the same connection, already open."""
    with pool.connection() as first:
        first.flush()
    with pool.connection() as second:
        second.flush()

    assert first is second


def test_borrowers_at_the_same_time_get_connections_of_their_own(pool: ConnectionPool) -> None:
    """What is lent is not lent twice; of two given back, the last comes out first."""
    with pool.connection() as one, pool.connection() as other:
        assert one is not other

    with pool.connection() as next_one:
        assert next_one is one


def test_connection_of_a_failed_borrower_is_dropped(pool: ConnectionPool) -> None:
    """After an exception nobody knows what still comes on a connection, so nobody gets it."""
    with pytest.raises(RuntimeError, match="borrower"), pool.connection() as failed:
        raise RuntimeError("the borrower failed")

    assert not failed.connected
    with pool.connection() as fresh:
        assert fresh is not failed
        fresh.flush()


def test_connection_the_server_closed_is_not_lent(nats_server: NatsServer) -> None:
    """After a restart of the server a borrower gets a new connection and notices nothing."""
    pool = ConnectionPool(ConnectOptions.from_url(nats_server.url))
    try:
        with pool.connection() as before:
            before.flush()
        nats_server.restart()
        with pool.connection() as after:
            after.flush()
        assert after is not before

        nats_server.kill()
        with pytest.raises(NatsConnectionError), pool.connection():
            pass
    finally:
        pool.close()


def test_a_broken_connection_takes_the_idle_ones_along(shared_nats: NatsServer) -> None:
    """Those of a host that died are half-open too, and each would cost a time limit to find out."""
    with Proxy(shared_nats.port) as proxy:
        pool = ConnectionPool(ConnectOptions.from_url(proxy.url))
        with ExitStack() as lent:
            for _ in range(3):
                lent.enter_context(pool.connection()).flush()
        assert proxy.silence() == 3

        with pytest.raises(NatsTimeout), pool.connection() as broken:
            broken.flush(timeout=0.2)
        with pool.connection() as fresh:
            fresh.flush()
        pool.close()


def _asked_twice(connection: Connection) -> None:
    connection.flush()
    connection.request("pool.deaf", timeout=0.1)


def _asked_in_a_cluster(connection: Connection) -> None:
    connection.server_info["cluster"] = "test"
    ask(connection, [("pool.deaf", b"", None)], timeout=1.5, repeatable=True)


@pytest.mark.parametrize("work", [_asked_twice, _asked_in_a_cluster])
def test_a_late_answer_costs_no_connection_but_its_own(
    shared_nats: NatsServer, pool: ConnectionPool, work: Callable[[Connection], None]
) -> None:
    """Where the server has said something it is there, though nobody leads a stream, say."""
    with connected(shared_nats.url) as deaf:
        deaf.subscribe("pool.deaf", print)
        deaf.flush()
        with pool.connection(), pool.connection() as idle:
            idle.flush()

        with pytest.raises(NatsTimeout), pool.connection() as asked:
            work(asked)

    with pool.connection() as other:
        assert other is idle


def test_a_refused_operation_costs_no_connection_but_its_own(pool: ConnectionPool) -> None:
    """The server is there, and the others are as good as before."""
    with pool.connection(), pool.connection() as idle:
        idle.flush()

    with pytest.raises(NatsPermissionError), pool.connection():
        raise NatsPermissionError("not allowed")

    with pool.connection() as other:
        assert other is idle


def test_idle_connections_are_limited(shared_nats: NatsServer) -> None:
    """Beyond `max_idle`, what is given back is closed."""
    pool = ConnectionPool(ConnectOptions.from_url(shared_nats.url), max_idle=1)
    try:
        with pool.connection() as one, pool.connection() as other:
            pass
        assert other.connected
        assert not one.connected
    finally:
        pool.close()
    assert not other.connected


def test_forked_child_opens_connections_of_its_own(pool: ConnectionPool) -> None:
    """A child does not touch what lies in the pool, and the parent goes on with it."""
    with pool.connection() as parents:
        parents.flush()

    child = os.fork()
    if child == 0:
        status = 1
        try:
            with pool.connection() as own:
                own.flush()
                status = 0 if own is not parents else 2
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 0
    with pool.connection() as again:
        assert again is parents
        again.flush()


def test_threads_get_the_replies_to_their_own_requests(
    shared_nats: NatsServer, pool: ConnectionPool
) -> None:
    """Under concurrent use no reply goes astray, and connections stay as few as borrowers."""
    used: set[int] = set()
    stop = threading.Event()

    def serve(ready: threading.Event) -> None:
        with connected(shared_nats.url) as service:

            def answer(message: Message) -> None:
                service.publish(message.reply, message.payload)
                if message.payload == b"stop":
                    stop.set()

            service.subscribe("pool.echo", answer)
            service.flush()
            ready.set()
            while not stop.is_set():
                service.drain(PATIENCE_SECONDS)

    ready = threading.Event()
    service = threading.Thread(target=serve, args=(ready,))
    service.start()
    assert ready.wait(PATIENCE_SECONDS)

    def ask(number: int) -> bool:
        with pool.connection() as connection:
            used.add(id(connection))
            payload = b"%d" % number
            return connection.request("pool.echo", payload, timeout=10).payload == payload

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(ask, range(400)))
    with pool.connection() as connection:
        connection.request("pool.echo", b"stop")
    service.join(PATIENCE_SECONDS)

    assert all(answers)
    assert len(used) <= 8


@pytest.mark.parametrize("library", PATCHES)
def test_under_greenlets(shared_nats: NatsServer, library: str) -> None:
    """In a program patched by gevent or eventlet, waiting gives way and closing wakes who waits."""
    assert_works_green(library, shared_nats.url)
