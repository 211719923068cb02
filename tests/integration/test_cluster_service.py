"""The whole service on a three-node cluster that loses nodes."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.nats_cluster import REPLICAS, NatsCluster
from tests.support.recovery import PATIENCE_SECONDS
from tests.support.service import RunningService
from tests.support.waiting import wait_until

#: An answer comes within two seconds, whatever NATS does; the rest is this machine's.
ANSWER_SECONDS = 2.0 + 1.0

#: Error code and Retry-After: of NATS, and of workers that are taken for dead, since they could not
#: announce themselves for so long.
REFUSALS = {("NATS_CONNECTION_ERROR", "2"), ("SERVICE_UNAVAILABLE", "5")}


class Answer(NamedTuple):
    """One HTTP answer and the seconds it took."""

    status: int
    retry_after: str | None
    envelope: dict[str, Any]
    seconds: float


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[NatsCluster]:
    with NatsCluster(tmp_path / "cluster") as running:
        yield running


@pytest.fixture
def service(tmp_path: Path, cluster: NatsCluster) -> Iterator[RunningService]:
    running = RunningService(
        tmp_path,
        NATS_URL=cluster.url,
        NATS_REPLICAS=str(REPLICAS),
        CELERY_APP="tests.support.foreign_app",
        FLOWER_ENABLED="false",
    )
    running.start()
    yield running
    running.clean_up()


def ask(service: RunningService, path: str, body: Any = None) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=PATIENCE_SECONDS)
    asked = time.monotonic()
    try:
        payload = None if body is None else json.dumps(body)
        method = "GET" if body is None else "POST"
        connection.request(method, path, payload, {"Content-Type": "application/json"})
        reply = connection.getresponse()
        envelope = json.load(reply)
    finally:
        connection.close()
    retry_after = reply.getheader("Retry-After")
    return Answer(reply.status, retry_after, envelope, time.monotonic() - asked)


def submit(service: RunningService) -> Answer:
    task = {"task_type": "foreign.add", "task_data": {"x": 2, "y": 3}}
    return ask(service, "/api/v1/tasks/submit", task)


def submit_until_accepted(service: RunningService) -> list[Answer]:
    """Submit tasks one after the other; return all answers, the last one being a 200."""
    answers = [submit(service)]
    deadline = time.monotonic() + PATIENCE_SECONDS
    while answers[-1].status != 200:
        assert time.monotonic() < deadline, answers[-1]
        answers.append(submit(service))
    return answers


def test_service_loses_nodes(cluster: NatsCluster, service: RunningService) -> None:
    """What was answered 200 is done; all else is in time an error that tells when to try again."""
    answers = [submit(service)]
    cluster.lead("b")
    with cluster.without("b"):
        answers += submit_until_accepted(service)
        wait_until(lambda: ask(service, "/ready").status == 200)

        cluster.nodes["c"].kill()
        answers.append(submit(service))
        assert answers[-1].status == 503
        cluster.nodes["c"].start()
        answers += submit_until_accepted(service)
        wait_until(lambda: ask(service, "/ready").status == 200)

    assert max(answer.seconds for answer in answers) < ANSWER_SECONDS
    for answer in answers:
        if answer.status == 200:
            task = ask(service, f"/api/v1/tasks/{answer.envelope['data']['task_id']}?wait=20")
            assert task.envelope["data"]["state"] == "SUCCESS"
        else:
            assert answer.status == 503
            assert (answer.envelope["error_code"], answer.retry_after) in REFUSALS
    service.stop()
