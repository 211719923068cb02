"""The processes of a benchmark: started on free ports, gone at its end."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from bridge.probe import http_request
from tests.support.debian import debian_program
from tests.support.nats import NatsServer
from tests.support.service import free_ports

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
OURS = sys.executable
_READY_SECONDS = 60.0
_STOP_SECONDS = 10.0
_RABBITMQ = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")


def rivals_python() -> str:
    """Return the interpreter of the rivals' own environment, made on first use."""
    place = ROOT / "build" / "rivals"
    python, stamp = place / "bin" / "python", place / "requirements.txt"
    wanted = HERE / "rivals" / "requirements.txt"
    if not stamp.exists() or stamp.read_text() != wanted.read_text():
        subprocess.run([OURS, "-m", "venv", str(place)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, "-r", str(wanted)], check=True)
        shutil.copy(wanted, stamp)
    return str(python)


class Processes:
    """Starts processes in `directory`; ends all of them, last first, on exit."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._ends = contextlib.ExitStack()
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()

    def start(
        self, command: Sequence[str], environ: Mapping[str, str] | None = None, cwd: Path = ROOT
    ) -> subprocess.Popen[bytes]:
        """Start a command in a session of its own; its output goes to a file in `directory`."""
        self._count += 1
        with (self.directory / f"{self._count}-{Path(command[0]).name}.log").open("wb") as log:
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env={**os.environ, **(environ or {})},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._ends.callback(end, process)
        return process

    def nats(self, name: str = "nats") -> str:
        """Start a nats-server as the service starts its own; return its URL."""
        server = NatsServer(self.directory / name)
        server.start()
        self._ends.callback(server.stop)
        return server.url

    def redis(self) -> str:
        """Start a Redis that keeps what it accepted (append-only file); return its URL."""
        [port] = free_ports(1)
        data = self.directory / "redis"
        data.mkdir()
        program = debian_program("redis-server", "redis-server")
        options = ["--port", str(port), "--dir", str(data), "--appendonly", "yes", "--save", ""]
        self.start([program, *options])
        wait_for_port(port)
        return f"redis://127.0.0.1:{port}/0"

    def rabbitmq(self) -> str:
        """Start a RabbitMQ node with Debian's defaults; return its URL. Raises Missing."""
        debian_program("rabbitmqctl", "rabbitmq-server")
        port, dist_port, epmd_port = free_ports(3)
        home = self.directory / "rabbitmq"
        home.mkdir()
        (home / "plugins").write_text("[].\n")
        environ = {
            "HOME": str(home),
            "ERL_EPMD_PORT": str(epmd_port),
            "RABBITMQ_NODENAME": f"bench{port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(port),
            "RABBITMQ_DIST_PORT": str(dist_port),
            "RABBITMQ_MNESIA_BASE": str(home),
            "RABBITMQ_LOG_BASE": str(home),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "plugins"),
            "RABBITMQ_PID_FILE": str(home / "pid"),
        }
        # Erlang's name server, in the foreground, for it would outlive the node otherwise.
        self.start(["epmd", "-port", str(epmd_port)], environ)
        self.start([str(_RABBITMQ)], environ)
        wait_for_port(port)
        return f"amqp://guest:guest@127.0.0.1:{port}//"


def end(process: subprocess.Popen[bytes], patience_seconds: float = _STOP_SECONDS) -> None:
    """Ask a process to end, then end its whole session."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience_seconds)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_for_port(port: int) -> None:
    """Return when something listens. Raises TimeoutError."""
    deadline = time.monotonic() + _READY_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError as error:
            if time.monotonic() > deadline:
                raise TimeoutError(f"nothing listens on port {port}") from error
            time.sleep(0.05)
        else:
            return


def wait_for_answer(port: int, path: str, body: bytes) -> None:
    """Return when a POST is answered with 200. Raises TimeoutError with the last answer."""
    wait_for_port(port)
    deadline = time.monotonic() + _READY_SECONDS
    while True:
        status, answer = http_request("127.0.0.1", port, path, body=body)
        if status == 200:
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"port {port} answers {status}: {answer[:300]!r}")
        time.sleep(0.05)
