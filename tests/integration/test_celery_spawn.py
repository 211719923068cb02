"""A prefork pool whose processes are spawned instead of forked."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
from celery import Celery, chord

from tests.support.celery_worker import CeleryWorker
from tests.support.nats import NatsServer
from tests.support.waiting import wait_until

GET_SECONDS = 30.0


def test_spawned_processes_work_as_forked_ones(
    nats_server: NatsServer, app: Celery, tmp_path: Path
) -> None:
    """Canvas, start times and JSON log lines are there, and a killed process is replaced."""
    worker = CeleryWorker(
        nats_server.url,
        tmp_path,
        *("--", "worker.pool_start_method=spawn"),
        concurrency=1,
        environ={"BRIDGE_LOG_FORMAT": "json"},
    )
    worker.start()
    try:
        add, total = (app.signature(f"foreign.{name}") for name in ("add", "total"))
        result = chord([add.clone((1, 2)), add.clone((3, 4))])(total)
        assert result.get(timeout=GET_SECONDS) == 10
        assert app.backend.get_task_meta(result.id)["started_epoch"] is not None

        ran = tmp_path / "ran"
        held = app.send_task("foreign.hold", (str(ran), str(tmp_path / "go")))
        wait_until(ran.exists)
        for child in psutil.Process(worker.pid).children():
            if "spawn_main" in " ".join(child.cmdline()):
                child.kill()
        (tmp_path / "go").touch()
        held.get(timeout=GET_SECONDS)
        assert ran.read_text().count("start hold") == 2
    finally:
        worker.stop()
    lines = [json.loads(line) for line in worker.output.splitlines() if line.startswith("{")]
    assert result.id in {line.get("task_id") for line in lines if line.get("status") == "success"}
