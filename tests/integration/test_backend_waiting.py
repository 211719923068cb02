"""Waiting for results: who waits is woken, and nothing stays of what nobody waits for."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
import uuid
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
from celery import Celery, states
from celery.exceptions import TimeoutError as ResultTimeout

from bridge.errors import NatsConnectionError
from bridge.wire import SILENCE_SECONDS
from tests.support.celery_client import close_app, make_app
from tests.support.nats import NatsServer
from tests.support.proxy import Proxy
from tests.support.recovery import BACK_SECONDS
from tests.support.waiting import wait_until

#: A wake-up takes a millisecond here; Celery's own interval would be a second.
PROMPT_SECONDS = 0.5


@pytest.fixture
def app(shared_nats: NatsServer) -> Iterator[Celery]:
    app = make_app(shared_nats.url)
    yield app
    close_app(app)


@pytest.fixture
def task_id() -> str:
    return str(uuid.uuid4())


def test_waiting_ends_with_the_result(app: Celery, task_id: str) -> None:
    """A waiter is woken by the result itself, at once."""
    latencies = []
    for number in range(10):
        name = f"{task_id}-{number}"
        stored: list[float] = []

        def store(name: str = name, stored: list[float] = stored) -> None:
            app.backend.store_result(name, "x", states.STARTED)
            stored.append(time.monotonic())
            app.backend.store_result(name, "done", states.SUCCESS)

        timer = threading.Timer(0.05, store)
        timer.start()
        assert app.AsyncResult(name).get(timeout=10) == "done"
        latencies.append(time.monotonic() - stored[0])
        timer.join()

    assert sorted(latencies)[5] < 0.05
    assert max(latencies) < PROMPT_SECONDS


def test_waiting_for_what_is_there_takes_no_time(app: Celery, task_id: str) -> None:
    """A result that came before anybody waited is found."""
    app.backend.store_result(task_id, "there", states.SUCCESS)

    started = time.monotonic()
    assert app.AsyncResult(task_id).get(timeout=5) == "there"

    assert time.monotonic() - started < PROMPT_SECONDS


@pytest.mark.parametrize("is_waited_for", [True, False])
def test_nothing_is_kept_of_a_result_thrown_away(
    app: Celery, task_id: str, is_waited_for: bool
) -> None:
    """A web process that sends for months grows by none of its tasks."""

    class Name(str):  # str itself bears no weak reference
        pass

    name = Name(task_id)
    result, later = app.AsyncResult(name), app.AsyncResult(f"{task_id}-later")
    if is_waited_for:
        app.backend.add_pending_results([result, later])  # as a group does when it is made
        for stored in (task_id, task_id, later.id):  # a task ran twice
            app.backend.store_result(stored, "there", states.SUCCESS)
        assert result.get(timeout=5) == later.get(timeout=5) == "there"
        with pytest.raises(ResultTimeout):  # what has ended is forgotten with the next wait
            app.AsyncResult(f"{task_id}-never").get(timeout=0.01)
    kept_name = weakref.ref(name)

    del result, later, name
    gc.collect()

    assert kept_name() is None
    states_in_memory = [
        thing for thing in gc.get_objects() if type(thing) is dict and "date_done" in thing
    ]
    assert task_id not in [state.get("task_id") for state in states_in_memory]


@pytest.mark.alone
def test_many_threads_are_each_woken_at_once(app: Celery, task_id: str) -> None:
    """Whichever thread reads, none waits for its own turn to learn of its result."""
    names = [f"{task_id}-{number}" for number in range(16)]
    waiting = threading.Barrier(len(names) + 1)
    stored: dict[str, float] = {}

    def wait(name: str) -> float:
        result = app.AsyncResult(name)
        waiting.wait(10)
        assert result.get(timeout=20) == name
        return time.monotonic() - stored[name]

    with ThreadPoolExecutor(len(names)) as pool:
        waits = [pool.submit(wait, name) for name in names]
        waiting.wait(10)
        for name in reversed(names):
            time.sleep(0.03)  # apart, so that one read brings one result
            stored[name] = time.monotonic()
            app.backend.store_result(name, name, states.SUCCESS)
        latencies = [wait.result() for wait in waits]

    assert max(latencies) < PROMPT_SECONDS, sorted(latencies)


def test_waiting_has_a_limit(app: Celery, task_id: str) -> None:
    """Celery's own TimeoutError, about when asked for."""
    started = time.monotonic()
    with pytest.raises(ResultTimeout):
        app.AsyncResult(task_id).get(timeout=0.3)

    assert 0.2 < time.monotonic() - started < 3


def test_waiting_survives_a_restart(nats_server: NatsServer, task_id: str) -> None:
    """Who waits while the server crashes still gets what comes later, and what was before."""
    app = make_app(nats_server.url)
    app.backend.store_result(f"{task_id}-early", "early", states.SUCCESS)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(app.AsyncResult(task_id).get, timeout=30)
        nats_server.kill()
        nats_server.start()
        app.backend.store_result(task_id, "late", states.SUCCESS)

        assert waiting.result() == "late"
    assert app.AsyncResult(f"{task_id}-early").get(timeout=5) == "early"
    close_app(app)


