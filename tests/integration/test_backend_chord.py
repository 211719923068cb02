"""Chords: the callback is sent once, whatever runs twice, at once or after a crash."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest
from billiard.einfo import ExceptionInfo
from billiard.exceptions import WorkerLostError
from celery import Celery, states
from celery.app.task import Context
from celery.exceptions import ChordError
from celery.result import AsyncResult
from celery.worker.request import Request

from bridge.backend.chord_record import ChordRecord, new_holder
from bridge.names import Names
from bridge.wire import Connection, ConnectOptions, JetStream
from bridge.worker import lost
from tests.support.nats import NatsServer
from tests.support.waiting import wait_until


@pytest.fixture
def chord(shared_nats: NatsServer) -> Iterator[ChordRecord]:
    """A chord of its own on a connection of its own."""
    connection = Connection(ConnectOptions.from_url(shared_nats.url, name="test"))
    connection.connect()
    js = JetStream(connection, timeout=5.0)
    js.ensure_topology(Names())
    yield ChordRecord(js, Names(), f"group {uuid4()}", ttl=60.0)
    connection.close()


@pytest.fixture
def app(shared_nats: NatsServer) -> Iterator[Celery]:
    """A Celery application whose tasks go to a queue of its own and are never run."""
    app = Celery("chords", broker=shared_nats.url, backend=shared_nats.url, set_as_current=False)
    app.conf.task_default_queue = f"chords {uuid4()}"
    # One backend for all threads of a test, so that it can be closed.
    app.conf.result_backend_thread_safe = True

    @app.task(name="collect", shared=False)
    def collect(results: list[int]) -> None:
        """The callback."""

    yield app
    app.backend.result_consumer.stop()
    app.backend._pool.close()
    app.close()


def waiting(app: Celery) -> int:
    """Return how many messages the application's queue holds."""
    with app.connection_for_read() as connection:
        queue = app.conf.task_default_queue
        return int(connection.default_channel.queue_declare(queue, durable=True).message_count)


def header_task(app: Celery, group_id: str, index: int, callback_id: str) -> Context:
    """Return the request of one header task as a worker has it."""
    callback = app.signature("collect", app=app, task_id=callback_id)
    return Context(
        id=f"{group_id}-{index}", group=group_id, group_index=index, chord=dict(callback)
    )


def test_only_the_last_part_may_send_the_callback(chord: ChordRecord) -> None:
    """A chord of three is complete when the third part is stored and not before."""
    chord.set_size(3)
    assert [chord.store(chord.part("task", index), b"") for index in range(3)] == [-2, -1, 0]
    assert chord.claim(new_holder(chord.part("task", 2)), 0) is not None


def test_a_part_that_runs_twice_counts_once(chord: ChordRecord) -> None:
    """A redelivered part raises the counter but cannot complete the chord in another's place."""
    chord.set_size(2)
    part = chord.part("task", 0)
    chord.store(part, b"first")
    assert chord.store(part, b"second") == 0
    assert chord.claim(new_holder(part), 0) is None
    assert chord.values() == [b"first"]


def test_the_size_is_set_once_however_often_it_is_sent(chord: ChordRecord) -> None:
    """Two workers that send the same chord at once do not make it wait for ever."""
    chord.set_size(1)
    chord.set_size(1)
    assert chord.store(chord.part("task", 0), b"") == 0


def test_parts_that_return_before_the_size_is_known_do_not_claim(chord: ChordRecord) -> None:
    """A header that is still being sent is not taken for complete."""
    part = chord.part("task", 0)
    assert chord.store(part, b"") == 1
    assert chord.claim(new_holder(part), 1) is None
    chord.add("extra")
    chord.add("another")
    assert chord.store(chord.part("extra", 0), b"") == 0
    assert chord.claim(new_holder(part), 0) is None


def test_one_part_gets_the_claim(chord: ChordRecord) -> None:
    """Of two parts that both see the chord complete, one sends the callback."""
    chord.set_size(2)
    parts = [chord.part("task", index) for index in range(2)]
    for part in parts:
        chord.store(part, b"")
    claims = [chord.claim(new_holder(part), 0) for part in parts]
    assert claims[0] is not None
    assert claims[1] is None


def test_a_claim_outlives_the_worker_that_died_with_it(chord: ChordRecord) -> None:
    """The part that held the claim takes it over when it is delivered again, and only it."""
    chord.set_size(1)
    part = chord.part("task", 0)
    chord.store(part, b"")
    dead, heir = new_holder(part), new_holder(part)
    revision = chord.claim(dead, 0)
    assert revision is not None
    assert chord.claim(heir, 1) is not None
    assert chord.renew(dead, revision) is None


def test_a_part_that_comes_after_the_end_changes_nothing(chord: ChordRecord) -> None:
    """A header task that runs again after the callback was sent sends no second one."""
    chord.set_size(1)
    part = chord.part("task", 0)
    chord.store(part, b"")
    revision = chord.claim(new_holder(part), 0)
    assert revision is not None
    chord.finish(revision)
    assert chord.store(part, b"") == 1
    assert chord.claim(new_holder(part), 1) is None
    assert chord.values() == []


def test_a_chord_may_be_sent_again(chord: ChordRecord) -> None:
    """A second run with the same ids starts from nothing and completes."""
    part = chord.part("task", 0)
    for run in (b"first", b"second"):
        chord.reset()
        chord.set_size(1)
        counted = chord.store(part, run)
        assert counted >= 0
        revision = chord.claim(new_holder(part), counted)
        assert revision is not None
        assert chord.values() == [run]
        chord.finish(revision)


