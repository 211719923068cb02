"""What the leading controller does: places the workers on the live hosts and tells all of them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from typing import Final

import msgspec

from bridge.controller.host import PERIOD_SECONDS, HostKeeper
from bridge.controller.shared import TARGET_KEY, FleetTarget, HostRecord
from bridge.errors import NatsConnectionError
from bridge.fleet import MemberState, WorkerOptions, place
from bridge.logs import get_logger
from bridge.records import Snapshot
from bridge.scaling import Leader, NotLeading, Size
from bridge.stats import FleetView
from bridge.stats.pause import pause

#: A host whose record is gone for so long is not alive.
_MISSING_SECONDS: Final = 3.0
#: After an outage of NATS the others need time to tell of themselves again.
_RETURN_SECONDS: Final = 5.0

log = get_logger("bridge.controller")
_decode_target: Final = msgspec.json.Decoder(FleetTarget).decode


class Placement:
    """Keeps the target that all controllers follow, while this one leads."""

    def __init__(self, leader: Leader, keeper: HostKeeper, options: WorkerOptions) -> None:
        self._leader = leader
        self._keeper = keeper
        self._options = options
        self._lock = asyncio.Lock()
        #: what all follow; None while another controller leads
        self._target: FleetTarget | None = None
        self._workers = 0
        self._hosts: list[HostRecord] = []
        #: host -> when it was seen last, monotonic
        self._seen: dict[str, float] = {}
        self._connected_at = 0.0
        self._loads: dict[int, int] = {}
        self._unwanted: set[int] = set()

    @property
    def target(self) -> FleetTarget:
        """What the fleet shall be."""
        return self._target or FleetTarget(concurrency=self._options.concurrency)

    @property
    def wanted_ids(self) -> set[str]:
        """Ids of the workers that there shall be."""
        return {self._options.worker_id(number) for number in self.target.numbers}

    def keeps_elsewhere(self, worker_id: str) -> bool:
        """Whether the controller of another host has this worker."""
        return worker_id in self.wanted_ids

    async def run(self, stop: asyncio.Event) -> None:
        """Give the share of a host that comes or goes to where it belongs."""
        while not stop.is_set():
            if not self._leader.leads:
                self._target = None
            elif self._target is not None:
                try:
                    async with self._lock:
                        await self._put(self._workers, self._target.concurrency)
                except (NatsConnectionError, NotLeading) as error:
                    log.warning("workers not placed", reason=str(error))
            await pause(PERIOD_SECONDS, stop)

    async def apply(self, size: Size) -> None:
        """Make `size` the target. Raises NotLeading, NatsConnectionError."""
        async with self._lock:
            await self._put(size.workers, size.concurrency, always=True)

    @contextlib.contextmanager
    def rid_of(self, worker_id: str) -> Iterator[None]:
        """Within this block whatever makes the fleet smaller takes this worker first."""
        self._unwanted = {int(worker_id.rpartition("-")[2])}
        try:
            yield
        finally:
            self._unwanted = set()

    async def forget(self) -> None:
        """Leave nothing to follow for whoever comes next, where no other host is alive."""
        async with self._lock:
            if self._target is not None and self._leader.leads and not self._alive():
                await self._leader.put(TARGET_KEY, msgspec.json.encode(FleetTarget(concurrency=1)))

    def note(self, snapshot: Snapshot) -> None:
        """Take from a snapshot how busy each worker is."""
        prefix = f"{self._options.worker_type}-worker-"
        self._loads = {
            int(number): worker.active_tasks
            for worker in snapshot.workers
            if (number := worker.worker_id.removeprefix(prefix)).isdigit()
        }

    def view(self, max_concurrent: int) -> FleetView:
        """Return the workers of all hosts, those of this one as they are now."""
        members: list[MemberState] = []
        for record in [*self._others(), self._keeper.record()]:
            members += record.members
        alive = self._alive()
        return FleetView(
            worker_type=self._options.worker_type,
            concurrency=max_concurrent,
            target=sum(len(own) for host, own in self.target.hosts.items() if host in alive),
            members=members,
        )

    # -- placing -------------------------------------------------------------------------

    async def _put(self, workers: int, concurrency: int, *, always: bool = False) -> None:
        if self._target is None:
            self._target = await self._load()
            self._expect_hosts(self._target)
        await self._look()
        alive = self._alive()
        target = self._target
        if alive:
            hosts = place(
                workers,
                alive,
                target.hosts,
                busy=self._loads,
                taken=self._present() - target.numbers,
                unwanted=self._unwanted,
            )
            target = FleetTarget(concurrency=concurrency, hosts=hosts)
        if target != self._target or always:
            await self._leader.put(TARGET_KEY, msgspec.json.encode(target))
            if target.hosts != self._target.hosts:
                log.info("workers placed", hosts=target.hosts)
            self._keeper.wake()
        self._target, self._workers = target, workers

    async def _load(self) -> FleetTarget:
        stored = await self._leader.get(TARGET_KEY)
        if stored is None:
            return FleetTarget(concurrency=self._options.concurrency)
        try:
            return _decode_target(stored)
        except msgspec.MsgspecError as error:
            log.error("stored target not readable, starting anew", reason=str(error))
            return FleetTarget(concurrency=self._options.concurrency)

    # -- hosts ---------------------------------------------------------------------------

    async def _look(self) -> None:
        self._hosts = await self._keeper.hosts()
        if self._keeper.connected_at != self._connected_at:
            self._connected_at = self._keeper.connected_at
            self._expect_hosts(self._target)
        now = time.monotonic()
        for record in self._hosts:
            self._seen[record.host] = now
            if record.leaving:
                del self._seen[record.host]

    def _expect_hosts(self, target: FleetTarget | None) -> None:
        """Nobody was seen for a while: that alone makes no host dead."""
        for host in target.hosts if target is not None else ():
            self._seen[host] = time.monotonic() + _RETURN_SECONDS

    def _alive(self) -> set[str]:
        """Return the hosts that can have workers."""
        now = time.monotonic()
        alive = {host for host, seen in self._seen.items() if now - seen <= _MISSING_SECONDS}
        if self._keeper.leaving or not self._keeper.claimed.is_set():
            return alive - {self._keeper.host}
        return alive | {self._keeper.host}

    def _others(self) -> list[HostRecord]:
        return [record for record in self._hosts if record.host != self._keeper.host]

    def _present(self) -> set[int]:
        """Return the numbers of all workers there are."""
        records = [*self._others(), self._keeper.record()]
        return {member.number for record in records for member in record.members}
