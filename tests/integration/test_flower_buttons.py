"""Every button of Flower does what it says, on a real worker over `nats://`."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.flower import CeleryProcess, Flower, start_worker
from tests.support.nats import NatsServer
from tests.support.waiting import wait_until

_APP = "tests.support.flower_app"
_NAME = "buttons@test"
_OWN = "own@test"


@pytest.fixture(scope="module")
def url(shared_nats: NatsServer) -> str:
    """A virtual host of this file's own."""
    return f"{shared_nats.url}/flower-{uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="module")
def flower(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flower]:
    running = Flower(url, tmp_path_factory.mktemp("flower") / "flower.log")
    yield running
    running.stop()


@pytest.fixture(scope="module")
def worker(
    url: str, flower: Flower, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CeleryProcess]:
    """One worker for all tests that leave it as it was."""
    log = tmp_path_factory.mktemp("worker") / "worker.log"
    yield from _worker(url, flower, log, _NAME)


@pytest.fixture
def own_worker(url: str, flower: Flower, tmp_path: Path) -> Iterator[CeleryProcess]:
    """A worker for one test, on a queue of its own."""
    yield from _worker(url, flower, tmp_path / "worker.log", _OWN, "-Q", "own")


def _worker(
    url: str, flower: Flower, log: Path, name: str, *arguments: str
) -> Iterator[CeleryProcess]:
    running = start_worker(url, log, name.removesuffix("@test"), *arguments)
    wait_until(lambda: flower.worker(name), lambda found: "stats" in found)
    yield running
    running.stop()


def _pool(flower: Flower, name: str = _NAME) -> list[int]:
    """Return the process ids of the worker's pool."""
    pids: list[int] = flower.worker(name).get("stats", {}).get("pool", {}).get("processes", [])
    return pids


def _queues(flower: Flower) -> set[str]:
    return {queue["name"] for queue in flower.worker(_NAME).get("active_queues", [])}


def _hold(flower: Flower, directory: Path, queue: str = "celery") -> str:
    """Start a task that runs until there is a file ``go``; return its id."""
    directory.mkdir(exist_ok=True)
    answer = flower.post(
        f"/api/task/async-apply/{_APP}.hold", {"args": [str(directory)], "queue": queue}
    )
    wait_until((directory / "begun").exists)
    return str(answer.json()["task-id"])


@pytest.mark.usefixtures("worker")
def test_pool_grows_and_shrinks(flower: Flower) -> None:
    """Two processes more, then two fewer."""
    grown = flower.post(f"/api/worker/pool/grow/{_NAME}", n=2)

    assert grown.status_code == 200, grown.text
    wait_until(lambda: _pool(flower), lambda pids: len(pids) == 4)

    shrunk = flower.post(f"/api/worker/pool/shrink/{_NAME}", n=2)

    assert shrunk.status_code == 200, shrunk.text
    wait_until(lambda: _pool(flower), lambda pids: len(pids) == 2)


@pytest.mark.usefixtures("worker")
def test_pool_restarts(flower: Flower, tmp_path: Path) -> None:
    """Each pool process makes way for a new one, the last when it has run one more task."""
    before = _pool(flower)

    answer = flower.post(f"/api/worker/pool/restart/{_NAME}")

    assert answer.status_code == 200, answer.text
    wait_until(lambda: _pool(flower), lambda pids: len(pids) == 2 and set(pids) != set(before))
    held = [_hold(flower, tmp_path / str(number)) for number in range(2)]
    for number in range(2):
        (tmp_path / str(number) / "go").touch()
    for task_id in held:
        flower.wait_for(task_id, "SUCCESS")
    wait_until(lambda: _pool(flower), lambda pids: len(pids) == 2 and not set(pids) & set(before))


@pytest.mark.usefixtures("worker")
def test_autoscale_is_refused_with_its_reason(flower: Flower) -> None:
    """A worker started without autoscaling says so."""
    answer = flower.post(f"/api/worker/pool/autoscale/{_NAME}", min=1, max=3)

    assert answer.status_code == 403
    assert "Autoscale not enabled" in answer.text


def test_autoscale_changes_the_pool_of_a_worker_that_has_it(
    flower: Flower, url: str, tmp_path: Path
) -> None:
    """A worker started with --autoscale takes new bounds."""
    running = start_worker(url, tmp_path / "log", "scaled", "--autoscale=2,1", "-Q", "own")
    try:
        wait_until(lambda: flower.worker("scaled@test"))

        answer = flower.post("/api/worker/pool/autoscale/scaled@test", min=3, max=4)

        assert answer.status_code == 200, answer.text
        wait_until(lambda: _pool(flower, "scaled@test"), lambda pids: len(pids) >= 3)
    finally:
        running.stop()


@pytest.mark.usefixtures("worker")
def test_consumer_is_added_and_cancelled(flower: Flower) -> None:
    """The worker runs what comes to an added queue, and no longer what comes after cancelling."""
    added = flower.post(f"/api/worker/queue/add-consumer/{_NAME}", queue="extra")
    assert added.status_code == 200, added.text
    wait_until(lambda: _queues(flower), lambda queues: "extra" in queues)
    send = f"/api/task/async-apply/{_APP}.add"
    first = flower.post(send, {"args": [1, 1], "queue": "extra"}).json()["task-id"]
    flower.wait_for(first, "SUCCESS")

    cancelled = flower.post(f"/api/worker/queue/cancel-consumer/{_NAME}", queue="extra")

    assert cancelled.status_code == 200, cancelled.text
    wait_until(lambda: _queues(flower), lambda queues: "extra" not in queues)
    second = flower.post(send, {"args": [1, 1], "queue": "extra"}).json()["task-id"]
    flower.wait_for(second, "PENDING")
    third = flower.post(send, {"args": [1, 1]}).json()["task-id"]
    flower.wait_for(third, "SUCCESS")
    assert flower.task(second)["state"] == "PENDING"


