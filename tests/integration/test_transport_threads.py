"""One kombu connection used by many threads, each with a channel of its own."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

import pytest
from kombu import Exchange, Producer, Queue

from bridge.errors import NatsConnectionError
from tests.integration.conftest import Connect
from tests.support.inbox import Inbox, send
from tests.support.waiting import wait_until

THREADS, EACH = 20, 25
PATIENCE_SECONDS = 30.0
#: A request that another thread's read has made wait for its whole time limit takes 5 s or more.
PROMPT_SECONDS = 4.0


def test_threads_publish_without_waiting_for_each_other(connect: Connect, name: str) -> None:
    """Whoever reads, every thread learns of its own PubAck at once; each message is stored once."""
    queue, connection = Queue(name), connect()
    queue.bind(connection.channel()).declare()
    started = threading.Barrier(THREADS)

    def publish(thread: int) -> float:
        producer = Producer(connection.channel())
        started.wait(PATIENCE_SECONDS)
        slowest = 0.0
        for number in range(EACH):
            began = time.monotonic()
            producer.publish([thread, number], routing_key=name)
            slowest = max(slowest, time.monotonic() - began)
        return slowest

    with ThreadPoolExecutor(THREADS) as threads:
        slowest = max(threads.map(publish, range(THREADS)))

    assert slowest < PROMPT_SECONDS
    bodies = [message.payload for message in Inbox(connect(), queue).take(THREADS * EACH)]
    assert sorted(bodies) == [[thread, n] for thread in range(THREADS) for n in range(EACH)]


def test_first_uses_at_once(connect: Connect, name: str) -> None:
    """Threads that find nothing set up yet (reply inbox, bindings) lose no message."""
    queue = Queue(name, Exchange(name, type="topic"), routing_key="a.#")
    queue.bind(connect().channel()).declare()
    connection = connect()
    started = threading.Barrier(THREADS)

    def publish(number: int) -> None:
        started.wait(PATIENCE_SECONDS)
        with connection.channel() as channel:
            Producer(channel, queue.exchange).publish(number, routing_key=f"a.{number}")

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(publish, range(THREADS)))

    bodies = [message.payload for message in Inbox(connect(), queue).take(THREADS)]
    assert sorted(bodies) == list(range(THREADS))


def test_publishing_beside_a_thread_that_consumes(connect: Connect, name: str) -> None:
    """A thread in `drain_events` reads the PubAcks of the others, who read its deliveries."""
    queue, connection = Queue(name), connect()
    inbox = Inbox(connection, queue)

    with ThreadPoolExecutor(1) as threads:
        received = threads.submit(inbox.take, EACH)
        slowest = 0.0
        for number in range(EACH):
            began = time.monotonic()
            send(connection, queue, number)
            slowest = max(slowest, time.monotonic() - began)
        bodies = [message.payload for message in received.result(PATIENCE_SECONDS)]

    assert slowest < PROMPT_SECONDS
    assert sorted(bodies) == list(range(EACH))


def test_forked_child_waits_for_no_thread_of_its_parent(connect: Connect, name: str) -> None:
    """Locks that a thread held at the fork stay held in the child, which is told not to go on."""
    connection = connect()
    channel, broker = connection.channel(), connection.connection
    channel.queue_declare(name, exclusive=True)
    uses: list[Callable[[], object]] = [
        lambda: Producer(channel).publish(0, exchange=name),
        lambda: channel.queue_bind(name, name),
        lambda: channel.queue_unbind(name, name),
    ]
    channel.exchange_declare(name)
    holds, forked = threading.Event(), threading.Event()

    def hold() -> None:
        with broker.bindings._load_lock, broker.transient[name]._bind_lock:
            holds.set()
            forked.wait(PATIENCE_SECONDS)

    with ThreadPoolExecutor(1) as threads:
        threads.submit(hold)
        holds.wait(PATIENCE_SECONDS)
        child = os.fork()
        if child == 0:
            _fail_in_fork(uses)
        forked.set()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _fail_in_fork(uses: Iterable[Callable[[], object]]) -> NoReturn:
    """End this process, with 0 where every use has failed at once as one after a fork."""
    status = 1
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(int(PROMPT_SECONDS))
    try:
        for use in uses:
            with pytest.raises(NatsConnectionError, match="before a fork"):
                use()
        status = 0
    finally:
        os._exit(status)


def test_broken_connection_is_told_to_every_thread(connect: Connect, name: str) -> None:
    """Nobody waits on for a thread whose read has failed."""
    connection = connect()
    wire = connection.connection.wire
    errors: list[BaseException] = []

    def wait_in_vain(_: int) -> None:
        try:
            wire.drain(PATIENCE_SECONDS)
            wire.drain(PATIENCE_SECONDS)
        except NatsConnectionError as error:
            errors.append(error)

    with ThreadPoolExecutor(4) as threads:
        waiting = threads.map(wait_in_vain, range(4))
        wait_until(lambda: len(wire._turns._read._waiters) == 3)  # all but the one that reads
        began = time.monotonic()
        wire.close()
        list(waiting)

    assert len(errors) == 4
    assert time.monotonic() - began < PROMPT_SECONDS
