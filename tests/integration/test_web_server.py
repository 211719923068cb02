"""The front end as it runs: gunicorn, two processes, a real NATS server."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import msgspec
import psutil
import pytest

from bridge.records import SNAPSHOT_KEY, ActiveTask, Snapshot, TaskFigures, WorkerState
from tests.support.nats import NatsServer
from tests.support.submission import Room
from tests.support.waiting import wait_until
from tests.support.web import WebProcess
from web.auth import generate

SUBMIT = "/api/v1/tasks/submit"
HELLO = {"task_type": "test", "task_data": {"message": "hello"}}
_LONG_SECONDS = 30.0


@pytest.fixture
def room(nats_server: NatsServer) -> Iterator[Room]:
    """The server's buckets, with a live worker in them."""
    with Room(nats_server.url) as room:
        room.announce()
        yield room


@pytest.fixture
def web(room: Room, nats_server: NatsServer) -> Iterator[WebProcess]:
    """Processes of this test's own, to kill and stop."""
    with WebProcess(nats_server.url) as web:
        _await_ready(web)
        yield web


@pytest.fixture(scope="module")
def shared_room(shared_nats: NatsServer) -> Iterator[Room]:
    """Like `room`, on the server that tests share."""
    with Room(shared_nats.url) as room:
        room.announce()
        yield room
        room.withdraw()


@pytest.fixture(scope="module")
def shared_web(shared_room: Room, shared_nats: NatsServer) -> Iterator[WebProcess]:
    """Processes that tests share which leave them as they were."""
    with WebProcess(shared_nats.url) as web:
        _await_ready(web)
        yield web


def _await_ready(web: WebProcess, ready: int = 200) -> None:
    """Return once every process has answered so; a new connection meets either of them."""
    in_a_row, deadline = 0, time.monotonic() + _LONG_SECONDS
    while in_a_row < 8:
        assert time.monotonic() < deadline, "".join(web.log)
        status = _fresh(web, "/ready")
        in_a_row = in_a_row + 1 if status == ready else 0


def _fresh(web: WebProcess, path: str) -> int:
    return web.client.get(path, headers={"Connection": "close"}).status_code


