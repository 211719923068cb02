"""Real child processes: their output, their restarts, their certain end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from bridge.fleet import Child, Fleet, ProcessSpec, ProcessState, Supervisor, WorkerOptions
from bridge.fleet import fleet as fleet_module
from tests.support.waiting import wait_until, wait_until_async

LAUNCH = Path(__file__).parents[2] / "bridge" / "fleet" / "launch.py"
STUBBORN = """
import signal, time, os
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = os.fork()
print(os.getpid(), flush=True)
while True: time.sleep(60)
"""


def python(code: str, **fields: object) -> ProcessSpec:
    return ProcessSpec(
        name="sample",
        command=[sys.executable, "-c", code],
        environ=dict(os.environ),
        **fields,  # type: ignore[arg-type]
    )


def group_is_gone(pgid: int) -> bool:
    """No live process is in the group; a zombie waits only for its adopter."""
    members = [
        process
        for process in psutil.process_iter(["status"])
        if process.info["status"] != psutil.STATUS_ZOMBIE and _pgid(process.pid) == pgid
    ]
    return not members


def _pgid(pid: int) -> int | None:
    with contextlib.suppress(ProcessLookupError):
        return os.getpgid(pid)
    return None


def test_child_tells_status_and_last_lines() -> None:
    """The exit status and what was written last are there once a process has ended."""

    async def scenario() -> tuple[int, list[str]]:
        child = await Child.start(python("print('hello'); raise SystemExit('it broke')"))
        return await child.wait(), child.tail()

    assert asyncio.run(scenario()) == (1, ["hello", "it broke"])


def test_child_that_ignores_sigterm_ends_with_its_whole_session() -> None:
    """A stop ends in time also what does not listen, and leaves no grandchild."""

    async def scenario() -> tuple[int, int]:
        child = await Child.start(python(STUBBORN))
        await wait_until_async(child.tail)
        return child.pid, await child.stop(grace_seconds=0.2)

    pid, status = asyncio.run(scenario())

    assert status == -signal.SIGKILL
    # The grandchild was killed too, and nobody here can wait for its end.
    wait_until(lambda: group_is_gone(pid))


def test_cold_signal_comes_before_sigkill() -> None:
    """A process that has a way to end at once is given the chance."""
    code = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGQUIT, lambda *_: sys.exit(3))
print("up", flush=True)
while True: time.sleep(60)
"""

    async def scenario() -> int:
        child = await Child.start(python(code, cold_signal=signal.SIGQUIT))
        await wait_until_async(child.tail)
        return await child.stop(grace_seconds=0.2)

    assert asyncio.run(scenario()) == 3


def test_child_dies_with_a_killed_starter() -> None:
    """SIGKILL of the starter leaves no orphan."""
    starter_code = f"""
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-I", "-S", {str(LAUNCH)!r}, str(os.getpid()),
                          sys.executable, "-uc", "import time; print('up'); time.sleep(60)"],
                         stdout=subprocess.PIPE, start_new_session=True)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""
    starter = subprocess.Popen([sys.executable, "-c", starter_code], stdout=subprocess.PIPE)
    assert starter.stdout is not None
    child = psutil.Process(int(starter.stdout.readline()))

    starter.kill()
    starter.wait()
    starter.stdout.close()

    with contextlib.suppress(psutil.NoSuchProcess):
        child.wait(5)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_launcher_whose_starter_is_gone_runs_nothing() -> None:
    """A starter that died before the kernel was asked is noticed."""
    ended = subprocess.run(
        [sys.executable, "-I", "-S", str(LAUNCH), "1999999999", "echo", "ran"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode != 0
    assert ended.stdout == ""


def test_command_that_is_absent_is_named() -> None:
    """A command that cannot be run says so in its last line."""

    async def scenario() -> tuple[int, list[str]]:
        spec = ProcessSpec(name="x", command=["/no/such/program"], environ=dict(os.environ))
        child = await Child.start(spec)
        return await child.wait(), child.tail()

    status, tail = asyncio.run(scenario())

    assert status == 1
    assert tail == ["cannot run /no/such/program: No such file or directory"]


def test_killed_process_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A supervisor replaces a process that ended unasked, and says why it did."""
    monkeypatch.setattr("bridge.fleet.supervisor.restart_delay_seconds", lambda *_: 0.01)

    async def scenario() -> tuple[int, int, int, str]:
        supervisor = Supervisor(python("import time; time.sleep(60)"))
        await supervisor.start()
        first = supervisor.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await wait_until_async(lambda: supervisor.pid not in {None, first})
        second = supervisor.pid
        assert second is not None
        error = supervisor.last_error or ""
        await supervisor.stop(5)
        return first, second, supervisor.restarts, error

    first, second, restarts, error = asyncio.run(scenario())

    assert restarts == 1
    assert error == "ended with signal 9"
    assert group_is_gone(first)
    assert group_is_gone(second)


