"""Controllers on several hosts: one leads, each keeps its own workers, a dead one is replaced."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from bridge.errors import NatsConnectionError
from bridge.names import Names
from bridge.records import LEADER_KEY, SNAPSHOT_KEY, Snapshot
from bridge.wire import Bucket, Connection, ConnectOptions, JetStream, JetStreamError
from tests.support.nats import NatsServer
from tests.support.waiting import wait_until


class Hosts:
    """Controllers as processes of their own, each of which believes to be on another host."""

    def __init__(self, url: str, directory: Path) -> None:
        self.controllers: dict[str, subprocess.Popen[bytes]] = {}
        self._all: list[subprocess.Popen[bytes]] = []
        self._url = url
        self._directory = directory

    def start(self, host: str, **settings: str) -> None:
        with (self._directory / "controllers.log").open("a") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "bridge", "controller"],
                env={
                    **os.environ,
                    "NATS_URL": self._url,
                    "AUTOSCALE": "false",
                    "WORKER_COUNT": "2",
                    "MAX_CONCURRENT_TASKS": "1",
                    "WORKER_HOST": host,
                    **settings,
                },
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )
        self.controllers[host] = process
        self._all.append(process)

    def workers(self, host: str) -> dict[str, int]:
        """Worker ids and pids of a host, as the operating system has them."""
        found = {}
        for child in psutil.Process(self.controllers[host].pid).children():
            words = child.cmdline()
            if "--hostname" in words:
                found[words[words.index("--hostname") + 1]] = child.pid
        return found

    def stored(self, key: str) -> bytes | None:
        connection = Connection(ConnectOptions.from_url(self._url))
        try:
            connection.connect()
            return Bucket(JetStream(connection), Names().bucket("status")).get(key)
        except (NatsConnectionError, JetStreamError):
            return None
        finally:
            connection.close()

    def leader(self) -> str:
        """Host of the controller that leads, empty while none does."""
        stored = self.stored(LEADER_KEY)
        name: str = msgspec.json.decode(stored) if stored else ""
        return name.partition("-")[0]

    def running(self) -> dict[str, int | None]:
        """Ids and pids of the workers that the snapshot shows as running."""
        stored = self.stored(SNAPSHOT_KEY)
        workers = msgspec.json.decode(stored, type=Snapshot).workers if stored else []
        return {w.worker_id: w.pid for w in workers if w.state == "running"}

    def kill(self, host: str) -> None:
        """End a host as a power cut does: everything at once."""
        top = psutil.Process(self.controllers[host].pid)
        for process in [top, *top.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):  # its parent was faster
                process.kill()
        self.controllers.pop(host).wait()

    def clean_up(self) -> None:
        for process in self._all:
            if process.poll() is None:
                top = psutil.Process(process.pid)
                for each in [top, *top.children(recursive=True)]:
                    with contextlib.suppress(psutil.NoSuchProcess):  # its parent was faster
                        each.kill()
            process.wait()


@pytest.fixture
def hosts(nats_server: NatsServer, tmp_path: Path) -> Iterator[Hosts]:
    running = Hosts(nats_server.url, tmp_path)
    yield running
    running.clean_up()


def test_workers_are_split_and_a_dead_hosts_share_is_taken_over(hosts: Hosts) -> None:
    """Two hosts have one worker each; when the leader's host dies the other has both."""
    hosts.start("a")
    wait_until(hosts.running, lambda workers: len(workers) == 2)
    hosts.start("b")
    wait_until(lambda: len(hosts.workers("a")) == len(hosts.workers("b")) == 1, told=hosts.running)
    wait_until(hosts.running, lambda workers: len(workers) == 2)
    first = hosts.leader()
    [kept] = hosts.workers("b").values()

    hosts.kill("a")

    wait_until(lambda: hosts.workers("b"), lambda workers: len(workers) == 2)
    wait_until(hosts.leader, lambda leader: leader == "b")
    wait_until(hosts.running, lambda seen: set(hosts.workers("b").values()) <= set(seen.values()))
    assert first == "a"
    assert kept in hosts.workers("b").values()


def test_a_second_controller_on_a_host_doubles_nothing(hosts: Hosts) -> None:
    """It waits, and takes over when the first one is killed, without a worker too many."""
    hosts.start("a")
    wait_until(hosts.running, lambda workers: len(workers) == 2)
    first = hosts.controllers["a"]
    before = hosts.workers("a")
    hosts.start("a")
    log = hosts._directory / "controllers.log"
    wait_until(log.read_text, lambda text: "another controller keeps the workers" in text)
    assert hosts.workers("a") == {}

    stopped = next(iter(before.values()))
    os.kill(stopped, signal.SIGSTOP)  # would outlive its controller for ever
    first.kill()
    first.wait()

    wait_until(lambda: hosts.workers("a"), lambda workers: workers.keys() == before.keys())
    wait_until(hosts.running, lambda seen: set(hosts.workers("a").values()) == set(seen.values()))
    wait_until(lambda: not any(map(psutil.pid_exists, before.values())), told=lambda: before)