def _raw(web: WebProcess, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", web.port), timeout=10) as client:
        client.sendall(request)
        answer = b""
        while chunk := client.recv(65536):
            answer += chunk
    return answer


def test_submit_wait_and_result(shared_web: WebProcess, shared_room: Room) -> None:
    """A task submitted over HTTP is stored, and a waiting client is woken by its result."""
    accepted = shared_web.client.post(SUBMIT, json=HELLO).json()
    assert accepted["status"] == "success", accepted
    task_id = accepted["data"]["task_id"]
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(shared_web.client.get, f"/api/v1/tasks/{task_id}?wait=30")
        shared_room.store_result(task_id, status="SUCCESS", result={"echo": "hello"})
        answer = waiting.result(_LONG_SECONDS).json()

    assert (accepted["status"], accepted["data"]["state"]) == ("success", "QUEUED")
    assert (answer["data"]["state"], answer["data"]["result"]) == ("SUCCESS", {"echo": "hello"})


def test_failed_task_is_a_200_with_its_error(shared_web: WebProcess, shared_room: Room) -> None:
    """A task that failed is found, and its error is inside."""
    shared_room.store_result("i", status="FAILURE", result={"exc_type": "E", "exc_message": ["x"]})

    response = shared_web.client.get("/api/v1/tasks/i")

    assert response.status_code == 200
    assert response.json()["data"]["error"]["error_code"] == "TASK_EXECUTION_ERROR"


def test_cancel_over_http(shared_web: WebProcess) -> None:
    """A waiting task is cancelled by DELETE; an unknown one is 404."""
    task_id = shared_web.client.post(SUBMIT, json=HELLO).json()["data"]["task_id"]

    assert shared_web.client.delete(f"/api/v1/tasks/{task_id}").json()["data"]["cancelled"]
    assert shared_web.client.get(f"/api/v1/tasks/{task_id}").json()["data"]["state"] == "REVOKED"
    assert shared_web.client.delete("/api/v1/tasks/nobody").status_code == 404


def test_idempotency_key_over_http(shared_web: WebProcess) -> None:
    """The header is honoured: one task, a marked duplicate, a conflict."""
    key = {"Idempotency-Key": "order-1"}
    first = shared_web.client.post(SUBMIT, json=HELLO, headers=key).json()["data"]
    second = shared_web.client.post(SUBMIT, json=HELLO, headers=key).json()["data"]
    other = shared_web.client.post(SUBMIT, json={"task_type": "test"}, headers=key)

    assert (first["task_id"], True) == (second["task_id"], second["duplicate"])
    assert other.status_code == 409


def test_clients_have_idempotency_keys_of_their_own(
    shared_room: Room, shared_nats: NatsServer, tmp_path: Path
) -> None:
    """The longest key that is allowed means two tasks for two clients; an empty one is refused."""
    keys = dict(generate(name) for name in ("shop", "bank"))
    (tmp_path / "keys").write_text("\n".join(keys.values()))
    with WebProcess(shared_nats.url, API_KEYS_FILE=str(tmp_path / "keys")) as web:
        _await_ready(web)

        def submit(api_key: str, key: str) -> httpx.Response:
            headers = {"X-API-Key": api_key, "Idempotency-Key": key}
            return web.client.post(SUBMIT, json=HELLO, headers=headers)

        answers = [submit(api_key, "x" * 255).json() for api_key in (*keys, *keys)]
        refused = submit(next(iter(keys)), "")

    assert [answer["status"] for answer in answers] == ["success"] * 4, answers
    assert [answer["data"]["duplicate"] for answer in answers] == [False, False, True, True]
    assert len({answer["data"]["task_id"] for answer in answers}) == 2
    assert refused.status_code == 400


def test_status_follows_the_snapshot(shared_web: WebProcess, shared_room: Room) -> None:
    """Status, workers and figures are those of the controller's last snapshot, within moments."""
    now = time.time()
    snapshot = Snapshot(
        taken_epoch=now,
        controller_started_epoch=now,
        worker_type="general",
        max_concurrent_per_worker=5,
        target_workers=1,
        workers=[
            WorkerState(
                worker_id="w1",
                state="running",
                worker_type="general",
                max_concurrent=4,
                active_tasks=1,
                nats_connected=True,
            )
        ],
        active=[ActiveTask(task_id="i", task_type="test", worker_id="w1", started_epoch=now)],
        figures=TaskFigures(tasks_processed=7, tasks_failed=2, average_duration_seconds=0.5),
    )
    shared_room.bucket("status").put(SNAPSHOT_KEY, msgspec.json.encode(snapshot))
    status = wait_until(
        lambda: shared_web.client.get("/api/v1/status").json()["data"],
        lambda data: data["status"] == "running",
    )

    assert {"total_workers": 1, "running_workers": 1, "total_max_concurrent": 4}.items() <= (
        status["worker_summary"].items()
    )
    assert status["statistics"] == {
        "tasks_processed": 7,
        "tasks_failed": 2,
        "current_active_tasks": 1,
        "average_task_duration": 0.5,
    }
    assert shared_web.client.get("/api/v1/workers/w1").json()["data"]["worker_id"] == "w1"
    assert shared_web.client.get("/api/v1/tasks/stats").json()["data"]["utilisation"] == 0.25


def test_outage_is_told_and_overcome(web: WebProcess, nats_server: NatsServer) -> None:
    """Without NATS submissions are refused within two seconds; with it again they are taken."""
    nats_server.kill()
    started = time.monotonic()
    refused = web.client.post(SUBMIT, json=HELLO)
    took = time.monotonic() - started
    _await_ready(web, 503)

    assert (refused.status_code, refused.json()["error_code"]) == (503, "NATS_CONNECTION_ERROR")
    assert "Retry-After" in refused.headers
    assert took < 2
    assert web.client.get("/api/v1/status").json()["data"]["status"] == "degraded"

    nats_server.start()
    wait_until(
        lambda: web.client.post(SUBMIT, json=HELLO).status_code == 200,
        told=lambda: "".join(web.log),
    )


@pytest.mark.parametrize(
    "request_text",
    [
        b"NONSENSE\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n",
        b"POST " + SUBMIT.encode() + b" HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n",
        b"POST " + SUBMIT.encode() + b" HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        b"Connection: close\r\nContent-Length: x\r\n\r\n{}",
    ],
)
def test_malformed_http_is_answered_in_the_envelope(
    shared_web: WebProcess, request_text: bytes
) -> None:
    """Even what is no HTTP gets the envelope, and never HTML or plain text."""
    head, _, body = _raw(shared_web, request_text).partition(b"\r\n\r\n")

    assert head.startswith(b"HTTP/1.1 4")
    assert b"application/json" in head.lower()
    assert msgspec.json.decode(body)["status"] == "error"


def test_chunked_body_over_the_limit_is_refused(shared_web: WebProcess) -> None:
    """A body without Content-Length is limited as well."""

    def chunks() -> Iterator[bytes]:
        for _ in range(20):
            yield b" " * 65536

    headers = {"Content-Type": "application/json"}
    response = shared_web.client.post(SUBMIT, content=chunks(), headers=headers)

    assert response.status_code == 413


def test_chunked_body_is_read(shared_web: WebProcess) -> None:
    """A good body in chunks is taken."""
    body = msgspec.json.encode(HELLO)
    headers = {"Content-Type": "application/json"}
    response = shared_web.client.post(SUBMIT, content=iter([body[:5], body[5:]]), headers=headers)

    assert response.status_code == 200


def test_answers_do_not_name_their_software(shared_web: WebProcess) -> None:
    """No header tells which server answers."""
    assert "gunicorn" not in str(shared_web.client.get("/health").headers).lower()
    assert "Server" not in shared_web.client.get("/health").headers


def test_killed_worker_process_is_replaced(web: WebProcess) -> None:
    """When a process of the front end dies another takes its place and serves."""
    before = {process.pid for process in web.workers()}
    os.kill(min(before), signal.SIGKILL)
    alive = wait_until(
        lambda: {process.pid for process in web.workers()} - {min(before)},
        lambda pids: len(pids) >= len(before),
    )
    _await_ready(web)

    assert len(alive) == len(before)


def test_stop_is_quick_and_complete(web: WebProcess) -> None:
    """SIGTERM ends all processes soon although clients keep idle connections open."""
    workers = web.workers()
    with socket.create_connection(("127.0.0.1", web.port), timeout=10) as idle:
        idle.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        assert idle.recv(65536).startswith(b"HTTP/1.1 200")
        started = time.monotonic()

        assert web.stop() == 0

    assert time.monotonic() - started < 6
    assert not psutil.wait_procs(workers, timeout=5)[1]


def test_taken_port_is_one_clear_line(nats_server: NatsServer, tmp_path: Path) -> None:
    """A port in use is told in one line with what to do, and nothing is left running."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ended = subprocess.run(
            [sys.executable, "-m", "bridge", "web"],
            env={**os.environ, "NATS_URL": nats_server.url, "API_PORT": port},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    assert ended.returncode != 0
    assert "API_PORT" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_log_has_no_warnings(web: WebProcess) -> None:
    """Starting and serving logs nothing that an operator would have to look into."""
    web.client.post(SUBMIT, json=HELLO)
    web.stop()

    assert [line for line in web.log if '"level":"INFO"' not in line] == []
