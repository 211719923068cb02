"""Keeps one process running: starts it again with back-off when it ends unasked."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import time
from enum import StrEnum
from typing import Final

from bridge.fleet.backoff import CRASHES_BEFORE_LOST, crashes_in_a_row, restart_delay_seconds
from bridge.fleet.child import Child, ProcessSpec
from bridge.logs import get_logger

#: A process that was stopped (SIGSTOP) for so long will not go on by itself.
STOPPED_SECONDS: Final = 3.0
#: The kernel tells of a stop only to those who look.
_LOOK_SECONDS: Final = 1.0

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
    """Runs `spec` until `stop`. Attributes may be read at any time.

    `spec` may be replaced: the next start is of the new one.
    """

    def __init__(self, spec: ProcessSpec) -> None:
        self.spec = spec
        self.state = ProcessState.STOPPED
        self.restarts = 0
        self.last_error: str | None = None
        self.started_epoch: float | None = None
        self._child: Child | None = None
        self._stopping = asyncio.Event()
        #: ends the pause after a crash
        self._wake = asyncio.Event()
        self._restarting = False
        self._keeper: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child is not None and self._child.running else None

    @property
    def running_spec(self) -> ProcessSpec | None:
        """What the process of now, or the last one, was started as."""
        return None if self._child is None else self._child.spec

    async def start(self) -> None:
        """Start the process and keep it running from now on.

        A system that refuses the process counts as a crash: it is tried again.
        """
        child = await self._try_start()
        self._keeper = asyncio.create_task(self._keep(child), name=f"keep {self.spec.name}")

    async def stop(self, grace_seconds: float | None) -> None:
        """End the process; see `Child.stop`. Safe to call again, then with less grace."""
        self._stopping.set()
        self._wake.set()
        if self._keeper is None:
            return
        self.state = ProcessState.STOPPING
        if self._child is not None:
            await self._child.stop(grace_seconds)
        await self._keeper
        self.state = ProcessState.STOPPED

    async def restart(self, grace_seconds: float, reason: str | None = None) -> None:
        """End the process, see `Child.stop`, and have it started again at once.

        `reason` is kept as the last error where there was one.
        """
        if reason is not None:
            self.last_error = reason
        self._restarting = True
        self._wake.set()
        if self._child is not None and self._child.running:
            self.state = ProcessState.STOPPING
            await self._child.stop(grace_seconds)

    async def _keep(self, child: Child | None) -> None:
        crashes = 0
        while True:
            started, status = time.monotonic(), 0
            if child is not None:
                status = await self._end_of(child)
                if self._stopping.is_set():
                    log.info("process stopped", process=self.spec.name, exit_status=status)
                    return
                if not self._restarting:
                    self._note_end(child, status)
            if not self._restarting:
                lived, killed = time.monotonic() - started, status == -signal.SIGKILL
                crashes = crashes_in_a_row(crashes, lived, killed=killed)
                await self._pause(crashes)
            if self._stopping.is_set():
                return
            if self._restarting:
                self._restarting, crashes = False, 0
            self.restarts += 1
            child = await self._try_start()

    async def _end_of(self, child: Child) -> int:
        """Wait for the end of a process, and bring it about when it is stopped for too long."""
        stopped_seconds = 0.0
        while True:
            with contextlib.suppress(TimeoutError):  # time for another look
                return await asyncio.wait_for(child.wait(), _LOOK_SECONDS)
            stopped_seconds = stopped_seconds + _LOOK_SECONDS if child.stopped else 0.0
            if stopped_seconds >= STOPPED_SECONDS:
                log.error("process hangs", process=self.spec.name, pid=child.pid)
                return await child.kill()

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

    async def _pause(self, crashes: int) -> None:
        """Wait before the next start, or until somebody wants it now or never."""
        lost = crashes >= CRASHES_BEFORE_LOST
        self.state = ProcessState.LOST if lost else ProcessState.CRASHED
        # Jitter wants no secrecy, only spread.
        delay = restart_delay_seconds(crashes, random.random())  # noqa: S311
        if lost:
            log.error("process keeps ending", process=self.spec.name, retry_in_seconds=delay)
        self._wake.clear()
        if self._stopping.is_set() or self._restarting:
            return
        with contextlib.suppress(TimeoutError):  # the wait is over: start again
            await asyncio.wait_for(self._wake.wait(), delay)
