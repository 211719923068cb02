"""Queues in memory: the channels of a connection share them, as AMQP's exclusive queues."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from typing import Any

import pytest
from kombu import Connection, Queue
from kombu.common import Broadcast

from bridge.errors import NatsTimeout
from tests.integration.conftest import Connect
from tests.support.inbox import RECEIVE_SECONDS, Inbox
from tests.support.nats import NatsServer
from tests.support.waiting import wait_until


def put(connection: Connection, queue: Queue, *bodies: Any) -> None:
    """Publish to a queue in memory; it is there on return."""
    for body in bodies:
        connection.Producer().publish(body, routing_key=queue.name)
    connection.connection.wire.flush()


def declared(connection: Connection, name: str) -> Queue:
    """Return an exclusive queue that outlives its consumers, which kombu's own do not."""
    with connection.channel() as channel:
        channel.queue_declare(name, exclusive=True)
    return Queue(name, exclusive=True)


def test_it_belongs_to_the_connection(connect: Connect, name: str) -> None:
    """One channel declares it and closes, others consume: each message comes once, by turns."""
    connection = connect()
    queue = Queue(name, exclusive=True)
    with connection.channel() as channel:
        queue.bind(channel).declare()
    put(connection, queue, "early")
    first, second = Inbox(connection, queue, no_ack=True), Inbox(connection, queue, no_ack=True)
    put(connection, queue, *range(4))
    first.wait(3)
    second.wait(2)
    first.assert_quiet()
    assert first.bodies[0] == "early"
    assert sorted(first.bodies[1:] + second.bodies) == [0, 1, 2, 3]


def test_consumers_of_two_channels_may_have_one_tag(connect: Connect, name: str) -> None:
    """A tag is known to its channel only; who is cancelled leaves the other its messages."""
    connection = connect()
    first, second = connection.channel(), connection.channel()
    first.queue_declare(name, exclusive=True)
    came: list[str] = []
    for channel, who in ((first, "first"), (second, "second")):
        channel.basic_consume(
            name, no_ack=True, consumer_tag="tag", callback=lambda _, who=who: came.append(who)
        )
    assert first.queue_declare(name, passive=True).consumer_count == 2
    first.basic_cancel("tag")
    put(connection, Queue(name), 1, 2)
    for _ in range(2):
        connection.drain_events(timeout=5)
    assert came == ["second", "second"]


def test_what_it_gave_out_can_go_back(connect: Connect, name: str) -> None:
    """A message that is rejected to its queue, or whose channel closes, comes again and says so."""
    connection = connect()
    queue = Queue(name, exclusive=True)
    first = Inbox(connection, queue)
    put(connection, queue, "again")
    [message] = first.take()
    assert not message.delivery_info["redelivered"]

    message.requeue()
    [message] = first.take()
    assert message.delivery_info["redelivered"]
    second = Inbox(connection, queue)
    first.close()
    [message] = second.take()
    assert (message.payload, message.delivery_info["redelivered"]) == ("again", True)

    message.reject()
    second.assert_quiet()


@pytest.mark.parametrize("ends", ["ack", "close"])
def test_what_goes_back_goes_to_its_place(connect: Connect, name: str, ends: str) -> None:
    """What a closed channel held comes before what came later; what it acknowledged does not."""
    connection = connect()
    queue = declared(connection, name)
    inbox = Inbox(connection, queue)
    put(connection, queue, *range(4))
    held = inbox.take(4)
    if ends == "ack":
        held[1].ack(multiple=True)
    inbox.close()
    put(connection, queue, "later")
    bound = queue.bind(connection.channel())
    left = [] if ends == "ack" else [0, 1]
    for expected in [*left, 2, 3, "later"]:
        message = bound.get(no_ack=True)
        assert message is not None
        assert message.payload == expected
        assert message.delivery_info["redelivered"] == (expected != "later")
    assert bound.get() is None


def test_what_lies_here_for_a_cancelled_consumer_goes_to_others(
    connect: Connect, name: str
) -> None:
    """Nobody has seen it: it keeps its order and is not called redelivered."""
    connection = connect()
    queue = declared(connection, name)
    first = Inbox(connection, queue)
    put(connection, queue, *range(3))
    first.close()
    assert queue.bind(connection.default_channel).queue_declare(passive=True).message_count == 3
    second = Inbox(connection, queue)
    taken = second.take(3)
    assert [message.payload for message in taken] == [0, 1, 2]
    assert not any(message.delivery_info["redelivered"] for message in taken)
    assert first.messages == []


