"""Celery as its documentation tells it, on a real worker and a foreign app."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import TaskRevokedError
from celery.result import AsyncResult

from bridge.names import DEFAULT_PRIORITY, Names
from bridge.wire import JetStream
from tests.integration.conftest import FOREIGN_VHOST
from tests.support.celery_client import close_app, make_app
from tests.support.celery_worker import CeleryWorker
from tests.support.waiting import wait_until

NAMES = Names(FOREIGN_VHOST)
GET_SECONDS = 20.0

Call = Callable[..., Any]


@pytest.fixture(scope="module")
def app(foreign_worker: CeleryWorker) -> Iterator[Celery]:
    """A client that knows the tasks only by their names."""
    app = make_app(foreign_worker.url, task_default_queue="foreign")
    yield app
    close_app(app)


@pytest.fixture(scope="module")
def call(app: Celery) -> Call:
    """A function that runs a task by its short name and waits for the result."""

    def call(name: str, *args: Any, **options: Any) -> Any:
        return app.send_task(f"foreign.{name}", args, **options).get(timeout=GET_SECONDS)

    return call


def stored_subjects(js: JetStream, filter_subject: str) -> list[str]:
    """Subjects in the task stream that hold a message."""
    info = js.api(f"STREAM.INFO.{NAMES.task_stream}", {"subjects_filter": filter_subject})
    return list(info["state"].get("subjects") or {})


def test_result_comes_back(call: Call) -> None:
    """The plainest task there is."""
    assert call("add", 2, 3) == 5
    assert call("shared") == "shared"


def test_result_tells_of_its_task(app: Celery, foreign_worker: CeleryWorker) -> None:
    """Name, worker and times are kept with the result."""
    before = time.time()
    result = app.send_task("foreign.add", (1, 1))
    result.get(timeout=GET_SECONDS)

    meta = app.backend.get_task_meta(result.id)

    assert meta["name"] == "foreign.add"
    assert meta["worker"] == foreign_worker.hostname
    assert meta["retries"] == 0
    assert before - 1 < meta["started_epoch"] <= meta["finished_epoch"] < time.time() + 1


def test_failure_comes_back_with_type_message_and_traceback(app: Celery) -> None:
    """The caller can catch the worker's exception."""
    result = app.send_task("foreign.fail", ("on purpose",))

    with pytest.raises(ValueError, match="on purpose"):
        result.get(timeout=GET_SECONDS)
    assert result.state == "FAILURE"
    assert "raise ValueError(message)" in result.traceback


def test_arguments_and_headers_arrive_as_sent(call: Call) -> None:
    """Positions, keywords, custom headers and any character in them."""
    told = call("request_of", 1, "ü\n", None, kwargs={"k": [1.5, {"x": True}]}, headers={"h": "5"})

    assert told["args"] == [1, "ü\n", None]
    assert told["kwargs"] == {"k": [1.5, {"x": True}]}
    assert told["headers"]["h"] == "5"
    assert told["redelivered"] is False
    assert told["routing_key"] == "foreign"


def test_priority_reaches_the_worker(call: Call) -> None:
    """The one that was given."""
    assert call("request_of", priority=8)["priority"] == 8


def test_tasks_without_priority_are_stored_alike(app: Celery, js: JetStream) -> None:
    """kombu says 0 where `send_task` names none, and `apply_async` says nothing."""
    queue = f"nobody-{uuid.uuid4().hex[:8]}"
    app.send_task("foreign.add", (1, 1), queue=queue)
    app.signature("foreign.add", (1, 1)).apply_async(queue=queue)
    app.send_task("foreign.add", (1, 1), queue=queue, priority=None)

    assert stored_subjects(js, NAMES.queue_subjects(queue)) == [
        NAMES.task_subject(queue, DEFAULT_PRIORITY)
    ]


