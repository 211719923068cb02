"""The commands that look and do not run: doctor, health, apikey."""

from __future__ import annotations

import hashlib
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge import topology
from bridge.names import Names
from bridge.wire import Connection, ConnectOptions, JetStream
from tests.support.nats import NatsServer
from tests.support.service import free_ports


def bridge(cwd: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m bridge`` where no other service is in the way."""
    nats_port, api_port, flower_port = map(str, free_ports(3))
    ports = {"NATS_PORT": nats_port, "API_PORT": api_port, "FLOWER_PORT": flower_port}
    return subprocess.run(
        [sys.executable, "-m", "bridge", *arguments],
        env={**os.environ, **ports, **settings},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def failed_checks(output: str) -> list[str]:
    return [line.split()[1] for line in output.splitlines() if line.startswith("fail")]


class HealthyHandler(http.server.BaseHTTPRequestHandler):
    """Answers /health as the REST front does."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def healthy_port() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), HealthyHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield str(server.server_port)
    server.shutdown()
    thread.join()
    server.server_close()


def test_doctor_is_content_before_the_first_start(tmp_path: Path) -> None:
    """With nothing running and nothing wrong every check passes, and nothing is written."""
    ended = bridge(tmp_path, "doctor", DATA_DIR="new/data")

    assert failed_checks(ended.stdout) == []
    assert ended.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_doctor_names_a_misspelt_variable(tmp_path: Path) -> None:
    """A variable that nobody reads is told when it is nearly one that is read."""
    ended = bridge(tmp_path, "doctor", WORKER_CUONT="5")

    assert failed_checks(ended.stdout) == ["environment"]
    assert (
        "WORKER_CUONT is no setting and has no effect; did you mean WORKER_COUNT?" in ended.stdout
    )


def test_doctor_shows_no_secret(tmp_path: Path) -> None:
    """Passwords and tokens are masked in the settings it prints."""
    ended = bridge(
        tmp_path,
        "doctor",
        NATS_URL="nats://user:hunter2@127.0.0.1:1",
        NATS_TOKEN="hunter2",
        FLOWER_BASIC_AUTH="admin:hunter2",
    )

    assert "hunter2" not in ended.stdout + ended.stderr
    assert failed_checks(ended.stdout) == ["nats", "account", "workers"]
    assert ended.returncode == 1


def test_doctor_reads_an_external_server(tmp_path: Path) -> None:
    """It reports a server's version and what is left for us there, and names what is full.

    That nothing of ours is there yet is no failure.
    """
    limits = "max_file: 2M, max_streams: 13, max_consumers: 100"
    account = f"jetstream: {{ {limits} }}, users: [ {{ user: u, password: p }} ]"
    server = NatsServer(tmp_path / "nats", extra=f"accounts {{ A: {{ {account} }} }}\n")
    server.start()
    url = f"nats://u:p@127.0.0.1:{server.port}"
    connection = Connection(ConnectOptions.from_url(url))
    try:
        ended = bridge(tmp_path, "doctor", NATS_URL=url)
        connection.connect()
        js = JetStream(connection)
        js.ensure_stream(topology.task_stream(Names()))
        js.publish(Names().task_subject("celery"), b"x" * 1_900_000)
        full = bridge(tmp_path, "doctor", NATS_URL=url)
    finally:
        connection.close()
        server.stop()

    assert "external 2." in ended.stdout
    assert "0 of 13 streams, 0 of 100 consumers (10 a queue), 0 of 2 MB" in ended.stdout
    assert failed_checks(ended.stdout) == []
    assert failed_checks(full.stdout) == ["account"]
    assert "1 of 2 MB stored" in full.stdout


def test_doctor_finds_a_stranger_on_the_port(tmp_path: Path, healthy_port: str) -> None:
    """A port held by another program fails the check of what would listen there."""
    ended = bridge(tmp_path, "doctor", FLOWER_PORT=healthy_port)

    assert failed_checks(ended.stdout) == ["flower"]
    assert "FLOWER_PORT" in ended.stdout


def test_health_follows_the_rest_front(tmp_path: Path, healthy_port: str) -> None:
    """The exit status says whether /health answers on the configured port."""
    assert bridge(tmp_path, "health", API_PORT=healthy_port).returncode == 0

    silent = bridge(tmp_path, "health")

    assert silent.returncode == 1
    assert len(silent.stderr.splitlines()) == 1


def test_apikey_prints_a_key_and_its_hash(tmp_path: Path) -> None:
    """The line for the file holds the hash of the key, not the key."""
    ended = bridge(tmp_path, "apikey", "shop")

    key_line, file_line = ended.stdout.splitlines()
    key = key_line.rpartition(" ")[2]
    assert file_line.endswith(f"shop:{hashlib.sha256(key.encode()).hexdigest()}")
    assert key not in file_line


def test_apikey_refuses_a_name_that_cannot_stand_in_the_file(tmp_path: Path) -> None:
    """A bad name is one line, not a traceback."""
    ended = bridge(tmp_path, "apikey", "a:b")

    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1
