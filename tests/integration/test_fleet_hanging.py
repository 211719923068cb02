"""A worker that hangs is noticed by its silence and replaced."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import msgspec
import pytest
from nats.aio.client import Client

from bridge.control import Control
from bridge.controller import host as host_module
from bridge.controller.host import HostKeeper
from bridge.controller.shared import TARGET_KEY, FleetTarget
from bridge.fleet import Fleet, ProcessSpec, ProcessState, Supervisor, WorkerOptions
from bridge.fleet import fleet as fleet_module
from bridge.names import Names
from bridge.wire import Bucket, Connection, ConnectOptions, JetStream
from tests.support.nats import NatsServer
from tests.support.waiting import wait_until_async

NAMES = Names()
#: Beats like a Celery worker, but only twice; a second one of the same name beats on.
BEATER = """
import sys, time, pathlib
from bridge.names import Names
from bridge.wire import Connection, ConnectOptions
url, hostname, marker = sys.argv[1:]
first = not pathlib.Path(marker).exists()
pathlib.Path(marker).touch()
connection = Connection(ConnectOptions.from_url(url))
connection.connect()
for beat in range(2 if first else 100):
    time.sleep(0.2)
    body = b'{"type": "worker-heartbeat", "hostname": "' + hostname.encode() + b'"}'
    connection.publish(Names().exchange_subject("celeryev", "worker.heartbeat"), body)
time.sleep(600)
"""


async def nothing(_: Client) -> None:
    """Subscribe to no commands."""


def test_a_worker_that_sends_no_heartbeat_any_more_is_replaced(
    nats_server: NatsServer, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It did and does not any more although NATS is there: a new process takes its place."""
    monkeypatch.setattr(host_module, "SILENT_SECONDS", 1.0)
    monkeypatch.setattr(host_module, "_RECONNECT_GRACE_SECONDS", 0.0)
    options = ConnectOptions.from_url(nats_server.url)
    connection = Connection(options)
    connection.connect()
    js = JetStream(connection)
    js.ensure_topology(NAMES)
    target = FleetTarget(concurrency=1, hosts={"h": [1]})
    Bucket(js, NAMES.bucket("status")).put(TARGET_KEY, msgspec.json.encode(target))
    connection.close()

    def beater(self: WorkerOptions, number: int, concurrency: int | None = None) -> ProcessSpec:
        arguments = [nats_server.url, self.hostname(number), f"{tmp_path}/second"]
        return ProcessSpec(
            name="beater", command=[sys.executable, "-c", BEATER, *arguments], environ=os.environ
        )

    monkeypatch.setattr(fleet_module.WorkerOptions, "spec", beater)

    async def scenario() -> tuple[int | None, int | None, str]:
        fleet = Fleet(
            WorkerOptions(app="x:y", worker_type="general", pool="prefork", concurrency=1, host="h")
        )
        control = Control(nats_server.url)
        keeper = HostKeeper(
            options, NAMES, fleet, control, instance="h-1", serve=nothing, leftover_seconds=5
        )
        stop = asyncio.Event()
        running = asyncio.create_task(keeper.run(stop))
        try:
            await wait_until_async(lambda: keeper.pid_of(1) is not None)
            first = keeper.pid_of(1)
            await asyncio.wait_for(keeper.until_ready(1, other_than=first), 20)
            [member] = fleet.members()
            return first, member.pid, member.last_error or ""
        finally:
            await fleet.stop(5)
            stop.set()
            await running

    first, second, reason = asyncio.run(scenario())

    assert first != second
    assert "sent no heartbeat for" in reason


def test_a_stopped_process_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGSTOP for longer than a moment counts as the end of the process."""
    monkeypatch.setattr("bridge.fleet.supervisor._LOOK_SECONDS", 0.05)
    monkeypatch.setattr("bridge.fleet.supervisor.STOPPED_SECONDS", 0.2)
    monkeypatch.setattr("bridge.fleet.supervisor.restart_delay_seconds", lambda *_: 0.01)
    spec = ProcessSpec(
        name="sleeper",
        command=[sys.executable, "-c", "import time; time.sleep(60)"],
        environ=dict(os.environ),
    )

    async def scenario() -> tuple[int, int]:
        supervisor = Supervisor(spec)
        await supervisor.start()
        first = supervisor.pid
        assert first is not None
        os.kill(first, signal.SIGSTOP)
        await wait_until_async(lambda: supervisor.pid not in {None, first})
        assert supervisor.state is ProcessState.RUNNING
        second = supervisor.pid
        assert second is not None
        await supervisor.stop(5)
        return first, second

    first, second = asyncio.run(scenario())

    assert first != second


def test_a_process_that_is_let_go_on_in_time_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped for a moment, as a debugger does, and continued: the same process goes on."""
    monkeypatch.setattr("bridge.fleet.supervisor._LOOK_SECONDS", 0.05)
    monkeypatch.setattr("bridge.fleet.supervisor.STOPPED_SECONDS", 5.0)
    code = "import signal, sys; signal.signal(signal.SIGCONT, lambda *_: sys.exit(0))"
    spec = ProcessSpec(
        name="sleeper",
        command=[sys.executable, "-c", f"{code}; print('up', flush=True); signal.pause()"],
        environ=dict(os.environ),
    )

    async def scenario() -> str:
        supervisor = Supervisor(spec)
        await supervisor.start()
        child = supervisor._child
        assert child is not None
        await wait_until_async(child.tail)
        child._process.send_signal(signal.SIGSTOP)
        await wait_until_async(lambda: child.stopped)
        child._process.send_signal(signal.SIGCONT)
        await wait_until_async(lambda: supervisor.last_error is not None)
        error = supervisor.last_error or ""
        await supervisor.stop(5)
        return error

    assert asyncio.run(scenario()).startswith("ended with exit status 0")
