"""Apps whose results are not plain JSON, or that take no JSON: a real worker, the real front."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from celery.exceptions import TaskRevokedError

from bridge.submission.request import Submission
from tests.support.celery_client import close_app, make_app
from tests.support.celery_worker import CeleryWorker
from tests.support.nats import NatsServer
from tests.support.submission import Room
from tests.support.waiting import wait_until
from tests.support.web import WebProcess

APP = "tests.support.serializer_app"
QUEUE = "serializers"
DOUBLED = "serializers.doubled"
_LONG_SECONDS = 30.0
#: Settings of the app, and what a client is told instead of the value; "" where it is shown.
SERIALIZERS = {
    "pickle": ({"APP_RESULT_SERIALIZER": "pickle"}, "application/x-python-serialize"),
    "yaml": ({"APP_RESULT_SERIALIZER": "yaml"}, "application/x-yaml"),
    "zlib": ({"APP_RESULT_COMPRESSION": "zlib"}, ""),
    "pickle-bzip2": (
        {"APP_RESULT_SERIALIZER": "pickle", "APP_RESULT_COMPRESSION": "bzip2"},
        "application/x-python-serialize",
    ),
}

StartWorker = Callable[..., CeleryWorker]


@pytest.fixture(scope="module")
def web(shared_nats: NatsServer) -> Iterator[WebProcess]:
    with WebProcess(shared_nats.url) as web:
        yield web


@pytest.fixture
def start_worker(shared_nats: NatsServer, tmp_path: Path) -> Iterator[StartWorker]:
    """A function that starts a worker of the app with settings; stopped in the end."""
    workers: list[CeleryWorker] = []

    def start(**environ: str) -> CeleryWorker:
        name = f"serializers-{uuid.uuid4().hex[:8]}"
        worker = CeleryWorker(
            shared_nats.url, tmp_path, app=APP, name=name, pool="solo", environ=environ
        )
        workers.append(worker)
        worker.start()
        return worker

    yield start
    for worker in workers:
        worker.stop()


def _submit(web: WebProcess, task_type: str, key: str = "", **fields: Any) -> dict[str, Any]:
    """Submit once the front has heard of the worker."""
    headers = {"Idempotency-Key": key} if key else {}
    body = {"task_type": task_type, **fields}
    accepted = wait_until(
        lambda: web.client.post("/api/v1/tasks/submit", json=body, headers=headers).json(),
        lambda answer: answer["status"] == "success",
    )
    return dict(accepted["data"])


def _wait(web: WebProcess, task_id: str) -> dict[str, Any]:
    response = web.client.get(f"/api/v1/tasks/{task_id}?wait=20")
    assert response.status_code == 200, response.text
    data: dict[str, Any] = response.json()["data"]
    return data


@pytest.mark.parametrize(("environ", "told"), SERIALIZERS.values(), ids=SERIALIZERS)
def test_results_of_any_serializer_are_followed(
    web: WebProcess, start_worker: StartWorker, environ: dict[str, str], told: str
) -> None:
    """Waiting, states, times, errors, repeats and late cancels work; the value shows if JSON."""
    start_worker(**environ)
    fields: dict[str, Any] = {"task_data": {"words": ["a", "ü"]}}
    key = uuid.uuid4().hex

    task_id = _submit(web, DOUBLED, key, **fields)["task_id"]
    done = _wait(web, task_id)
    failed = _wait(web, _submit(web, "serializers.fail", task_data={"message": "no ü"})["task_id"])

    assert (done["state"], done["task_type"], done["queue"]) == ("SUCCESS", DOUBLED, QUEUE)
    assert done["runtime_seconds"] >= 0.1
    if told:
        assert done["result"] is None
        assert told in done["result_note"]
    else:
        assert (done["result"], done["result_note"]) == (["aa", "üü"], None)
    assert (failed["state"], failed["error"]["type"]) == ("FAILURE", "ValueError")
    assert failed["error"]["message"] == "no ü"
    assert _submit(web, DOUBLED, key, **fields)["state"] == "SUCCESS"
    assert not web.client.delete(f"/api/v1/tasks/{task_id}").json()["data"]["cancelled"]


@pytest.mark.parametrize("serializer", ["pickle", "yaml"])
def test_celery_reads_that_the_api_cancelled_a_task(
    shared_nats: NatsServer, serializer: str
) -> None:
    """Whoever waits with Celery for a task cancelled over REST learns it in any serializer."""
    settings = {"result_serializer": serializer, "result_accept_content": [serializer]}
    app = make_app(shared_nats.url, **settings)
    with Room(shared_nats.url) as room, ThreadPoolExecutor(1) as threads:
        task_id = room.submitter.submit(
            Submission(task_type="test", task_data={}, countdown=3600.0)
        ).task_id
        waiting = threads.submit(app.AsyncResult(task_id).get, timeout=_LONG_SECONDS)
        room.canceller.cancel(task_id)

        with pytest.raises(TaskRevokedError):
            waiting.result(_LONG_SECONDS)
        # What a worker does when the message comes to it.
        app.backend.mark_as_revoked(task_id, "revoked")
        view = room.lookup.get(task_id)
    close_app(app)

    assert view.state == "REVOKED"
    assert view.error is not None
    assert (view.error.type, view.error.message) == ("TaskRevokedError", "revoked")


def test_types_of_a_worker_without_json_are_not_offered(
    web: WebProcess, start_worker: StartWorker
) -> None:
    """A submission that the worker would drop is refused, with the setting that lacks json."""
    worker = start_worker(APP_ACCEPT_CONTENT="yaml")
    body = {"task_type": DOUBLED, "task_data": {"words": []}}
    deadline = time.monotonic() + _LONG_SECONDS
    while True:
        refused = web.client.post("/api/v1/tasks/submit", json=body)
        assert refused.status_code in {400, 503}, refused.text
        if worker.hostname in refused.text:
            break
        assert time.monotonic() < deadline, refused.text
        time.sleep(0.02)

    assert (refused.status_code, refused.json()["error_code"]) == (503, "SERVICE_UNAVAILABLE")
    assert "'json' to the accept_content" in refused.json()["message"]
    types = web.client.get("/api/v1/tasks/types").json()["data"]["types"]
    assert DOUBLED not in [each["name"] for each in types]
    assert "accept_content lacks json" in worker.output
