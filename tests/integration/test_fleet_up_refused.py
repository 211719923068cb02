"""`python -m bridge up` that cannot work: one clear line, nothing half started."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """Settings with which the service could be started."""
    ports = []
    for _ in range(3):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports.append(str(probe.getsockname()[1]))
    return {
        **os.environ,
        "DATA_DIR": str(tmp_path / "data"),
        "NATS_PORT": ports[0],
        "API_PORT": ports[1],
        "FLOWER_PORT": ports[2],
    }


@pytest.fixture
def taken_port() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield str(listener.getsockname()[1])


def refusal(environ: dict[str, str], cwd: Path, *arguments: str) -> str:
    """Run `up`, check that it ends as a refusal does, and return its one line."""
    before = psutil.Process().children()
    ended = subprocess.run(
        [sys.executable, "-m", "bridge", "up", *arguments],
        env=environ,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    lines = ended.stderr.splitlines()
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert len(lines) == 1, ended.stderr
    # A session's shared server may be there; nothing of this run's is.
    assert [p for p in psutil.Process().children() if p not in before] == []
    return lines[0]


@pytest.mark.parametrize("variable", ["API_PORT", "FLOWER_PORT", "NATS_PORT"])
def test_port_in_use(
    environ: dict[str, str], tmp_path: Path, taken_port: str, variable: str
) -> None:
    """A taken port is named together with the variable that changes it."""
    line = refusal({**environ, variable: taken_port}, tmp_path)

    assert taken_port in line
    assert variable in line


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"WORKER_COUNT": "many"}, ["WORKER_COUNT", "many"]),
        ({"NATS_URL": "nats://127.0.0.1:1"}, ["NATS_URL", "127.0.0.1:1", "start it"]),
        ({"NATS_URL": "http://example.org"}, ["nats://host:port"]),
        ({"CELERY_APP": "no_such_module:app"}, ["no_such_module", "CELERY_APP"]),
        ({"CELERY_APP": "json:dumps"}, ["json:dumps", "it is a function", "CELERY_APP"]),
        ({"NATS_SERVER_BIN": "/no/such/server"}, ["/no/such/server", "NATS_SERVER_BIN"]),
        ({"TASK_WORKER_CONFIG": "/no/such.yaml"}, ["/no/such.yaml", "TASK_WORKER_CONFIG"]),
        ({"ENVIRONMENT": "production", "API_HOST": "0.0.0.0"}, ["API_KEYS_FILE"]),
    ],
)
def test_bad_setting(
    environ: dict[str, str], tmp_path: Path, changes: dict[str, str], words: list[str]
) -> None:
    """A setting that cannot work is named, with what to do about it."""
    line = refusal({**environ, **changes}, tmp_path)

    assert [word for word in words if word not in line] == []


def test_data_directory_that_cannot_be_written(environ: dict[str, str], tmp_path: Path) -> None:
    """A data directory below a file is refused with the variable that changes it."""
    (tmp_path / "file").write_text("")

    line = refusal({**environ, "DATA_DIR": str(tmp_path / "file" / "data")}, tmp_path)

    assert "DATA_DIR" in line


def test_old_server(environ: dict[str, str], tmp_path: Path) -> None:
    """A nats-server without lasting schedules is refused before it has a store."""
    old = tmp_path / "old-server"
    old.write_text("#!/bin/sh\necho 'nats-server: v2.11.0'\n")
    old.chmod(0o755)

    line = refusal({**environ, "NATS_SERVER_BIN": str(old)}, tmp_path)

    assert "too old" in line
    assert not (tmp_path / "data").exists()


def test_app_of_the_current_directory_is_named_when_broken(
    environ: dict[str, str], tmp_path: Path
) -> None:
    """`--app` is looked up where the user stands, and its own error is told."""
    (tmp_path / "shop.py").write_text("import missing_dependency\n")

    line = refusal(environ, tmp_path, "--app", "shop:app")

    assert "missing_dependency" in line


def test_modules_of_the_user_do_not_shadow_ours(environ: dict[str, str], tmp_path: Path) -> None:
    """A config.py and a web.py where the user stands are not taken for ours."""
    for name in ("config.py", "web.py"):
        (tmp_path / name).write_text("raise SystemExit('the wrong module')\n")

    line = refusal({**environ, "WORKER_COUNT": "many"}, tmp_path)

    assert "WORKER_COUNT" in line
