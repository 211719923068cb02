"""Brings the pools of running workers to their size, through Celery's control API."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from bridge.control import Control
from bridge.errors import NatsConnectionError, ScalingError, WorkerSilent
from bridge.fleet import MemberState, ProcessState
from bridge.logs import get_logger

#: Pools whose size is fixed when they are started.
FIXED_POOLS = frozenset({"threads", "solo"})

log = get_logger("bridge.controller")


class Sizes:
    """Resizes many workers side by side, one command to each at a time.

    `pool` is the type of their pools. `note` is told the process and the size that its pool was
    brought to.
    """

    def __init__(
        self, control: Control, pool: str, note: Callable[[MemberState, int], None]
    ) -> None:
        self._control = control
        self._fixed = pool in FIXED_POOLS
        self._note = note
        self._running: dict[str, asyncio.Task[None]] = {}
        #: hostname and pid -> size that the worker has refused
        self._refused: dict[tuple[str, int | None], int] = {}

    def align(self, ready: Iterable[MemberState], concurrency: int) -> None:
        """Begin to resize what has another size.

        What fails is tried again by the next call; what a worker refuses is not.
        """
        if self._fixed:
            return
        for member in ready:
            refused = self._refused.get((member.hostname, member.pid))
            if member.state is not ProcessState.RUNNING or concurrency in {member.slots, refused}:
                continue
            if member.hostname not in self._running:
                resizing = asyncio.create_task(self._resize(member, concurrency))
                self._running[member.hostname] = resizing

    async def finish(self) -> None:
        """Wait for what is under way."""
        await asyncio.gather(*self._running.values())

    async def _resize(self, member: MemberState, concurrency: int) -> None:
        try:
            await asyncio.to_thread(self._control.resize, member.hostname, concurrency)
        except (WorkerSilent, NatsConnectionError) as error:
            log.info("pool not resized, next try soon", worker=member.hostname, reason=str(error))
        except ScalingError as error:
            self._refused[member.hostname, member.pid] = concurrency
            log.warning("pool not resized", worker=member.hostname, reason=str(error))
        else:
            self._note(member, concurrency)
        finally:
            del self._running[member.hostname]