def test_an_added_part_is_waited_for(chord: ChordRecord) -> None:
    """A part added to a running chord must return too."""
    chord.set_size(1)
    chord.add("extra")
    assert chord.store(chord.part("task", 0), b"") == -1
    assert chord.store(chord.part("extra", 0), b"") == 0


def test_results_keep_the_order_of_the_header(chord: ChordRecord) -> None:
    """Results are in header order, tenth after ninth, and parts without an index come last."""
    for index in (None, 10, 9, 0):
        chord.store(chord.part("task", index), str(index).encode())
    assert chord.values() == [b"0", b"9", b"10", b"None"]


def test_many_parts_at_once_send_one_callback(app: Celery) -> None:
    """Parts that return from several threads at once, each twice, make one callback."""
    group_id, callback_id, size = str(uuid4()), str(uuid4()), 300
    app.backend.apply_chord((group_id, []), None)
    app.backend.set_chord_size(group_id, size)

    def finish(index: int) -> None:
        request = header_task(app, group_id, index % size, callback_id)
        app.backend.on_chord_part_return(request, states.SUCCESS, index % size)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(finish, range(2 * size)))
    with app.connection_for_read() as connection:
        queue = connection.SimpleQueue(app.conf.task_default_queue)
        message = queue.get(timeout=5)
        assert message.payload[0] == [list(range(size))]
        message.ack()
        queue.close()
    assert waiting(app) == 0


def test_a_failed_part_fails_the_callback(app: Celery) -> None:
    """Who waits for the callback learns which part failed and why; the callback is not sent."""
    group_id, callback_id = str(uuid4()), str(uuid4())
    app.backend.set_chord_size(group_id, 1)
    request = header_task(app, group_id, 0, callback_id)
    app.backend.on_chord_part_return(request, states.FAILURE, ValueError("no such fish"))
    with pytest.raises(ChordError, match="no such fish"):
        app.AsyncResult(callback_id).get(timeout=5)
    assert waiting(app) == 0


def test_a_header_longer_than_a_chord_is_kept_fails_the_callback(
    app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    """Who waits for the callback learns that parts are gone, and so does the log."""
    app.conf.result_chord_expires = 1
    group_id, callback_id = str(uuid4()), str(uuid4())
    app.backend.set_chord_size(group_id, 2)
    first, last = (header_task(app, group_id, index, callback_id) for index in range(2))
    app.backend.on_chord_part_return(first, states.SUCCESS, 1)
    wait_until(lambda: app.backend._chord(group_id, ChordRecord.values), lambda values: not values)

    app.backend.on_chord_part_return(last, states.SUCCESS, 2)

    with pytest.raises(ChordError, match="result_chord_expires"):
        app.AsyncResult(callback_id).get(timeout=5)
    assert "result_chord_expires" in caplog.text
    assert waiting(app) == 0


def test_a_part_whose_process_was_lost_after_its_success(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Celery acknowledges it, for its result is there; the chord is told by the worker itself."""
    monkeypatch.setattr(Request, "_success_was_stored", lost._success_was_stored)
    group_id, callback_id = str(uuid4()), str(uuid4())
    app.backend.set_chord_size(group_id, 1)
    part = app.signature("collect", args=([],), app=app)
    options = dict(header_task(app, group_id, 0, callback_id).__dict__)
    result = part.apply_async(chord=options["chord"], group_id=group_id, group_index=0)
    app.backend.store_result(result.id, 7, states.SUCCESS)

    with app.connection_for_read() as connection:
        queue = connection.SimpleQueue(app.conf.task_default_queue)
        request = Request(queue.get(timeout=5), app=app, task=app.tasks["collect"])
        try:
            raise WorkerLostError("killed")
        except WorkerLostError:
            request.on_failure(ExceptionInfo())
        message = queue.get(timeout=5)
        assert message.headers["id"] == callback_id
        assert message.payload[0] == [[7]]
        queue.close()


def test_groups_within_the_header_are_saved_for_the_join(app: Celery) -> None:
    """A header that holds a group is restored with its structure."""
    inner = app.GroupResult(str(uuid4()), [app.AsyncResult(str(uuid4()))])
    header = app.GroupResult(str(uuid4()), [app.AsyncResult(str(uuid4())), inner])
    app.backend.apply_chord((header.id, header.results), None)
    assert app.GroupResult.restore(header.id, app=app) == header


def test_waiting_again_for_a_finished_task(app: Celery) -> None:
    """A second AsyncResult gets the result although the watch of the first has just ended."""
    task_id = str(uuid4())
    app.backend.store_result(task_id, 1, states.SUCCESS)
    assert app.AsyncResult(task_id).get(timeout=5) == 1
    assert app.AsyncResult(task_id).get(timeout=5) == 1


def test_a_thrown_away_result_leaves_others_waiting(app: Celery) -> None:
    """Garbage that names the same task does not end the watch of who waits for it."""
    task_id = str(uuid4())
    garbage = AsyncResult(task_id, app=app)
    waiter = AsyncResult(task_id, app=app)
    app.backend.add_pending_result(waiter)
    del garbage
    gc.collect()
    app.backend.store_result(task_id, 2, states.SUCCESS)
    assert waiter.get(timeout=5) == 2
