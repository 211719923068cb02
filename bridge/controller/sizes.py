"""Brings the pools of running workers to their size, through Celery's control API."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from bridge.control import Control
from bridge.errors import NatsConnectionError, ScalingError, WorkerSilent
from bridge.fleet import Fleet, MemberState, ProcessState
from bridge.logs import get_logger

#: Pools whose size is fixed when they are started.
FIXED_POOLS = frozenset({"threads", "solo"})

log = get_logger("bridge.controller")


class Sizes:
    """Resizes one worker at a time each, all of them side by side.

    `leftover_seconds` is what leftovers of an earlier controller get to end by themselves.
    """

    def __init__(self, control: Control, fleet: Fleet, leftover_seconds: float) -> None:
        self.leftover_seconds = leftover_seconds
        self._control = control
        self._fleet = fleet
        self._running: dict[int, asyncio.Task[None]] = {}
        #: pid -> size that its worker has refused
        self._refused: dict[int, int] = {}

    def align(
        self, ready: Iterable[MemberState], concurrency: int, done: Callable[[], None]
    ) -> None:
        """Begin to resize what has another size; call `done` after each that got there.

        What fails is tried again by the next call; what a worker refuses is not.
        """
        if self._fleet.options.pool in FIXED_POOLS:
            return
        for member in ready:
            if member.state is not ProcessState.RUNNING or member.pid is None:
                continue
            if member.slots == concurrency or self._refused.get(member.pid) == concurrency:
                continue
            if member.number not in self._running:
                resizing = self._resize(member, member.pid, concurrency, done)
                self._running[member.number] = asyncio.create_task(resizing)

    async def finish(self) -> None:
        """Wait for what is under way."""
        await asyncio.gather(*self._running.values())

    async def _resize(
        self, member: MemberState, pid: int, concurrency: int, done: Callable[[], None]
    ) -> None:
        try:
            await asyncio.to_thread(self._control.resize, member.hostname, concurrency)
        except (WorkerSilent, NatsConnectionError) as error:
            log.info("pool not resized, next try soon", worker=member.hostname, reason=str(error))
        except ScalingError as error:
            self._refused[pid] = concurrency
            log.warning("pool not resized", worker=member.hostname, reason=str(error))
        else:
            self._fleet.note_size(member.number, pid, concurrency)
            done()
        finally:
            del self._running[member.number]
