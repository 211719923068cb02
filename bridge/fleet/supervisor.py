"""Keeps one process running: starts it again with back-off when it ends unasked."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from enum import StrEnum

from bridge.fleet.backoff import CRASHES_BEFORE_LOST, crashes_in_a_row, restart_delay_seconds
from bridge.fleet.child import Child, ProcessSpec
from bridge.logs import get_logger

log = get_logger("bridge.fleet")


class ProcessState(StrEnum):
    """What the supervisor knows of its process."""

    RUNNING = "running"
    #: ended unasked; will be started again
    CRASHED = "crashed"
    #: keeps ending unasked; is started again only slowly
    LOST = "lost"
    STOPPING = "stopping"
    STOPPED = "stopped"


class Supervisor:
    """Runs `spec` until `stop`. Attributes may be read at any time."""

    def __init__(self, spec: ProcessSpec) -> None:
        self.spec = spec
        self.state = ProcessState.STOPPED
        self.restarts = 0
        self.last_error: str | None = None
        self.started_epoch: float | None = None
        self._child: Child | None = None
        self._stopping = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child is not None and self._child.running else None

    async def start(self) -> None:
        """Start the process and keep it running from now on.

        A system that refuses the process counts as a crash: it is tried again.
        """
        child = await self._try_start()
        self._keeper = asyncio.create_task(self._keep(child), name=f"keep {self.spec.name}")

    async def stop(self, grace_seconds: float | None) -> None:
        """End the process; see `Child.stop`. Safe to call again, then with less grace."""
        self._stopping.set()
        if self._keeper is None:
            return
        self.state = ProcessState.STOPPING
        if self._child is not None:
            await self._child.stop(grace_seconds)
        await self._keeper
        self.state = ProcessState.STOPPED

    async def _keep(self, child: Child | None) -> None:
        crashes = 0
        while True:
            started = time.monotonic()
            if child is not None:
                status = await child.wait()
                if self._stopping.is_set():
                    log.info("process stopped", process=self.spec.name, exit_status=status)
                    return
                self._note_end(child, status)
            crashes = crashes_in_a_row(crashes, time.monotonic() - started)
            if not await self._pause(crashes):
                return
            self.restarts += 1
            child = await self._try_start()

    async def _try_start(self) -> Child | None:
        try:
            self._child = child = await Child.start(self.spec)
        except OSError as error:
            self.last_error = f"cannot create a process: {error}"
            log.error("process not started", process=self.spec.name, reason=self.last_error)
            return None
        self.state = ProcessState.RUNNING
        self.started_epoch = time.time()
        log.info("process started", process=self.spec.name, pid=child.pid)
        if self._stopping.is_set():
            # `stop` came while the process was being created and could not see it.
            await child.stop(0)
        return child

    def _note_end(self, child: Child, status: int) -> None:
        ending = f"signal {-status}" if status < 0 else f"exit status {status}"
        self.last_error = "\n".join([f"ended with {ending}", *child.tail()[-5:]])
        log.error("process ended unasked", process=self.spec.name, exit_status=status)

    async def _pause(self, crashes: int) -> bool:
        """Wait before the next start; say whether there shall be one."""
        lost = crashes >= CRASHES_BEFORE_LOST
        self.state = ProcessState.LOST if lost else ProcessState.CRASHED
        # Jitter wants no secrecy, only spread.
        delay = restart_delay_seconds(crashes, random.random())  # noqa: S311
        if lost:
            log.error("process keeps ending", process=self.spec.name, retry_in_seconds=delay)
        with contextlib.suppress(TimeoutError):  # the wait is over: start again
            await asyncio.wait_for(self._stopping.wait(), delay)
        return not self._stopping.is_set()
