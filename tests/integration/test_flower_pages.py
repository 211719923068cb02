"""Flower shows workers, tasks and queues on `nats://`, also those of before its own start."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from bridge.names import Names
from bridge.wire import Connection, ConnectOptions
from tests.support.flower import CeleryProcess, Flower, start_worker
from tests.support.nats import NatsServer
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def url(shared_nats: NatsServer) -> str:
    """A virtual host of this file's own."""
    return f"{shared_nats.url}/flower-{uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="module")
def worker(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CeleryProcess]:
    log = tmp_path_factory.mktemp("worker") / "worker.log"
    running = start_worker(url, log, "pages", "-Q", "celery,other")
    yield running
    running.stop()


@pytest.fixture(scope="module")
def flower(
    url: str, worker: CeleryProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Flower]:
    running = Flower(url, tmp_path_factory.mktemp("flower") / "flower.log")
    wait_until(lambda: running.worker("pages@test"), lambda found: "active_queues" in found)
    yield running
    running.stop()


def _send(flower: Flower, task: str, *args: object, **options: object) -> str:
    answer = flower.post(
        f"/api/task/async-apply/tests.support.flower_app.{task}", {"args": args, **options}
    )
    assert answer.status_code == 200, answer.text
    return str(answer.json()["task-id"])


def _queues(flower: Flower) -> dict[str, dict[str, object]]:
    answer = flower.get("/api/queues/length")
    assert answer.status_code == 200, answer.text
    return {queue["name"]: queue for queue in answer.json()["active_queues"]}


def test_broker_counts_what_waits_and_what_runs(flower: Flower, tmp_path: Path) -> None:
    """Two tasks run, three wait: the queue has two unacknowledged and three ready messages."""
    begun = []
    for number in range(2):
        directory = tmp_path / str(number)
        directory.mkdir()
        begun.append(directory / "begun")
        _send(flower, "hold", str(directory), queue="other")
    wait_until(lambda: [mark.exists() for mark in begun], all)
    waiting = [_send(flower, "add", 1, 1, queue="other") for _ in range(3)]

    queue = _queues(flower)["other"]

    assert queue == {
        "name": "other",
        "messages": 5,
        "messages_ready": 3,
        "messages_unacknowledged": 2,
        "consumers": 1,
    }
    for mark in begun:
        mark.with_name("go").touch()
    for task_id in waiting:
        flower.wait_for(task_id, "SUCCESS")
    wait_until(lambda: _queues(flower)["other"]["messages"], lambda count: count == 0)


def test_broker_page_lists_queues(flower: Flower) -> None:
    """The page names both queues of the worker."""
    page = flower.get("/broker")

    assert page.status_code == 200
    assert 'id="celery"' in page.text
    assert 'id="other"' in page.text
    assert "No queue data" not in page.text


def test_broker_counts_every_worker_of_a_queue(flower: Flower, url: str, tmp_path: Path) -> None:
    """A second worker on one of the queues is one more consumer there and none elsewhere."""
    second = start_worker(url, tmp_path / "worker.log", "second", "-Q", "celery")
    try:
        queues = _queues(flower)
    finally:
        second.stop()

    assert queues["celery"]["consumers"] == 2
    assert queues["other"]["consumers"] == 1
    assert _queues(flower)["celery"]["consumers"] == 1


def test_worker_page_tells_pool_and_queues(flower: Flower) -> None:
    """The page of one worker renders with the queues it consumes."""
    page = flower.get("/worker/pages@test")

    assert page.status_code == 200, page.text
    assert "other" in page.text


def test_task_page_tells_arguments_and_failure(flower: Flower) -> None:
    """The page of a failed task shows its arguments and the exception."""
    task_id = _send(flower, "fail", "out of paper")
    flower.wait_for(task_id, "FAILURE")

    page = flower.get(f"/task/{task_id}")

    assert page.status_code == 200
    assert "ValueError" in page.text
    assert "out of paper" in page.text


def test_tasks_can_be_searched(flower: Flower) -> None:
    """The list of tasks is filtered by task name and state."""
    task_id = _send(flower, "add", 20, 22)
    flower.wait_for(task_id, "SUCCESS")

    found = flower.get(
        "/api/tasks", taskname="tests.support.flower_app.add", state="SUCCESS", limit=1000
    ).json()

    assert found[task_id]["result"] == "42"
    assert {task["name"] for task in found.values()} == {"tests.support.flower_app.add"}


def test_each_event_is_counted_once(flower: Flower) -> None:
    """One task gives one event of each kind in the metrics for Prometheus."""
    name = "tests.support.flower_app.until_aborted"
    task_id = _send(flower, "until_aborted")
    flower.wait_for(task_id, "STARTED")
    flower.post(f"/api/task/abort/{task_id}")
    flower.wait_for(task_id, "SUCCESS")

    lines = [
        line
        for line in flower.get("/metrics").text.splitlines()
        if line.startswith("flower_events_total") and f'task="{name}"' in line
    ]

    kinds = {"task-sent", "task-received", "task-started", "task-succeeded"}
    assert {kind for kind in kinds if any(f'type="{kind}"' in line for line in lines)} == kinds
    assert [line.rsplit(" ", 1)[1] for line in lines] == ["1.0"] * len(kinds)


