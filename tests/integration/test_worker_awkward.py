"""What cannot be announced keeps no worker from its work."""

from __future__ import annotations

from pathlib import Path

import msgspec

from bridge.names import Names, escape
from bridge.records import WorkerRecord
from bridge.wire import Bucket, Connection, ConnectOptions, JetStream
from tests.support.celery_client import close_app, make_app
from tests.support.celery_worker import CeleryWorker
from tests.support.nats import NatsServer


def test_a_worker_whose_tasks_cannot_be_described_runs_them(tmp_path: Path) -> None:
    """Types and routes that cannot be told, and too large an announcement, are logged."""
    server = NatsServer(tmp_path / "nats", extra="max_payload: 64KB\n")
    server.start()
    worker = CeleryWorker(server.url, tmp_path, app="tests.support.awkward_app", name="awkward")
    client = make_app(server.url, task_default_queue="awkward")
    connection = Connection(ConnectOptions.from_url(server.url))
    try:
        worker.start()
        result = client.send_task("awkward.order", kwargs={"order": {"price": 5}})
        assert result.get(timeout=20) == 5
        connection.connect()
        bucket = Bucket(JetStream(connection), Names().bucket("workers"))
        stored = bucket.get(escape(worker.hostname))
    finally:
        connection.close()
        close_app(client)
        worker.stop()
        server.kill()

    assert stored is not None
    types = {each.name: each for each in msgspec.json.decode(stored, type=WorkerRecord).types}
    assert {"awkward.order", "awkward.job", "awkward.many199"} <= set(types)
    assert not {"awkward.tenant", "awkward.elsewhere"} & set(types)
    assert types["awkward.many0"].schema["required"] == ["number"]
    assert not types["awkward.many0"].doc
    for told in ("task awkward.order, argument order", "task awkward.job, argument job"):
        assert worker.output.count(told) == 1
    for told in ("task awkward.tenant: ", "task awkward.elsewhere: ", "without their descriptions"):
        assert worker.output.count(told) == 1
