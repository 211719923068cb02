"""Benchmarks of the REST front."""

from __future__ import annotations

import http.client
import json
import os
import statistics
import subprocess
import time
from collections import Counter
from pathlib import Path

import msgspec

from bridge.names import Names, escape
from bridge.records import TaskType, WorkerRecord
from bridge.wire import Bucket, Connection, ConnectOptions, JetStream
from tests.benchmarks.figures import Report
from tests.benchmarks.processes import (
    HERE,
    OURS,
    Processes,
    rivals_python,
    wait_for_answer,
)
from tests.support.debian import debian_program
from tests.support.service import RunningService, free_ports

CLIENTS = 16
BODY = b'{"task_type":"noop","task_data":{}}'
_WARM_UP_SECONDS, _LOAD_SECONDS = 1, 5
_ROUND_TRIPS = 300
_HOUR_SECONDS = 3600.0
_GTHREAD = ("-w", "2", "-k", "gthread", "--threads", "8")

P95_MS = 15.0
ROUND_TRIP_MS = 10.0
MEMORY_MB = 150.0
REDIS_RATIO = 2.0


def submission(report: Report, directory: Path, rounds: int) -> None:
    """Requests per second and latency of a submission, 16 clients, 2 server processes each."""
    wrk = debian_program("wrk", "wrk")
    with Processes(directory) as processes:
        fronts = _fronts(processes)
        for port, path in fronts.values():
            wait_for_answer(port, path, BODY)
        for _ in range(rounds):
            for subject, (port, path) in fronts.items():
                url = f"http://127.0.0.1:{port}{path}"
                _load(wrk, url, _WARM_UP_SECONDS)
                told = _load(wrk, url, _LOAD_SECONDS)
                report.add("submission", subject, "req/s", told["per_second"])
                report.add("submission", subject, "p50 ms", told["p50_us"] / 1000)
                report.add("submission", subject, "p95 ms", told["p95_us"] / 1000)
    report.ratio("submission", "ours", "Flask + Celery on Redis", "req/s", REDIS_RATIO)
    report.ratio("submission", "ours", "FastAPI + taskiq-nats", "req/s", None)
    report.ratio("submission", "ours", "Flask echo", "req/s", None)
    report.at_most("submission", "p95 ms", report.median("submission", "ours", "p95 ms"), P95_MS)


def _fronts(processes: Processes) -> dict[str, tuple[int, str]]:
    """Start all fronts, none with a worker; return port and path of each."""
    nats_url, rival_nats_url = processes.nats(), processes.nats("rival-nats")
    redis_url, rivals = processes.redis(), HERE / "rivals"
    python = rivals_python()
    announce_noop(nats_url)
    ours, redis, taskiq, echo = free_ports(4)
    processes.start(
        [OURS, "-m", "bridge", "web"],
        {"NATS_URL": nats_url, "API_PORT": str(ours), "WEB_WORKERS": "2"},
    )
    gunicorn = [python, "-m", "gunicorn", *_GTHREAD, "-b"]
    processes.start(
        [*gunicorn, f"127.0.0.1:{redis}", "redis_front:front"], {"REDIS_URL": redis_url}, rivals
    )
    processes.start([*gunicorn, f"127.0.0.1:{echo}", "flask_echo:front"], None, rivals)
    uvicorn = [python, "-m", "uvicorn", "--workers", "2", "--no-access-log", "--port", str(taskiq)]
    processes.start([*uvicorn, "taskiq_front:front"], {"NATS_URL": rival_nats_url}, rivals)
    return {
        "ours": (ours, "/api/v1/tasks/submit"),
        "Flask + Celery on Redis": (redis, "/submit"),
        "FastAPI + taskiq-nats": (taskiq, "/submit"),
        "Flask echo": (echo, "/submit"),
    }


