"""The fleet is scaled over HTTP, and by itself, without losing a task."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.service import RunningService
from tests.support.waiting import wait_until

_LOGIN = ("operator", "secret")
_BROKEN = 8
#: The sample app, of which one worker never comes up.
_APP = f"""
import os
from tasks.app import app
if os.environ.get("BRIDGE_WORKER_ID") == "general-worker-{_BROKEN}":
    raise SystemExit("no licence for worker {_BROKEN}")
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """The service as it is started by default."""
    directory: Path = tmp_path_factory.mktemp("scaling")
    (directory / "scaled_app.py").write_text(_APP)
    paths = [str(directory), os.environ.get("PYTHONPATH", "")]
    running = RunningService(
        directory,
        AUTOSCALE="true",
        WORKER_COUNT="3",
        MAX_CONCURRENT_TASKS="5",
        SCALE_ANSWER_SECONDS="25",
        FLOWER_BASIC_AUTH=":".join(_LOGIN),
        CELERY_APP="scaled_app:app",
        PYTHONPATH=os.pathsep.join(filter(None, paths)),
    )
    try:
        running.start()
        yield running
    finally:
        running.clean_up()


def _scale(service: RunningService, **body: Any) -> dict[str, Any]:
    return service.call("/api/v1/workers/scale", body)


def _workers(service: RunningService) -> dict[str, dict[str, Any]]:
    listed = service.call("/api/v1/workers")["data"]["workers"]
    return {worker["worker_id"]: worker for worker in listed}


def _summary(service: RunningService) -> dict[str, Any]:
    summary: dict[str, Any] = service.call("/api/v1/status")["data"]["worker_summary"]
    return summary


def _in_flower(service: RunningService, count: int) -> int:
    """Return how many workers Flower knows as online: by events, so not at once."""
    url = f"http://127.0.0.1:{service.flower_port}/api/workers?status=1"
    return wait_until(
        lambda: sum(httpx.get(url, auth=_LOGIN, timeout=30).json().values()),
        lambda online: online == count,
    )


def _submit(service: RunningService, count: int, seconds: float) -> list[str]:
    request = {"task_type": "sleep", "task_data": {"seconds": seconds}}
    answers = [service.call("/api/v1/tasks/submit", request) for _ in range(count)]
    return [answer["data"]["task_id"] for answer in answers]


def _states(service: RunningService, task_ids: list[str]) -> list[str]:
    with ThreadPoolExecutor(8) as threads:
        views = threads.map(lambda t: service.call(f"/api/v1/tasks/{t}?wait=40"), task_ids)
        return [view["data"]["state"] for view in views]


def test_the_specifications_example_works_as_printed(service: RunningService) -> None:
    """Three workers with 15 slots; five with 25, in the list and in Flower; back to three."""
    service.wait_for_workers(3)
    start = _summary(service)
    up = _scale(service, worker_count=5)
    five, five_summary, flower = _workers(service), _summary(service), _in_flower(service, 5)
    task_ids = _submit(service, 25, 1.5)
    down = _scale(service, worker_count=3)
    three, three_summary = _workers(service), _summary(service)

    assert (start["running_workers"], start["total_max_concurrent"]) == (3, 15)
    assert up["status"] == "success"
    assert up["data"]["before"]["worker_count"] == 3
    assert up["data"]["after"]["worker_count"] == 5
    assert [each["change"] for each in up["data"]["workers"]] == ["kept"] * 3 + ["started"] * 2
    assert [worker["state"] for worker in five.values()] == ["running"] * 5
    assert (five_summary["running_workers"], five_summary["total_max_concurrent"]) == (5, 25)
    assert flower == 5
    assert down["status"] == "success"
    assert [each["change"] for each in down["data"]["workers"]].count("stopped") == 2
    assert [worker["state"] for worker in three.values()] == ["running"] * 3
    assert (three_summary["running_workers"], three_summary["total_max_concurrent"]) == (3, 15)
    assert _states(service, task_ids) == ["SUCCESS"] * 25
    failed = service.call("/api/v1/status")["data"]["statistics"]["tasks_failed"]
    assert failed == 0