def test_waiting_for_a_result_is_no_polling(app: Celery) -> None:
    """From call to result in milliseconds, where an interval would show."""
    times = []
    for _ in range(20):
        started = time.monotonic()
        app.send_task("foreign.add", (1, 1)).get(timeout=GET_SECONDS)
        times.append(time.monotonic() - started)

    assert sorted(times)[10] < 0.1, times


def test_calls_from_many_threads(app: Celery) -> None:
    """Each thread gets the results of its own tasks."""

    def add_some(start: int) -> list[float]:
        results = [app.send_task("foreign.add", (start, n)) for n in range(10)]
        return [result.get(timeout=GET_SECONDS) for result in results]

    with ThreadPoolExecutor(6) as pool:
        sums = list(pool.map(add_some, range(0, 600, 100)))

    assert sums == [[start + n for n in range(10)] for start in range(0, 600, 100)]


def test_retries_until_success(call: Call, tmp_path: Path) -> None:
    """Autoretry with back-off runs it again as often as it takes."""
    assert call("retrying", str(tmp_path / "tries"), 3) == 3


def test_retries_end(app: Celery, tmp_path: Path) -> None:
    """After `max_retries` the last error is the result."""
    file = tmp_path / "tries"
    result = app.send_task("foreign.retrying", (str(file), 99))

    with pytest.raises(OSError, match="try 3 of 99"):
        result.get(timeout=GET_SECONDS)
    assert file.read_text().count("try") == 3


def test_rejected_task_runs_again(call: Call, tmp_path: Path) -> None:
    """`Reject(requeue=True)` gives it back, and the next run knows."""
    assert call("reject_once", str(tmp_path / "mark")) is True


def test_countdown_waits_in_the_server(app: Celery, js: JetStream) -> None:
    """Until it is due the message is a schedule and no worker holds it."""
    started = time.monotonic()
    result = app.send_task("foreign.add", (1, 2), countdown=2)

    assert stored_subjects(js, NAMES.task_schedules(result.id)) != []
    assert result.get(timeout=GET_SECONDS) == 3

    assert 1.9 < time.monotonic() - started < 4
    assert stored_subjects(js, NAMES.task_schedules(result.id)) == []


def test_eta_in_another_zone(app: Celery) -> None:
    """A time is a time, wherever it was written."""
    due = datetime.now(UTC) + timedelta(seconds=1.5)
    result = app.send_task("foreign.add", (1, 2), eta=due)

    assert result.get(timeout=GET_SECONDS) == 3
    assert datetime.now(UTC) >= due


def test_short_countdown_is_exact(app: Celery) -> None:
    """Below a second the worker's own timer is finer than the server's."""
    started = time.monotonic()
    app.send_task("foreign.add", (1, 2), countdown=0.4).get(timeout=GET_SECONDS)

    assert 0.4 <= time.monotonic() - started < 1.4


def test_expired_task_does_not_run(app: Celery, tmp_path: Path) -> None:
    """It is revoked instead."""
    file = tmp_path / "ran"
    result = app.send_task("foreign.record", (str(file), "x"), expires=-1)

    with pytest.raises(TaskRevokedError, match="expired"):
        result.get(timeout=GET_SECONDS)
    assert not file.exists()


def test_task_that_expires_in_its_queue_is_revoked(app: Celery) -> None:
    """Who waits for it learns so, however late a worker takes the queue up."""
    queue = f"late-{uuid.uuid4()}"
    result = app.send_task("foreign.add", (1, 2), queue=queue, expires=1)
    # The server looks for what has expired once a second.
    time.sleep(2.2)

    app.control.add_consumer(queue)
    try:
        with pytest.raises(TaskRevokedError, match="expired"):
            result.get(timeout=GET_SECONDS)
    finally:
        app.control.cancel_consumer(queue)