def announce_noop(nats_url: str) -> None:
    """Announce `noop` as a worker does; none runs, for it would take its share of the CPUs."""
    noop = TaskType(
        name="noop",
        queue="celery",
        schema={"type": "object", "properties": {}, "additionalProperties": False},
    )
    now = time.time()
    record = WorkerRecord(
        hostname="benchmark",
        pid=os.getpid(),
        pool="prefork",
        concurrency=2,
        queues=["celery"],
        types=[noop],
        started_epoch=now,
        announced_epoch=now + _HOUR_SECONDS,
    )
    names = Names()
    connection = Connection(ConnectOptions.from_url(nats_url, name="benchmark"))
    connection.connect()
    js = JetStream(connection)
    js.ensure_topology(names)
    Bucket(js, names.bucket("workers")).put(
        escape(record.hostname), msgspec.json.encode(record), _HOUR_SECONDS
    )
    connection.close()


def _load(wrk: str, url: str, seconds: int) -> dict[str, float]:
    """Run wrk; one thread of it serves 16 clients with a small part of one CPU."""
    command = [wrk, "-t1", f"-c{CLIENTS}", f"-d{seconds}s", "-s", str(HERE / "submit.lua"), url]
    answer = subprocess.run(
        command,
        env={**os.environ, "BENCH_BODY": BODY.decode()},
        capture_output=True,
        text=True,
        check=True,
    )
    told: dict[str, float] = json.loads(answer.stdout.splitlines()[-1])
    if told["failed"]:
        raise RuntimeError(f"{url}: {told['failed']:.0f} of {told['requests']:.0f} failed")
    told["per_second"] = told["requests"] / (told["duration_us"] / 1e6)
    return told


def service(report: Report, directory: Path, rounds: int) -> None:
    """POST to finished result on an idle service, and the memory of its processes."""
    running = RunningService(directory, WORKER_COUNT="3")
    try:
        running.start()
        for _ in range(rounds):
            taken = sorted(_round_trips(running.port, _ROUND_TRIPS))
            report.add("service", "noop through ?wait", "p50 ms", statistics.median(taken))
            report.add("service", "noop through ?wait", "p95 ms", taken[int(len(taken) * 0.95)])
        for subject, megabytes in _memory(running).items():
            report.add("service", subject, "PSS MB", megabytes)
        running.stop()
    finally:
        running.clean_up()
    p50 = report.median("service", "noop through ?wait", "p50 ms")
    report.at_most("service", "noop through ?wait p50 ms", p50, ROUND_TRIP_MS)
    together = sum(
        report.median("service", part, "PSS MB") for part in ("web", "controller", "nats-server")
    )
    report.at_most("service", "web + controller + nats-server PSS MB", together, MEMORY_MB)


def _round_trips(port: int, count: int) -> list[float]:
    """Submit and wait for the result, one after the other; return milliseconds."""
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    taken = []
    for _ in range(count):
        started = time.perf_counter()
        task_id = _call(client, "POST", "/api/v1/tasks/submit", BODY)["task_id"]
        task = _call(client, "GET", f"/api/v1/tasks/{task_id}?wait=10")
        taken.append((time.perf_counter() - started) * 1000)
        if task["state"] != "SUCCESS":
            raise RuntimeError(f"the no-op ended as {task}")
    client.close()
    return taken


def _call(
    client: http.client.HTTPConnection, method: str, path: str, body: bytes | None = None
) -> dict[str, str]:
    client.request(method, path, body, {"Content-Type": "application/json"} if body else {})
    envelope = json.loads(client.getresponse().read())
    if envelope["status"] != "success":
        raise RuntimeError(f"{method} {path}: {envelope}")
    data: dict[str, str] = envelope["data"]
    return data


#: What the command line of each process of the service holds.
_PARTS = {
    "nats-server": "nats-server",
    "bridge controller": "controller",
    "bridge web": "web",
    " flower": "Flower",
    " worker": "3 workers with their pools",
    "bridge up": "up",
}


def _memory(running: RunningService) -> dict[str, float]:
    """Return proportional set sizes in MB (10^6 bytes) by part of the service."""
    used: Counter[str] = Counter()
    for process in running.processes():
        command = " ".join(process.cmdline())
        part = next((name for text, name in _PARTS.items() if text in command), command)
        used[part] += process.memory_full_info().pss
    return {part: size / 1e6 for part, size in used.items()}