def test_waiting_survives_a_silent_peer(nats_server: NatsServer, task_id: str) -> None:
    """A half-open connection is given up, and every result asked for over another one."""
    names = [f"{task_id}-{number}" for number in range(3)]
    with Proxy(nats_server.port) as proxy, ThreadPoolExecutor(len(names)) as threads:
        direct, app = make_app(nats_server.url), make_app(proxy.url)
        waiting = [threads.submit(app.AsyncResult(name).get, timeout=60) for name in names]
        wait_until(lambda: all(map(app.backend.result_consumer.is_watching, names)))

        assert proxy.silence() == 1
        silent = time.monotonic()
        for name in names:
            direct.backend.store_result(name, name, states.SUCCESS)

        assert [wait.result() for wait in waiting] == names
        assert time.monotonic() - silent < SILENCE_SECONDS + 2 * BACK_SECONDS
        close_app(direct)
        close_app(app)


def test_lost_answers_hold_up_no_other(nats_server: NatsServer, task_id: str) -> None:
    """What a frozen copy was asked is not waited for, although other messages come all the time."""
    names = [f"{task_id}-{number}" for number in range(40)]
    with Proxy(nats_server.port) as proxy, ThreadPoolExecutor(1) as threads:
        direct, app = make_app(nats_server.url), make_app(proxy.url)
        for name in names:
            direct.backend.store_result(name, name, states.SUCCESS)
        busy = app.AsyncResult(task_id)
        app.backend.add_pending_result(busy)
        direct.backend.store_result(task_id, None, states.STARTED)
        app.backend.result_consumer.drain_events(timeout=10)
        with proxy.losing():
            results = [app.AsyncResult(name) for name in names]
            app.backend.add_pending_results(results)
        last = threads.submit(results[-1].get, timeout=4 * SILENCE_SECONDS)
        while not last.done():
            direct.backend.store_result(task_id, None, states.STARTED)
            wait([last], timeout=0.2)

        assert last.result() == names[-1]
        close_app(direct)
        close_app(app)


def test_reader_leaves_alone_what_another_thread_has_opened(
    shared_nats: NatsServer, task_id: str
) -> None:
    """Who reads on a broken connection ends no newer one."""
    with Proxy(shared_nats.port) as proxy, ThreadPoolExecutor(2) as threads:
        app = make_app(proxy.url)
        consumer = app.backend.result_consumer
        waiting = threads.submit(app.AsyncResult(task_id).get, timeout=30)
        wait_until(lambda: consumer.is_watching(task_id))
        broken = consumer._connection
        with consumer._guard:  # which the other thread was faster to take
            assert proxy.reset() == 1
            wait_until(lambda: not broken.connected)
            consumer._close_broken(NatsConnectionError("seen by the other thread"))
            opened = consumer._open()
        app.backend.store_result(task_id, "done", states.SUCCESS)

        assert waiting.result() == "done"
        assert consumer._connection is opened
        close_app(app)


def test_forked_child_waits_for_itself(app: Celery, task_id: str) -> None:
    """A child needs neither the thread that read in its parent nor that one's connection."""
    begun = app.AsyncResult(f"{task_id}-begun")
    app.backend.add_pending_result(begun)
    app.backend.store_result(begun.id, "begun", states.SUCCESS)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(app.AsyncResult(task_id).get, timeout=30)
        wait_until(lambda: app.backend.result_consumer.is_watching(task_id))

        child = os.fork()
        if child == 0:
            status = 1
            try:
                signal.alarm(20)  # ends a child that hangs
                app.backend.store_result(f"{task_id}-new", "new", states.SUCCESS)
                new = app.AsyncResult(f"{task_id}-new").get(timeout=10)
                status = 0 if (new, begun.get(timeout=10)) == ("new", "begun") else 2
                app.backend.close()
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        app.backend.store_result(task_id, "parent's", states.SUCCESS)

        assert os.waitstatus_to_exitcode(status) == 0
        assert waiting.result() == "parent's"


def test_forked_child_begins_anew_before_any_of_its_threads(app: Celery, task_id: str) -> None:
    """So none of them takes a lock that its parent held, or begins anew after another."""
    consumer = app.backend.result_consumer
    app.backend.add_pending_result(app.AsyncResult(task_id))
    with consumer._guard:
        child = os.fork()
        if child == 0:
            os._exit(consumer._guard.locked() or consumer.is_watching(task_id))
    _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 0
    assert consumer.is_watching(task_id)


def test_a_backend_that_is_not_used_any_more_is_freed(shared_nats: NatsServer) -> None:
    """Though every fork has to tell it."""
    app = make_app(shared_nats.url)
    consumer = weakref.ref(app.backend.result_consumer)
    close_app(app)
    del app
    gc.collect()

    assert consumer() is None


def test_who_begins_to_wait_as_another_goes_is_told(app: Celery, task_id: str) -> None:
    """The garbage collector, which saw nobody else wait, cancels what somebody now waits for."""
    result = app.AsyncResult(task_id)
    app.backend.add_pending_result(result)
    app.backend.result_consumer.cancel_for(task_id)
    app.backend.store_result(task_id, "done", states.SUCCESS)

    assert result.get(timeout=5) == "done"