def test_it_is_counted_got_and_purged(connect: Connect, name: str) -> None:
    """Also what was published just now, by somebody else."""
    connection, other = connect(), connect()
    bound = Queue(name, exclusive=True).bind(connection.channel())
    bound.declare()
    put(other, bound, *range(3))
    assert bound.queue_declare(passive=True) == (name, 3, 0)
    assert bound.purge() == 3
    put(other, bound, "last")
    message = bound.get()
    assert message is not None
    assert message.payload == "last"
    assert bound.get() is None
    message.requeue()
    assert bound.delete(if_empty=True) is None
    assert bound.queue_declare(passive=True).message_count == 1
    assert bound.delete() == 1


def test_an_auto_delete_queue_goes_with_the_last_of_its_consumers(connect: Connect) -> None:
    """Not with the first, which may be on another channel."""
    connection = connect()
    queue = Broadcast("news")
    first, second = Inbox(connection, queue), Inbox(connection, queue)
    first.close()
    connection.Producer().publish("heard", exchange=queue.exchange)
    assert [message.payload for message in second.take()] == ["heard"]
    assert queue.name in connection.connection.transient
    second.close()
    assert connection.connection.transient == {}


def test_it_ends_with_its_connection(connect: Connect, name: str) -> None:
    """The next one that declares it finds it empty; what was held cannot come back."""
    connection = connect()
    queue = Queue(name, exclusive=True)
    inbox = Inbox(connection, queue)
    put(connection, queue, 1, 2)
    [message] = inbox.take(1)
    broker = connection.connection
    held = broker.transient[name]
    broker.collect()
    message.requeue()
    assert (held.message_count, broker.transient) == (0, {})
    again = queue.bind(connect().channel())
    assert again.queue_declare().message_count == 0
    assert again.get() is None


def test_its_name_is_free_afterwards(connect: Connect, name: str) -> None:
    """Nothing of it is left in the server, and another connection may use its name."""
    first = Inbox(connect(), Queue(name, exclusive=True))
    put(connect(), Queue(name), "one")
    first.take()
    first.connection.release()

    second = Inbox(connect(), Queue(name, exclusive=True))
    put(connect(), Queue(name), "two")

    assert [message.payload for message in second.take()] == ["two"]


def test_it_keeps_messages_until_it_is_consumed(connect: Connect, name: str) -> None:
    """A reply may come before its receiver looks."""
    connection = connect()
    queue = Queue(name, exclusive=True).bind(connection.channel())
    queue.declare()
    put(connect(), queue, "early", "later")
    with pytest.raises(TimeoutError):
        connection.drain_events(timeout=0.3)

    early = queue.get(no_ack=True)

    assert early.payload == "early"
    assert queue.purge() == 1


