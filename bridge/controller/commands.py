"""Commands to the fleet over core NATS: answered at once, and again when they are done.

The leader answers `scale` and `remove`, the controller that keeps the worker answers `restart`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from bridge.controller.driver import Driver
from bridge.controller.host import HostKeeper
from bridge.controller.progress import changes, own_workers, progress, size_of
from bridge.envelope import from_epoch
from bridge.errors import (
    BridgeError,
    InvalidWorkerConfig,
    NatsConnectionError,
    ScalingError,
    WorkerNotFound,
    WorkerStartError,
    WorkerStopError,
)
from bridge.fleet import Fleet
from bridge.logs import get_logger
from bridge.names import Names
from bridge.records import (
    CommandReply,
    ScaleCommand,
    ScalingResult,
    Snapshot,
    WorkerChange,
    WorkerCommand,
)
from bridge.scaling import Autoscaler, Leader, NotLeading
from bridge.stats import Collector
from config.settings import Scaling

#: One more snapshot is waited for so long, whatever the deadline.
_LOOK_SECONDS: Final = 2.0

log = get_logger("bridge.controller")
_SUPERSEDED: Final = (
    "A later command to the fleet came before this one was done; the later one counts."
)


class Commands:
    """Carries out what the API asks for."""

    def __init__(
        self,
        names: Names,
        *,
        leader: Leader,
        scaler: Autoscaler,
        placement: Driver,
        collector: Collector,
        fleet: Fleet,
        keeper: HostKeeper,
        scaling: Scaling,
    ) -> None:
        self._names = names
        self._leader = leader
        self._scaler = scaler
        self._placement = placement
        self._collector = collector
        self._fleet = fleet
        self._keeper = keeper
        self._automatic = scaling.automatic
        self._answer_seconds = scaling.answer_seconds
        self._hold_seconds = scaling.manual_hold_seconds
        self._drain_seconds = scaling.drain_seconds
        #: counts commands that change the target: who waits for an earlier one gives up
        self._latest = 0
        #: one at a time changes the target
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._restarts: set[asyncio.Task[None]] = set()

    async def serve(self, client: Client) -> None:
        """Subscribe on a new connection. Raises NatsConnectionError."""
        for verb, handle in (
            ("scale", self._on_scale),
            ("remove", self._on_remove),
            ("restart", self._on_restart),
        ):
            try:
                await client.subscribe(
                    self._names.service_subject(verb), cb=self._receiver(client, handle)
                )
            except NatsError as error:
                raise NatsConnectionError(f"cannot subscribe to {verb}: {error}") from error

    async def finish(self) -> None:
        """Give up what is still waited for."""
        for task in (*self._tasks, *self._restarts):
            task.cancel()
        await asyncio.gather(*self._tasks, *self._restarts, return_exceptions=True)

    def _receiver(self, client: Client, handle: Callable[[bytes], Any]) -> Any:
        async def receive(message: Msg) -> None:
            # Not here: a callback that waits would hold up the next command.
            task = asyncio.create_task(self._answer(client, message, handle))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        return receive

    async def _answer(self, client: Client, message: Msg, handle: Callable[[bytes], Any]) -> None:
        async def reply(reply: CommandReply) -> None:
            with contextlib.suppress(NatsError):  # whoever asked will know that nothing came
                await client.publish(message.reply, msgspec.json.encode(reply))

        try:
            work: Coroutine[Any, Any, CommandReply] | None = handle(message.data)
            if work is None:
                return  # for another controller
            await reply(CommandReply(accepted=True))
            await reply(await work)
        except BridgeError as error:
            log.warning("command not done", subject=message.subject, reason=str(error))
            await reply(
                CommandReply(error_code=error.code, message=str(error), status=error.status)
            )
        except msgspec.MsgspecError as error:
            log.warning("command not readable", subject=message.subject, reason=str(error))

    # -- scale ---------------------------------------------------------------------------

    def _on_scale(self, data: bytes) -> Coroutine[Any, Any, CommandReply] | None:
        if not self._leader.leads:
            return None
        return self._scale(msgspec.json.decode(data, type=ScaleCommand))

    async def _scale(self, command: ScaleCommand) -> CommandReply:
        deadline = time.monotonic() + self._answer_seconds
        mine = self._begin()
        async with self._turn:
            self._check_latest(mine)
            before = await self._snapshot(deadline)
            await self._want(command)
        if command.automatic:
            return self._done(before, before)
        after = await self._settled(mine, deadline, command.concurrency)
        return self._done(before, after)

    async def _want(self, command: ScaleCommand) -> None:
        try:
            if command.automatic:
                await self._scaler.automatic()
                return
            workers, concurrency, hold = command.workers, command.concurrency, self._hold_seconds
            if not self._automatic:
                # There is no policy to leave the other gear to, nor to come back to.
                workers = workers or self._scaler.size.workers
                concurrency = concurrency or self._scaler.size.concurrency
            await self._scaler.scale(
                workers=workers,
                concurrency=concurrency,
                hold_seconds=command.hold_seconds or (hold if self._automatic else None),
            )
        except ValueError as error:
            raise InvalidWorkerConfig(str(error)) from error
        except NotLeading as error:
            raise ScalingError(f"{error}.", status=503) from error

    # -- one worker ----------------------------------------------------------------------

    def _on_remove(self, data: bytes) -> Coroutine[Any, Any, CommandReply] | None:
        if not self._leader.leads:
            return None
        return self._remove(msgspec.json.decode(data, type=WorkerCommand).worker_id)

    async def _remove(self, worker_id: str) -> CommandReply:
        deadline = time.monotonic() + self._answer_seconds
        mine = self._begin()
        async with self._turn:
            self._check_latest(mine)
            before = await self._snapshot(deadline)
            if worker_id not in self._placement.wanted_ids:
                raise _not_kept(worker_id, before)
            with self._placement.rid_of(worker_id):
                await self._want(ScaleCommand(workers=self._scaler.size.workers - 1))
        after = await self._settled(mine, deadline, None)
        return self._done(before, after)

    def _on_restart(self, data: bytes) -> Coroutine[Any, Any, CommandReply] | None:
        worker_id = msgspec.json.decode(data, type=WorkerCommand).worker_id
        own = {self._fleet.options.worker_id(n): n for n in self._fleet.wanted}
        if worker_id in own:
            return self._restart(worker_id, own[worker_id])
        if self._leader.leads and not self._placement.keeps_elsewhere(worker_id):
            return self._refuse(worker_id)
        return None

    async def _refuse(self, worker_id: str) -> CommandReply:
        raise _not_kept(worker_id, await self._snapshot(time.monotonic() + self._answer_seconds))

    async def _restart(self, worker_id: str, number: int) -> CommandReply:
        pid = self._keeper.pid_of(number)
        # It goes on after the answer: a task may take longer than whoever asked waits.
        restarting = asyncio.create_task(self._fleet.restart(number, self._drain_seconds))
        self._restarts.add(restarting)
        restarting.add_done_callback(self._restarts.discard)
        try:
            async with asyncio.timeout(self._answer_seconds):
                await restarting
                await self._keeper.until_ready(number, other_than=pid)
        except TimeoutError as error:
            raise self._not_restarted(worker_id, number, restarting.done()) from error
        change = WorkerChange(worker_id=worker_id, state="running", change="restarted")
        return CommandReply(worker=change, snapshot_epoch=time.time())

    def _not_restarted(self, worker_id: str, number: int, ended: bool) -> BridgeError:
        seconds = f"{self._answer_seconds:.0f} s"
        if not ended:
            return WorkerStopError(
                f"{worker_id} still finishes its tasks after {seconds}. It takes no new ones and "
                "is started again as soon as they have ended, at the latest after DRAIN_SECONDS."
            )
        error = next((m.last_error for m in self._fleet.members() if m.number == number), None)
        reason = "; ".join((error or "it has not reported yet").splitlines())
        return WorkerStartError(f"{worker_id} is not up {seconds} later: {reason}. See its log.")

    # -- waiting -------------------------------------------------------------------------

    def _begin(self) -> int:
        self._latest += 1
        return self._latest

    def _check_latest(self, mine: int) -> None:
        if mine != self._latest:
            raise ScalingError(_SUPERSEDED, status=409)

    async def _settled(self, mine: int, deadline: float, concurrency: int | None) -> Snapshot:
        """Wait until the fleet is as wanted; return the snapshot that shows it."""
        while True:
            snapshot = await self._snapshot(deadline)
            self._check_latest(mine)
            left = progress(snapshot, self._placement.wanted_ids, concurrency)
            if left.done:
                return snapshot
            if left.hopeless or time.monotonic() >= deadline:
                raise left.failure(self._answer_seconds)

    async def _snapshot(self, deadline: float) -> Snapshot:
        seconds = max(_LOOK_SECONDS, deadline - time.monotonic())
        try:
            return await asyncio.wait_for(self._collector.next(), seconds)
        except TimeoutError as error:
            raise NatsConnectionError(
                "The controller gets no figures from NATS; whether the command was done is "
                "unknown. GET /api/v1/workers/scaling tells once NATS answers."
            ) from error

    def _done(self, before: Snapshot, after: Snapshot) -> CommandReply:
        state = self._scaler.state
        until = state.manual_until_epoch
        result = ScalingResult(
            mode=state.mode,
            before=size_of(before),
            after=size_of(after),
            workers=changes(before, after),
            manual_until_at=None if until is None else from_epoch(until),
        )
        return CommandReply(result=result, snapshot_epoch=after.taken_epoch)


def _not_kept(worker_id: str, snapshot: Snapshot) -> BridgeError:
    if any(each.worker_id == worker_id for each in snapshot.workers):
        if worker_id in own_workers(snapshot):
            return ScalingError(f"{worker_id} is on its way out already.", status=409)
        return ScalingError(
            f"{worker_id} was not started by a controller: end or restart it where it was started.",
            status=409,
        )
    return WorkerNotFound(f"No worker is called {worker_id!r}. GET /api/v1/workers lists them.")