def test_process_that_keeps_crashing_is_reported_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a row of crashes the state is LOST and carries the last output; stop still works."""
    monkeypatch.setattr(
        "bridge.fleet.supervisor.restart_delay_seconds",
        lambda crashes, _: 60 if crashes >= 5 else 0.001,
    )

    async def scenario() -> Supervisor:
        supervisor = Supervisor(python("raise SystemExit('no module named shop')"))
        await supervisor.start()
        await wait_until_async(lambda: supervisor.state is ProcessState.LOST)
        assert supervisor.pid is None
        await supervisor.stop(5)
        return supervisor

    supervisor = asyncio.run(scenario())

    assert supervisor.restarts == 4
    assert supervisor.last_error == "ended with exit status 1\nno module named shop"
    assert supervisor.state is ProcessState.STOPPED


@contextlib.asynccontextmanager
async def fleet_of_sleepers(
    monkeypatch: pytest.MonkeyPatch, code: str = "import time; time.sleep(60)"
) -> AsyncIterator[Fleet]:
    """A fleet whose workers are plain processes: what is under test is the fleet."""
    monkeypatch.setattr(
        fleet_module.WorkerOptions, "spec", lambda self, number, concurrency=None: python(code)
    )
    fleet = Fleet(WorkerOptions(app="x:y", worker_type="general", pool="solo", concurrency=1))
    try:
        yield fleet
    finally:
        await fleet.stop(5)


def test_target_starts_and_drains(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raising the target adds workers, lowering it ends those of the highest numbers."""

    async def scenario() -> tuple[list[str], list[str], list[str]]:
        async with fleet_of_sleepers(monkeypatch) as fleet:
            await fleet.set_target([1])
            one = [m.hostname.partition("@")[0] for m in fleet.members()]
            await fleet.set_target([1, 2, 3])
            three = [m.hostname.partition("@")[0] for m in fleet.members()]
            await fleet.set_target([1, 2])
            await wait_until_async(lambda: len(fleet.members()) == 2)
            two = [m.hostname.partition("@")[0] for m in fleet.members()]
        assert fleet.members() == []
        return one, three, two

    one, three, two = asyncio.run(scenario())

    assert one == ["general-worker-1"]
    assert three == ["general-worker-1", "general-worker-2", "general-worker-3"]
    assert two == ["general-worker-1", "general-worker-2"]


def test_worker_wanted_again_while_draining_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A target that falls and rises leaves the wanted number of running workers."""

    async def scenario() -> None:
        async with fleet_of_sleepers(monkeypatch) as fleet:
            await fleet.set_target([1])
            pid = fleet.members()[0].pid
            await fleet.set_target(())
            await fleet.set_target([1])
            await wait_until_async(
                lambda: (
                    [m.state for m in fleet.members()] == [ProcessState.RUNNING]
                    and fleet.members()[0].pid != pid
                )
            )

    asyncio.run(scenario())


def test_worker_command_is_an_ordinary_celery_worker() -> None:
    """What is run is Celery's own command line, on the wanted queues."""
    options = WorkerOptions(
        app="shop.celery:app",
        worker_type="general",
        pool="prefork",
        concurrency=5,
        queues="a,b",
        host="h",
    )

    command = options.spec(2).command

    assert command[1:7] == ["-m", "celery", "--quiet", "-A", "shop.celery:app", "worker"]
    assert "general-worker-2@h" in command
    assert command[-2:] == ["--queues", "a,b"]
