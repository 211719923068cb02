"""Twice a second: read NATS, fold, store the figures and the snapshot that the API serves.

While NATS cannot be reached nothing is written, and after it the silence of workers counts
only from then on: what was not seen is not taken for idle.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
from nats.aio.client import Client

from bridge.logs import get_logger
from bridge.names import Names, bucket_stream, bucket_subject
from bridge.records import SNAPSHOT_KEY, Snapshot
from bridge.stats.client import direct_get, keep_connected, request
from bridge.stats.figures import Figures
from bridge.stats.pause import pause
from bridge.stats.reading import read_events, read_queues, read_workers
from bridge.stats.snapshot import FleetView, active_tasks, worker_states
from bridge.wire import ConnectOptions

#: Key of the figures in the bucket `status`.
FIGURES_KEY: Final = "figures"
PERIOD_SECONDS: Final = 0.5
#: Period while somebody waits for the next snapshot.
HURRIED_SECONDS: Final = 0.1

log = get_logger("bridge.stats")
_decode_figures = msgspec.json.Decoder(Figures).decode


class Collector:
    """Keeps the snapshot current until told to stop.

    `prepare` is awaited before each connection: it makes sure that the streams exist, also
    when the server came back with an empty store. `fleet` tells the controllers' own workers;
    it may raise what lost connections raise. Only the one that `leads` writes.
    """

    def __init__(
        self,
        options: ConnectOptions,
        names: Names,
        *,
        prepare: Callable[[], Awaitable[None]],
        fleet: Callable[[], Awaitable[FleetView]],
        leads: Callable[[], bool] = lambda: True,
    ) -> None:
        self._options = options
        self._names = names
        self._prepare = prepare
        self._fleet = fleet
        self._leads = leads
        #: what was stored last, None while another one writes
        self.latest: Snapshot | None = None
        self._stored = asyncio.Condition()
        self._hurry = asyncio.Event()
        self._bucket = names.bucket("status")
        self._started_epoch = time.time()
        #: None until the stored ones were read: counting from zero would overwrite them
        self._figures: Figures | None = None
        self._stored_seq = -1

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set, over any number of lost connections; then once more."""
        await keep_connected(
            self._options,
            lambda client: self._observe(client, stop),
            stop,
            part="figures",
            prepare=self._prepare,
        )

    async def next(self) -> Snapshot:
        """Return the next snapshot, taken and stored sooner than it would be otherwise."""
        before = self.latest
        self._hurry.set()
        async with self._stored:
            await self._stored.wait_for(
                lambda: self.latest is not None and self.latest is not before
            )
        assert self.latest is not None
        return self.latest

    async def _observe(self, client: Client, stop: asyncio.Event) -> None:
        since = time.time()
        while not stop.is_set():
            started = time.monotonic()
            await self._look(client, since)
            spent = time.monotonic() - started
            await pause(HURRIED_SECONDS - spent, stop)
            await pause(PERIOD_SECONDS - max(HURRIED_SECONDS, spent), stop, self._hurry)
            self._hurry.clear()
        await self._look(client, since)

    async def _look(self, client: Client, since_epoch: float) -> None:
        if not self._leads():
            # Whoever writes meanwhile counts on from what is stored, and so will this one.
            self._figures = self.latest = None
            return
        if self._figures is None:
            self._figures = await self._load(client)
        await self._refresh(client, self._figures, since_epoch)

    async def _load(self, client: Client) -> Figures:
        subject = bucket_subject(self._bucket, FIGURES_KEY)
        stored = await direct_get(client, bucket_stream(self._bucket), {"multi_last": [subject]})
        if not stored:
            return Figures()
        try:
            return _decode_figures(stored[0].data)
        except msgspec.MsgspecError as error:
            log.error("stored figures not readable, counting from zero", reason=str(error))
            return Figures()

    async def _refresh(self, client: Client, figures: Figures, since_epoch: float) -> None:
        complete = await read_events(client, self._names, figures)
        now = time.time()
        fleet = await self._fleet()
        if complete:
            # With events still unread a worker only looks silent.
            alive = {member.hostname for member in fleet.members if member.pid is not None}
            figures.expire(now, since_epoch, alive)
        if figures.last_seq != self._stored_seq:
            await self._put(client, FIGURES_KEY, msgspec.json.encode(figures))
            self._stored_seq = figures.last_seq
        records = await read_workers(client, self._names)
        queues = await read_queues(client, self._names)
        snapshot = Snapshot(
            taken_epoch=now,
            controller_started_epoch=self._started_epoch,
            worker_type=fleet.worker_type,
            max_concurrent_per_worker=fleet.concurrency,
            target_workers=fleet.target,
            workers=worker_states(fleet, records, figures, now),
            queues=queues,
            active=active_tasks(figures, fleet),
            figures=figures.task_figures(now),
        )
        await self._put(client, SNAPSHOT_KEY, msgspec.json.encode(snapshot))
        async with self._stored:
            self.latest = snapshot
            self._stored.notify_all()

    async def _put(self, client: Client, key: str, value: bytes) -> None:
        await request(client, bucket_subject(self._bucket, key), msgspec.Raw(value))