def test_what_the_server_did_not_answer_is_not_taken_for_done(
    connect: Connect, nats_server: NatsServer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked again, a declaration and a first or second binding wait for the server again."""
    connection = connect(nats_server.url)
    broker, channel = connection.connection, connection.channel()
    channel.exchange_declare(name, "fanout")
    channel.queue_declare("here", exclusive=True)
    channel.queue_declare("news", auto_delete=True)  # in memory once it is bound
    subscribed = len(broker.wire._callbacks)
    steps: list[Callable[[], object]] = [
        lambda: channel.queue_declare("late", exclusive=True),
        lambda: channel.queue_bind("here", name),
        lambda: channel.queue_bind("news", name),
    ]

    with monkeypatch.context() as patch, nats_server.frozen():
        patch.setattr(broker.js, "timeout", 0.1)
        patch.setattr(broker.wire, "flush", partial(broker.wire.flush, 0.1))
        for step in steps * 2:
            with pytest.raises(NatsTimeout):
                step()
    assert len(broker.wire._callbacks) == subscribed
    for step in steps:
        step()

    assert set(broker.transient) == {"here", "late", "news"}
    connection.Producer().publish("once", exchange=name)
    for queue in ("here", "news"):
        assert channel.queue_declare(queue, passive=True).message_count == 1


def test_threads_may_share_it(connect: Connect, name: str) -> None:
    """Each on a channel of its own: every message comes once, to whoever reads."""
    connection = connect()
    start, done = threading.Barrier(3), []

    def work(number: int) -> None:
        start.wait()
        inbox = Inbox(connection, declared(connection, name))
        for body in range(100):
            connection.Producer(inbox.channel).publish([number, body], routing_key=name)
        deadline = time.monotonic() + 10
        while len(done) < 300 and time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError):
                connection.drain_events(timeout=0.1)
            for message in inbox.take(len(inbox.messages)):
                done.append(message.payload)
                message.ack()

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(3)))
    assert sorted(done) == [[number, body] for number in range(3) for body in range(100)]


def test_other_threads_may_give_back(connect: Connect, name: str) -> None:
    """As thread pools do while messages are handed over: each comes to its end, none gets lost."""
    connection = connect()
    queue = Queue(name, exclusive=True)
    taken: SimpleQueue[Any] = SimpleQueue()
    for _ in range(2):
        Inbox(connection, queue).consumer.on_message = taken.put
    put(connection, queue, *range(200))
    done: list[int] = []

    def settle() -> None:
        while (message := taken.get()) is not None:
            if message.delivery_info["redelivered"]:
                done.append(message.payload)
                message.ack()
            else:
                message.requeue()

    with ThreadPoolExecutor(4) as pool:
        settled = [pool.submit(settle) for _ in range(4)]
        deadline = time.monotonic() + RECEIVE_SECONDS
        try:
            while len(done) < 200 and time.monotonic() < deadline:
                # Without Celery's hub, a read that waits hears of nothing that is given back.
                with contextlib.suppress(TimeoutError):
                    connection.drain_events(timeout=0.01)
        finally:
            for _ in settled:
                taken.put(None)
    assert [one.exception() for one in settled] == [None] * 4
    assert sorted(done) == list(range(200))


def test_a_channel_holds_no_more_than_its_prefetch(connect: Connect, name: str) -> None:
    """What is settled, whichever way, makes room for the next; what is rejected comes first."""
    connection = connect()
    queue = declared(connection, name)
    inbox = Inbox(connection, queue, prefetch=2)
    put(connection, queue, *range(6))
    first, second = inbox.take(2)
    inbox.assert_quiet()

    first.ack()
    [third] = inbox.take()
    inbox.assert_quiet()
    second.reject()
    [fourth] = inbox.take()
    third.requeue()
    [again] = inbox.take()
    fourth.ack(multiple=True)
    last = inbox.take()
    inbox.assert_quiet()

    assert [m.payload for m in (first, second, third, fourth, again, *last)] == [0, 1, 2, 3, 2, 4]
    inbox.consumer.qos(prefetch_count=3)
    assert [message.payload for message in inbox.take()] == [5]


def test_prefetch_is_each_channel_s_own(connect: Connect, name: str) -> None:
    """What one has no room for goes to the others; who acknowledges nothing has no limit."""
    connection = connect()
    queue = declared(connection, name)
    full, free = Inbox(connection, queue, prefetch=1), Inbox(connection, queue, prefetch=5)
    put(connection, queue, *range(7))
    full.wait(1)
    free.wait(5)
    full.assert_quiet()
    free.assert_quiet()

    greedy = Inbox(connection, queue, prefetch=1, no_ack=True)
    put(connection, queue, 7, 8)

    greedy.wait(3)
    assert greedy.bodies == [6, 7, 8]
    assert len(full.messages + free.messages) == 6


def test_prefetch_is_over_all_queues_of_a_channel(connect: Connect, name: str) -> None:
    """Room that one queue's message leaves is the other's, too."""
    connection = connect()
    one, two = declared(connection, f"{name}-1"), declared(connection, f"{name}-2")
    inbox = Inbox(connection, one, two, prefetch=1)
    put(connection, one, "one")
    put(connection, two, "two")
    [first] = inbox.take()
    inbox.assert_quiet()

    first.ack()

    [second] = inbox.take()
    assert {first.payload, second.payload} == {"one", "two"}


def test_another_thread_s_acknowledgement_wakes_the_reader(connect: Connect, name: str) -> None:
    """The next message comes at once and not when the reader looks again, each second."""
    connection = connect()
    queue = declared(connection, name)
    taken: SimpleQueue[Any] = SimpleQueue()
    inbox = Inbox(connection, queue, prefetch=1)
    inbox.consumer.on_message = taken.put
    put(connection, queue, *range(10))
    turns = connection.connection.wire._turns
    done: list[int] = []

    def settle() -> None:
        while len(done) < 10:
            message = taken.get()
            wait_until(lambda: turns._reader)
            done.append(message.payload)
            message.ack()

    started = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        settled = pool.submit(settle)
        while not settled.done():
            with contextlib.suppress(TimeoutError):
                connection.drain_events(timeout=1)

    assert done == list(range(10))
    assert time.monotonic() - started < 5


def test_what_goes_back_while_the_last_is_taken_comes_too(
    connect: Connect, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread gives it back just then, and nothing comes after it that would tell of it."""
    connection = connect()
    queue = declared(connection, name)
    inbox = Inbox(connection, queue)
    put(connection, queue, "first", "last")
    [first] = inbox.take()
    held = connection.connection.transient[name]
    get = held.get

    def get_meanwhile() -> Any:
        monkeypatch.undo()
        waiting = get()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(first.requeue).result()
        return waiting

    monkeypatch.setattr(held, "get", get_meanwhile)

    assert [message.payload for message in inbox.take(2)] == ["last", "first"]
