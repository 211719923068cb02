"""Looking up, waiting for and cancelling tasks on a real server."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from bridge.errors import NatsConnectionError, TaskNotFound
from bridge.names import bucket_stream, escape
from bridge.records import ActiveTask, Snapshot, WorkerState
from bridge.submission.lookup import TaskLookup
from bridge.submission.request import Submission
from bridge.wire import Message
from tests.support.nats import NatsServer
from tests.support.submission import Room

#: Much longer than anything here takes: a test that reaches it has found a wait that never ended.
_LONG_SECONDS = 30.0


@pytest.fixture
def room(nats_server: NatsServer) -> Iterator[Room]:
    with Room(nats_server.url) as room:
        yield room


def _submit(room: Room, **fields: object) -> str:
    submission = Submission(task_type="test", task_data={"message": "hello"}, **fields)  # type: ignore[arg-type]
    return room.submitter.submit(submission).task_id


def _snapshot(
    *, workers: list[WorkerState] | None = None, active: list[ActiveTask] | None = None
) -> Snapshot:
    return Snapshot(
        taken_epoch=time.time(),
        controller_started_epoch=0.0,
        worker_type="general",
        max_concurrent_per_worker=1,
        target_workers=1,
        workers=workers or [],
        active=active or [],
    )


def test_unknown_task_is_not_found(room: Room) -> None:
    """An id that nobody submitted is no waiting task, with and without a wait."""
    with pytest.raises(TaskNotFound, match="'nobody'"):
        room.lookup.get("nobody")
    with pytest.raises(TaskNotFound):
        room.lookup.wait("nobody", _LONG_SECONDS)


def test_endless_id_is_no_task_and_breaks_nothing(room: Room) -> None:
    """An id longer than NATS takes subjects is not found, like any other that is none."""
    for ask in (room.lookup.get, room.canceller.cancel):
        with pytest.raises(TaskNotFound, match="No task has the id"):
            ask("x" * 5000)
    longest = "\U0001f600" * 255
    with pytest.raises(TaskNotFound):
        room.lookup.get(longest)


def test_task_of_a_celery_client_is_shown(room: Room) -> None:
    """A task submitted elsewhere, of which only the result is stored, is shown."""
    room.store_result("other", status="SUCCESS", result=3, name="their.task")

    view = room.lookup.get("other")

    assert (view.state, view.result, view.task_type) == ("SUCCESS", 3, "their.task")


def test_a_task_whose_result_expired_does_not_look_queued(room: Room) -> None:
    """What ended long ago is told apart from what waits, and its key is not used up again."""
    request = Submission(task_type="test", task_data={})
    task_id = room.submitter.submit(request, "key-1").task_id
    room.store_result(task_id, status="SUCCESS", result=1, ttl_seconds=1)
    room.wait_until_result_expires(task_id)

    again = room.submitter.submit(request, "key-1")

    assert room.lookup.get(task_id).state == "EXPIRED"
    assert (again.task_id, again.duplicate, again.state) == (task_id, True, "EXPIRED")
    assert room.queued() == 1


def test_waiter_is_woken_by_the_result(room: Room) -> None:
    """A waiting call returns when the result is stored, past states that are not final."""
    task_id = _submit(room)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(room.lookup.wait, task_id, _LONG_SECONDS)
        room.store_result(task_id, status="STARTED")
        room.store_result(task_id, status="SUCCESS", result={"n": 1})
        started = time.monotonic()
        view = waiting.result(_LONG_SECONDS)

    assert (view.state, view.result) == ("SUCCESS", {"n": 1})
    assert time.monotonic() - started < 5


def test_many_waiters_of_one_task_are_all_woken(room: Room) -> None:
    """Everyone who waits for a task gets its result."""
    task_id = _submit(room)
    with ThreadPoolExecutor(8) as threads:
        waiting = [threads.submit(room.lookup.wait, task_id, _LONG_SECONDS) for _ in range(8)]
        room.store_result(task_id, status="SUCCESS", result=1)

        assert [each.result(_LONG_SECONDS).state for each in waiting] == ["SUCCESS"] * 8


def test_wait_for_a_finished_task_returns_at_once(room: Room) -> None:
    """What has ended is not waited for."""
    task_id = _submit(room)
    room.store_result(task_id, status="FAILURE", result={"exc_type": "E", "exc_message": ["x"]})

    started = time.monotonic()
    assert room.lookup.wait(task_id, _LONG_SECONDS).state == "FAILURE"
    assert time.monotonic() - started < 5


def test_wait_ends_with_the_state_so_far(room: Room) -> None:
    """When the time is up the answer is the current state, no error."""
    assert room.lookup.wait(_submit(room), 0.1).state == "QUEUED"


def test_wait_ends_with_a_result_whose_notice_was_lost(room: Room) -> None:
    """When the time is up, what is stored counts, not only what was told of."""
    task_id = _submit(room)
    stream = bucket_stream(room.names.bucket("results"))
    config = room.js.api(f"STREAM.INFO.{stream}")["config"]
    room.js.api(f"STREAM.UPDATE.{stream}", {**config, "republish": None})
    # While it waits, long after it has read for the first time.
    storing = threading.Timer(0.5, room.store_result, [task_id], {"status": "SUCCESS"})
    storing.start()

    assert room.lookup.wait(task_id, 1.5).state == "SUCCESS"
    storing.join()


def test_more_waiters_than_admitted_are_answered_at_once(room: Room) -> None:
    """Where no more may wait, a call does not wait and does not fail."""
    task_id = _submit(room)
    lookup = TaskLookup(room.pool, room.names, room.snapshot, max_waiting=0)

    started = time.monotonic()
    assert lookup.wait(task_id, _LONG_SECONDS).state == "QUEUED"
    assert time.monotonic() - started < 5


def test_place_of_a_waiter_is_free_again_after_it_was_answered(room: Room) -> None:
    """Calls that have waited make room for the next, also those that found nothing."""
    task_id = _submit(room)
    lookup = TaskLookup(room.pool, room.names, room.snapshot, max_waiting=1)
    with pytest.raises(TaskNotFound):
        lookup.wait("nobody", _LONG_SECONDS)
    lookup.wait(task_id, 0.05)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(lookup.wait, task_id, _LONG_SECONDS)
        room.store_result(task_id, status="SUCCESS")

        assert waiting.result(_LONG_SECONDS).state == "SUCCESS"


def test_waiter_learns_that_the_server_died(room: Room, nats_server: NatsServer) -> None:
    """A wait does not go on when nothing can come any more."""
    task_id = _submit(room)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(room.lookup.wait, task_id, _LONG_SECONDS)
        nats_server.kill()

        with pytest.raises(NatsConnectionError):
            waiting.result(_LONG_SECONDS)


@pytest.mark.parametrize("fields", [{}, {"countdown": 3600.0}])
def test_cancelled_before_it_ran(room: Room, fields: dict[str, float]) -> None:
    """A waiting or scheduled task is REVOKED at once, leaves a tombstone and no schedule."""
    task_id = _submit(room, **fields)

    answer = room.canceller.cancel(task_id)

    assert (answer.cancelled, answer.state) == (True, "REVOKED")
    assert room.lookup.get(task_id).state == "REVOKED"
    assert room.tombstone(task_id) is not None
    if fields:
        assert room.queued() == 0


def test_cancelling_wakes_who_waits(room: Room) -> None:
    """Whoever waits for a task learns that it was cancelled."""
    task_id = _submit(room)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(room.lookup.wait, task_id, _LONG_SECONDS)
        room.canceller.cancel(task_id)

        assert waiting.result(_LONG_SECONDS).state == "REVOKED"


def test_cancelling_twice_says_the_same(room: Room) -> None:
    """The second cancellation finds the task cancelled."""
    task_id = _submit(room)

    assert room.canceller.cancel(task_id).cancelled
    assert room.canceller.cancel(task_id).cancelled


def test_cancelling_one_leaves_other_schedules(room: Room) -> None:
    """Only the schedules of the one task are removed."""
    task_id = _submit(room, countdown=3600.0)
    _submit(room, countdown=3600.0)

    room.canceller.cancel(task_id)

    assert room.queued() == 1


def test_too_late_keeps_the_result(room: Room) -> None:
    """A finished task keeps its result, and the answer says that it was too late."""
    task_id = _submit(room)
    room.store_result(task_id, status="SUCCESS", result=5)

    answer = room.canceller.cancel(task_id, terminate=True)

    assert (answer.cancelled, answer.state) == (False, "SUCCESS")
    assert "too late" in answer.detail
    assert room.lookup.get(task_id).result == 5
    assert room.tombstone(task_id) is None


def test_unknown_task_cannot_be_cancelled(room: Room) -> None:
    """An unknown id is not found and leaves no tombstone."""
    with pytest.raises(TaskNotFound):
        room.canceller.cancel("nobody")

    assert room.tombstone("nobody") is None


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        ("general-worker-1@here", "general-worker-1"),
        ("general-worker-1@there", "general-worker-1@there"),
        ("gone-worker-1@here", "gone-worker-1@here"),
    ],
)
def test_worker_is_called_as_the_list_of_workers_calls_it(
    room: Room, stored: str, shown: str
) -> None:
    """The worker of a result is one that GET /api/v1/workers/<worker_id> finds, if it is there."""
    ids = ["general-worker-1", "general-worker-1@there"]
    room.set_snapshot(
        _snapshot(workers=[WorkerState(worker_id=i, state="", worker_type="") for i in ids])
    )
    task_id = _submit(room)

    room.store_result(task_id, status="SUCCESS", result=1, worker=stored)

    assert room.lookup.get(task_id).worker == shown


@pytest.mark.parametrize("terminate", [False, True])
def test_running_task_is_ended_only_on_demand(room: Room, terminate: bool) -> None:
    """A running task is left alone unless terminate is asked for; then workers are told."""
    task_id = _submit(room)
    active = ActiveTask(task_id=task_id, task_type="test", worker_id="w", started_epoch=time.time())
    room.set_snapshot(_snapshot(active=[active]))
    told: list[Message] = []
    room.connection.subscribe(room.names.exchange_subjects("celery.pidbox"), told.append)
    room.connection.flush()

    answer = room.canceller.cancel(task_id, terminate=terminate)

    room.connection.flush()
    assert (terminate, "STARTED") == (answer.cancelled, answer.state)
    assert terminate == (room.tombstone(task_id) is not None)
    assert [b'"terminate":true' in message.payload for message in told] == [True] * terminate


def test_cancelled_retry_does_not_run_again(room: Room) -> None:
    """A task that waits for its next try is cancelled like one that never ran."""
    task_id = _submit(room)
    room.store_result(task_id, status="RETRY", result={"exc_type": "E", "exc_message": ["x"]})

    assert room.canceller.cancel(task_id).state == "REVOKED"
    assert room.lookup.get(task_id).state == "REVOKED"
    assert room.bucket("revoked").get(escape(task_id)) is not None
