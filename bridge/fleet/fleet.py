"""The worker processes of this host: as many as wanted, watched, drained, stopped."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import Coroutine, Iterable, Mapping
from dataclasses import dataclass, field

from bridge.errors import WorkerNotFound
from bridge.fleet import leftovers
from bridge.fleet.child import ProcessSpec
from bridge.fleet.leftovers import FLEET_VARIABLE, WORKER_VARIABLE
from bridge.fleet.supervisor import ProcessState, Supervisor
from bridge.logs import get_logger

log = get_logger("bridge.fleet")


@dataclass(frozen=True, kw_only=True)
class WorkerSpec(ProcessSpec):
    """A worker process and the size its pool is started with."""

    concurrency: int = 0


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """How each Celery worker of a fleet is started.

    `app` is what ``celery -A`` takes; `concurrency` the greatest size of a pool; `queues` empty
    means those the app names itself; `environ` is the whole environment of the process;
    `fleet_id` tells the processes of this fleet from all others on the host.
    """

    app: str
    worker_type: str
    pool: str
    concurrency: int
    queues: str = ""
    log_level: str = "INFO"
    environ: Mapping[str, str] = field(default_factory=dict)
    host: str = field(default_factory=socket.gethostname)
    fleet_id: str = ""

    def worker_id(self, number: int) -> str:
        return f"{self.worker_type}-worker-{number}"

    def hostname(self, number: int) -> str:
        """Celery's name of the worker, unique over all hosts."""
        return f"{self.worker_id(number)}@{self.host}"

    def spec(self, number: int, concurrency: int | None = None) -> ProcessSpec:
        """Return the process that is worker `number`."""
        slots = concurrency or self.concurrency
        command = [
            *(sys.executable, "-m", "celery", "--quiet", "-A", self.app, "worker"),
            *("--hostname", self.hostname(number)),
            *("--pool", self.pool, "--concurrency", str(slots)),
            *("--task-events", "--loglevel", self.log_level),
        ]
        if self.queues:
            command += ["--queues", self.queues]
        worker_id = self.worker_id(number)
        return WorkerSpec(
            name=worker_id,
            command=command,
            environ={
                **self.environ,
                WORKER_VARIABLE: worker_id,
                FLEET_VARIABLE: self.fleet_id,
            },
            bound={"worker_id": worker_id},
            cold_signal=signal.SIGQUIT,
            concurrency=slots,
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
    number: int = 0
    #: size of its pool, as far as it is known
    slots: int = 0


class Fleet:
    """The worker processes of wanted numbers. All methods belong to one event loop.

    A worker that shall go may finish its tasks for `drain_seconds`.
    """

    def __init__(self, options: WorkerOptions, drain_seconds: float | None = None) -> None:
        self.options = options
        self.wanted: frozenset[int] = frozenset()
        #: size of the pools of what is started from now on
        self.concurrency = options.concurrency
        self._drain_seconds = drain_seconds
        self._members: dict[int, Supervisor] = {}
        #: numbers that are on their way out, and what sees them off
        self._leaving: dict[int, asyncio.Task[None]] = {}
        #: number -> pid of a process, and the size its pool was brought to
        self._resized: dict[int, tuple[int, int]] = {}

    def replace_leftovers(self, grace_seconds: float) -> None:
        """See off what an earlier controller left here; their numbers are started after that."""
        for worker_id, pids in leftovers.find(self.options.fleet_id).items():
            number = worker_id.rpartition("-")[2]
            if number.isdigit():
                log.warning("leftover worker found", worker_id=worker_id, pids=pids)
                self._see_off(int(number), leftovers.see_off(pids, grace_seconds))

    async def set_target(self, numbers: Iterable[int], concurrency: int | None = None) -> None:
        """Have these workers: start what is missing, drain what is too much.

        Returns once the missing ones are created; a drained worker finishes its tasks in the
        background. `concurrency` is the size of pools that are started from now on; that of
        running ones is changed through Celery, see `note_size`.
        """
        self.wanted = frozenset(numbers)
        if concurrency is not None and concurrency != self.concurrency:
            self.concurrency = concurrency
            for number, member in self._members.items():
                member.spec = self.options.spec(number, concurrency)
        for number in sorted(self._members.keys() - self.wanted - self._leaving.keys()):
            log.info("worker draining", worker_id=self.options.worker_id(number))
            self._see_off(number, self._end(number))
        for number in sorted(self.wanted - self._members.keys() - self._leaving.keys()):
            await self._start(number)

    async def restart(self, number: int, grace_seconds: float, reason: str | None = None) -> None:
        """End a worker as gently as the time allows, and start it again.

        Raises WorkerNotFound where no such worker runs here or it is on its way out.
        """
        member = self._members.get(number)
        if member is None or number in self._leaving:
            raise WorkerNotFound(f"{self.options.worker_id(number)} does not run here.")
        await member.restart(grace_seconds, reason)

    async def stop(self, grace_seconds: float) -> None:
        """End all workers: warm at first, by force after `grace_seconds`."""
        self.wanted = frozenset()
        members = list(self._members.values())
        await asyncio.gather(*(member.stop(grace_seconds) for member in members))
        await asyncio.gather(*self._leaving.values())
        self._members.clear()

    def members(self) -> list[MemberState]:
        """Return the state of every worker process, in the order of their numbers."""
        return [
            MemberState(
                number=number,
                hostname=self.options.hostname(number),
                state=member.state,
                pid=member.pid,
                restarts=member.restarts,
                last_error=member.last_error,
                started_epoch=member.started_epoch,
                slots=self._slots(number, member),
            )
            for number, member in sorted(self._members.items())
        ]

    def note_size(self, number: int, pid: int, slots: int) -> None:
        """Tell that the pool of this process was brought to `slots`."""
        self._resized[number] = (pid, slots)

    def _slots(self, number: int, member: Supervisor) -> int:
        pid, slots = self._resized.get(number, (None, 0))
        if pid is not None and pid == member.pid:
            return slots
        spec = member.running_spec
        return spec.concurrency if isinstance(spec, WorkerSpec) else self.concurrency

    async def _start(self, number: int) -> None:
        member = Supervisor(self.options.spec(number, self.concurrency))
        self._members[number] = member
        await member.start()

    def _see_off(self, number: int, ending: Coroutine[None, None, None]) -> None:
        self._leaving[number] = asyncio.create_task(self._after(number, ending))

    async def _after(self, number: int, ending: Coroutine[None, None, None]) -> None:
        await ending
        del self._leaving[number]
        if number in self.wanted:
            # It was wanted again while the old one was finishing its tasks.
            await self._start(number)

    async def _end(self, number: int) -> None:
        await self._members[number].stop(self._drain_seconds)
        del self._members[number]
