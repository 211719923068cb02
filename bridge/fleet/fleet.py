"""The worker processes of this host: as many as wanted, watched, drained, stopped."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from bridge.fleet.child import ProcessSpec
from bridge.fleet.supervisor import ProcessState, Supervisor
from bridge.logs import get_logger

log = get_logger("bridge.fleet")


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """How each Celery worker of a fleet is started.

    `app` is what ``celery -A`` takes; `queues` empty means those the app names itself;
    `environ` is the whole environment of the process.
    """

    app: str
    worker_type: str
    pool: str
    concurrency: int
    queues: str = ""
    log_level: str = "INFO"
    environ: Mapping[str, str] = field(default_factory=dict)
    host: str = field(default_factory=socket.gethostname)

    def worker_id(self, number: int) -> str:
        return f"{self.worker_type}-worker-{number}"

    def hostname(self, number: int) -> str:
        """Celery's name of the worker, unique over all hosts."""
        return f"{self.worker_id(number)}@{self.host}"

    def spec(self, number: int) -> ProcessSpec:
        """Return the process that is worker `number`."""
        command = [
            *(sys.executable, "-m", "celery", "--quiet", "-A", self.app, "worker"),
            *("--hostname", self.hostname(number)),
            *("--pool", self.pool, "--concurrency", str(self.concurrency)),
            *("--task-events", "--loglevel", self.log_level),
        ]
        if self.queues:
            command += ["--queues", self.queues]
        worker_id = self.worker_id(number)
        environ = {**self.environ, "BRIDGE_WORKER_ID": worker_id}
        return ProcessSpec(
            name=worker_id,
            command=command,
            environ=environ,
            bound={"worker_id": worker_id},
            cold_signal=signal.SIGQUIT,
        )


@dataclass(frozen=True, kw_only=True)
class MemberState:
    """One worker process as its supervisor sees it."""

    hostname: str
    state: ProcessState
    pid: int | None
    restarts: int
    last_error: str | None
    started_epoch: float | None


class Fleet:
    """Worker processes 1..target. All methods belong to one event loop."""

    def __init__(self, options: WorkerOptions) -> None:
        self.options = options
        self.target = 0
        self._members: dict[int, Supervisor] = {}
        self._draining: dict[int, asyncio.Task[None]] = {}

    async def set_target(self, count: int) -> None:
        """Have `count` workers: start what is missing, drain the highest numbers.

        Returns once the missing ones are created; a drained worker finishes its tasks in the
        background, however long they take.
        """
        if count < 0:
            raise ValueError(f"a fleet cannot have {count} workers")
        self.target = count
        for number in [n for n in self._active() if n > count]:
            log.info("worker draining", worker_id=self.options.worker_id(number))
            self._draining[number] = asyncio.create_task(self._drain(number))
        for number in range(1, count + 1):
            if number not in self._members:
                await self._start(number)

    async def stop(self, grace_seconds: float) -> None:
        """End all workers: warm at first, by force after `grace_seconds`."""
        self.target = 0
        members = list(self._members.values())
        await asyncio.gather(*(member.stop(grace_seconds) for member in members))
        await asyncio.gather(*self._draining.values())
        self._members.clear()

    def members(self) -> list[MemberState]:
        """Return the state of every worker process, in the order of their numbers."""
        return [
            MemberState(
                hostname=self.options.hostname(number),
                state=member.state,
                pid=member.pid,
                restarts=member.restarts,
                last_error=member.last_error,
                started_epoch=member.started_epoch,
            )
            for number, member in sorted(self._members.items())
        ]

    def _active(self) -> list[int]:
        return [number for number in self._members if number not in self._draining]

    async def _start(self, number: int) -> None:
        member = Supervisor(self.options.spec(number))
        await member.start()
        self._members[number] = member

    async def _drain(self, number: int) -> None:
        await self._members[number].stop(None)
        del self._members[number], self._draining[number]
        if number <= self.target:
            # The target rose again while this one was finishing its tasks.
            await self._start(number)