def test_revoked_task_does_not_run(app: Celery, js: JetStream, tmp_path: Path) -> None:
    """Revoked while it waits to become due, it ends as REVOKED when it comes."""
    file = tmp_path / "ran"
    result = app.send_task("foreign.record", (str(file), "x"), countdown=1.2)

    assert app.control.revoke(result.id, reply=True, timeout=5, limit=1)

    with pytest.raises(TaskRevokedError):
        result.get(timeout=GET_SECONDS)
    assert result.state == "REVOKED"
    assert not file.exists()


def test_running_task_is_terminated(app: Celery, tmp_path: Path) -> None:
    """Only with `terminate`; its process is replaced and the worker goes on."""
    file = tmp_path / "ran"
    result = app.send_task("foreign.record", (str(file), "long", 60))
    wait_until(file.exists)

    app.control.revoke(result.id, terminate=True)

    with pytest.raises(TaskRevokedError, match="terminated"):
        result.get(timeout=GET_SECONDS)
    assert app.send_task("foreign.add", (1, 1)).get(timeout=GET_SECONDS) == 2


def test_soft_time_limit(call: Call) -> None:
    """The task gets its exception and may end in its own way."""
    assert call("soft") == "stopped softly"


def test_rate_limit_holds(app: Celery) -> None:
    """Five a second take more than a second for eight."""
    results = [app.send_task("foreign.limited") for _ in range(8)]
    times = [result.get(timeout=GET_SECONDS) for result in results]

    assert max(times) - min(times) > 1.0


def test_ignored_result_is_not_stored(app: Celery, call: Call) -> None:
    """A task without result leaves none."""
    result = app.send_task("foreign.silent")
    assert call("add", 1, 1) == 2

    assert result.state == "PENDING"


def test_custom_task_class(app: Celery) -> None:
    """Its state and hooks work in the pool process."""
    counts = [app.send_task("foreign.counted") for _ in range(10)]

    values = [result.get(timeout=GET_SECONDS) for result in counts]

    assert max(values) > 1
    assert min(values) >= 1


def test_signals_fire_in_the_pool(app: Celery) -> None:
    """prerun, on_success and postrun, in this order, in the process that ran the task."""
    result = app.send_task("foreign.counted")
    result.get(timeout=GET_SECONDS)
    told: list[str] = []
    deadline = time.monotonic() + 10
    # Only one of the processes knows, so that all are asked; the last signal follows the result.
    while len(told) < 3 and time.monotonic() < deadline:
        asked = [app.send_task("foreign.signals_of", (result.id,)) for _ in range(12)]
        told = max((each.get(timeout=GET_SECONDS) for each in asked), key=len)

    assert [line.split()[0] for line in told] == ["prerun", "on_success", "postrun"]


def test_result_over_max_payload_is_a_failure(app: Celery) -> None:
    """The task ends, and says what to do about it."""
    result = app.send_task("foreign.big", (9_000_000,))

    with pytest.raises(Exception, match="too large") as caught:
        result.get(timeout=GET_SECONDS)

    assert "max_payload" in str(caught.value)
    assert result.state == "FAILURE"


def test_failure_over_max_payload_stays_a_failure(app: Celery) -> None:
    """Its type is kept and its text cut."""
    result = app.send_task("foreign.big_failure", (9_000_000,))

    with pytest.raises(ValueError, match=r"^y+… \(cut\)$"):
        result.get(timeout=GET_SECONDS)


def test_arguments_over_max_payload_are_refused(app: Celery) -> None:
    """The sender learns at once; nothing is sent."""
    with pytest.raises(ValueError, match="max_payload"):
        app.send_task("foreign.add", ("x" * 9_000_000, 1))


def test_states_are_seen_on_the_way(app: Celery, tmp_path: Path) -> None:
    """PENDING before, STARTED with its worker while it runs, SUCCESS after."""
    file = tmp_path / "ran"
    result = app.send_task("foreign.record", (str(file), "x", 0.7))
    wait_until(lambda: AsyncResult(result.id, app=app).state, lambda state: state == "STARTED")

    assert result.get(timeout=GET_SECONDS).startswith("x by")
    assert result.state == "SUCCESS"