@pytest.mark.usefixtures("own_worker")
def test_rate_limit(flower: Flower) -> None:
    """At one an hour, the second of two tasks stays; without a limit the next one runs."""
    path = f"/api/task/rate-limit/{_APP}.fail"
    limited = flower.post(path, workername=_OWN, ratelimit="1/h")
    assert limited.status_code == 200, limited.text
    first, second = (_fail(flower) for _ in range(2))
    flower.wait_for(first, "FAILURE")
    flower.wait_for(second, "RECEIVED")

    freed = flower.post(path, workername=_OWN, ratelimit="0")

    assert freed.status_code == 200, freed.text
    flower.wait_for(_fail(flower), "FAILURE")
    assert flower.task(second)["state"] == "RECEIVED"


def _fail(flower: Flower) -> str:
    request = {"args": ["limited"], "queue": "own"}
    answer = flower.post(f"/api/task/async-apply/{_APP}.fail", request)
    return str(answer.json()["task-id"])


@pytest.mark.usefixtures("own_worker")
def test_time_limit(flower: Flower, tmp_path: Path) -> None:
    """A task that outlasts its new soft limit ends with SoftTimeLimitExceeded.

    Celery 5.7 heeds new limits once the pool has restarted, whatever the broker.
    """
    path = f"/api/task/timeout/{_APP}.hold"
    limited = flower.post(path, workername=_OWN, soft=1, hard=30)
    assert limited.status_code == 200, limited.text
    assert flower.post(f"/api/worker/pool/restart/{_OWN}").status_code == 200

    task = flower.wait_for(_hold(flower, tmp_path / "held", "own"), "FAILURE")

    assert "SoftTimeLimitExceeded" in task["exception"]


@pytest.mark.usefixtures("worker")
def test_revoke_keeps_a_waiting_task_from_running(flower: Flower) -> None:
    """A task that is due later is revoked before it starts."""
    send = {"args": [1, 2], "countdown": 3}
    task_id = flower.post(f"/api/task/async-apply/{_APP}.add", send).json()["task-id"]

    revoked = flower.post(f"/api/task/revoke/{task_id}")

    assert revoked.status_code == 200, revoked.text
    assert flower.wait_for(task_id, "REVOKED")["started"] is None


def test_terminate_ends_a_running_task(
    flower: Flower, worker: CeleryProcess, tmp_path: Path
) -> None:
    """Revoke with terminate kills the process that runs the task."""
    task_id = _hold(flower, tmp_path / "held")

    revoked = flower.post(f"/api/task/revoke/{task_id}", terminate="true")

    assert revoked.status_code == 200, revoked.text
    flower.wait_for(task_id, "REVOKED")
    result = flower.get(f"/api/task/result/{task_id}").json()
    assert result["state"] == "REVOKED"


@pytest.mark.usefixtures("worker")
def test_apply_returns_the_result(flower: Flower) -> None:
    """Apply waits for the task and returns what it returned."""
    answer = flower.post(f"/api/task/apply/{_APP}.add", {"kwargs": {"x": 40, "y": 2}})

    assert answer.status_code == 200, answer.text
    assert answer.json()["state"] == "SUCCESS"
    assert answer.json()["result"] == 42


@pytest.mark.usefixtures("worker")
def test_apply_of_a_failing_task_returns_the_traceback(flower: Flower) -> None:
    """A failure is told with its traceback."""
    answer = flower.post(f"/api/task/apply/{_APP}.fail", {"args": ["broken"]}).json()

    assert answer["state"] == "FAILURE"
    assert "ValueError: broken" in answer["traceback"]


@pytest.mark.usefixtures("worker")
def test_send_task_and_fetch_its_result(flower: Flower) -> None:
    """A task sent by name alone runs; its result is fetched afterwards."""
    task_id = flower.post(f"/api/task/send-task/{_APP}.add", {"args": [2, 3]}).json()["task-id"]
    # Flower notes the state first and waits for the result then.
    flower.wait_for(task_id, "SUCCESS")

    answer = flower.get(f"/api/task/result/{task_id}", timeout=10)

    assert answer.status_code == 200, answer.text
    assert answer.json() == {"task-id": task_id, "state": "SUCCESS", "result": 5}


@pytest.mark.usefixtures("worker")
def test_abort(flower: Flower) -> None:
    """An abortable task notices that it was aborted."""
    send = f"/api/task/async-apply/{_APP}.until_aborted"
    task_id = flower.post(send).json()["task-id"]
    flower.wait_for(task_id, "STARTED")

    aborted = flower.post(f"/api/task/abort/{task_id}")

    assert aborted.status_code == 200, aborted.text
    assert "noticed" in flower.wait_for(task_id, "SUCCESS")["result"]


def test_shutdown_ends_the_worker(flower: Flower, own_worker: CeleryProcess) -> None:
    """The worker ends by itself, cleanly."""
    answer = flower.post(f"/api/worker/shutdown/{_OWN}")

    assert answer.status_code == 200, answer.text
    assert own_worker.process.wait(20) == 0