def test_event_that_is_none_stops_no_other(flower: Flower, url: str) -> None:
    """Garbage on the event subjects is left out; the next task is shown."""
    server, _, vhost = url.rpartition("/")
    connection = Connection(ConnectOptions.from_url(server))
    connection.connect()
    subject = Names(vhost).exchange_subject("celeryev", "task.received")
    for garbage in (b"no json", b'{"no": "type"}', b'{"type": "task-received"}', b"[7]", b""):
        connection.publish(subject, garbage, {"Content-Type": "application/json"})
    connection.flush()
    connection.close()

    task_id = _send(flower, "add", 1, 2)

    flower.wait_for(task_id, "SUCCESS")


def test_restarted_flower_knows_the_tasks_of_before(
    flower: Flower, url: str, tmp_path: Path
) -> None:
    """Another Flower, started later, tells the same of a task, but not as a new measurement."""
    task_id = _send(flower, "add", 3, 4)
    known = flower.wait_for(task_id, "SUCCESS")

    later = Flower(url, tmp_path / "flower.log")
    try:
        again = later.wait_for(task_id, "SUCCESS")
        metrics = later.get("/metrics").text
    finally:
        later.stop()

    same = ("name", "args", "result", "received", "started", "succeeded", "runtime")
    assert {key: again[key] for key in same} == {key: known[key] for key in same}
    assert "tests.support.flower_app.add" not in metrics


def test_restarted_flower_keeps_to_its_limit(flower: Flower, url: str, tmp_path: Path) -> None:
    """With room for few events, the newest tasks are told and the oldest are not."""
    oldest = _send(flower, "add", 0, 0)
    flower.wait_for(oldest, "SUCCESS")
    for number in range(8):
        newest = _send(flower, "add", 0, number)
    flower.wait_for(newest, "SUCCESS")

    later = Flower(url, tmp_path / "flower.log", "--max-tasks=5")
    try:
        later.wait_for(newest, "SUCCESS")
        tasks = later.get("/api/tasks").json()
    finally:
        later.stop()

    assert len(tasks) <= 5
    assert oldest not in tasks


def test_flower_that_saved_its_state_is_not_told_twice(
    flower: Flower, url: str, tmp_path: Path
) -> None:
    """With --persistent, Flower's counts after its restart are those it saved."""
    task_id = _send(flower, "add", 5, 5)
    flower.wait_for(task_id, "SUCCESS")
    options = ("--persistent", f"--db={tmp_path / 'db'}")
    first = Flower(url, tmp_path / "first.log", *options)
    try:
        first.wait_for(task_id, "SUCCESS")
    finally:
        first.stop()
    assert _succeeded(flower) > 0

    second = Flower(url, tmp_path / "second.log", *options)
    try:
        latest = _send(second, "add", 6, 6)
        second.wait_for(latest, "SUCCESS")
        flower.wait_for(latest, "SUCCESS")
        assert second.task(task_id)["result"] == "10"
        assert _succeeded(second) == _succeeded(flower)
    finally:
        second.stop()


def _succeeded(flower: Flower) -> int:
    """Return how many successes Flower counted at the worker."""
    [worker] = (
        worker
        for worker in flower.get("/workers", json=1).json()["data"]
        if worker["hostname"] == "pages@test"
    )
    return int(worker["task-succeeded"])


def test_flower_catches_up_after_the_server_was_away(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """What happened while Flower had no connection is there when it has one again."""
    flower = Flower(nats_server.url, tmp_path / "flower.log")
    worker = start_worker(nats_server.url, tmp_path / "worker.log", "faults")
    try:
        first = _send(flower, "add", 1, 1)
        flower.wait_for(first, "SUCCESS")
        nats_server.kill()
        assert flower.get("/api/queues/length").status_code == 503
        assert flower.get("/broker").status_code == 200

        nats_server.start()
        second = wait_until(lambda: _try_send(flower))

        flower.wait_for(second, "SUCCESS")
        assert flower.task(first)["state"] == "SUCCESS"
    finally:
        worker.stop()
        flower.stop()


@pytest.mark.parametrize(
    ("login", "user"), [('token: "s3cret"', ":s3cret"), ("user: me, password: s3cret", "me:s3cret")]
)
def test_secret_of_the_url_is_shown_nowhere(tmp_path: Path, login: str, user: str) -> None:
    """Neither Flower's pages nor any log tell the token or password in the broker URL."""
    server = NatsServer(tmp_path / "nats", extra=f"authorization {{ {login} }}")
    server.start()
    url = server.url.replace("://", f"://{user}@")
    started: list[CeleryProcess] = []
    try:
        started.append(start_worker(url, tmp_path / "worker.log", "secret"))
        started.append(flower := Flower(url, tmp_path / "flower.log"))
        wait_until(lambda: flower.worker("secret@test"), lambda found: "stats" in found)
        paths = ("/broker", "/workers", "/worker/secret@test", "/api/workers")
        shown = [flower.get(path).text for path in paths]
    finally:
        for process in reversed(started):
            process.stop()
        server.stop()

    shown += [process.log.read_text() for process in started]
    assert [text for text in shown if "s3cret" in text] == []


def _try_send(flower: Flower) -> str:
    answer: httpx.Response = flower.post(
        "/api/task/async-apply/tests.support.flower_app.add", {"args": [2, 2]}
    )
    return str(answer.json()["task-id"]) if answer.status_code == 200 else ""