def test_of_two_requests_at_once_the_later_one_counts(service: RunningService) -> None:
    """One is done, the other is told that it was overtaken, and never a mixture of both."""
    with ThreadPoolExecutor(2) as threads:
        answers = list(threads.map(lambda n: _scale(service, worker_count=n), [4, 2]))

    done = [answer for answer in answers if answer["status"] == "success"]
    overtaken = [answer for answer in answers if answer["status"] == "error"]
    assert len(done) == 1
    assert [answer["error_code"] for answer in overtaken] == ["SCALING_ERROR"]
    assert len(_workers(service)) == done[0]["data"]["after"]["worker_count"]


def test_a_pool_is_brought_to_its_size(service: RunningService) -> None:
    """All workers have four slots; what is out of the limits names its fault."""
    _scale(service, worker_count=2)
    answer = _scale(service, worker_count=2, concurrency=4)
    wrong = _scale(service, worker_count=2, concurrency=6)

    assert answer["status"] == "success", answer
    assert answer["message"].startswith("Concurrency scaled from ")
    assert answer["data"]["after"] == {"worker_count": 2, "concurrency": 4}
    assert [worker["concurrency"] for worker in _workers(service).values()] == [4, 4]
    assert (wrong["error_code"], "1 to 5" in wrong["message"]) == ("INVALID_WORKER_CONFIG", True)


def test_a_worker_is_restarted_and_another_removed(service: RunningService) -> None:
    """The first gets a new process, the second is gone; unknown ones are not found."""
    _scale(service, worker_count=2)
    before = _workers(service)
    first, second = before

    restarted = service.call(f"/api/v1/workers/{first}/restart", method="POST")
    renewed = _workers(service)
    removed = service.call(f"/api/v1/workers/{first}", method="DELETE")
    after = _workers(service)
    last = service.call(f"/api/v1/workers/{second}", method="DELETE")
    missing = service.call("/api/v1/workers/nobody", method="DELETE")
    unknown = service.call("/api/v1/workers/nobody/restart", method="POST")

    assert restarted["data"] == {"worker_id": first, "state": "running", "change": "restarted"}
    assert renewed[first]["pid"] != before[first]["pid"]
    assert removed["status"] == "success"
    assert list(after) == [second]
    assert after[second]["pid"] == before[second]["pid"]
    assert last["error_code"] == "INVALID_WORKER_CONFIG"
    assert "1 to 10 are allowed, not 0; MIN_WORKERS" in last["message"]
    assert missing["error_code"] == unknown["error_code"] == "WORKER_NOT_FOUND"


def test_a_worker_that_does_not_come_up_is_named(service: RunningService) -> None:
    """WORKER_START_ERROR with what the worker wrote last, before the time is over."""
    started = time.monotonic()
    answer = _scale(service, worker_count=_BROKEN)
    seconds = time.monotonic() - started
    _scale(service, worker_count=2)

    assert answer["error_code"] == "WORKER_START_ERROR"
    assert f"general-worker-{_BROKEN}" in answer["message"]
    assert f"no licence for worker {_BROKEN}" in answer["message"]
    assert seconds < 25


def test_the_fleet_follows_the_load_and_tells_why(service: RunningService) -> None:
    """Given back to the autoscaler it grows under load, ends at one slot, and loses no task."""
    automatic = _scale(service, mode="auto")
    task_ids = _submit(service, 60, 1.0)
    states = _states(service, task_ids)
    state = wait_until(
        lambda: service.call("/api/v1/workers/scaling")["data"],
        lambda state: (state["worker_count"], state["concurrency"]) == (1, 1),
    )

    directions = [decision["direction"] for decision in state["decisions"]]
    largest = max(d["workers"] * d["concurrency"] for d in state["decisions"])
    assert automatic["data"]["mode"] == state["mode"] == "auto"
    assert states == ["SUCCESS"] * 60
    assert directions[0] == "down"
    assert "up" in directions[: directions.index("manual")]
    assert largest >= 15
    assert all(decision["reason"] for decision in state["decisions"])
