"""Once a second: read NATS, fold, store the figures and the snapshot that the API serves.

While NATS cannot be reached nothing is written, and after it the silence of workers counts
only from then on: what was not seen is not taken for idle.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
from nats.aio.client import Client

from bridge.errors import NatsConnectionError
from bridge.logs import get_logger
from bridge.names import Names, bucket_stream, bucket_subject
from bridge.records import SNAPSHOT_KEY, Snapshot
from bridge.stats.client import direct_get, request, session
from bridge.stats.figures import Figures
from bridge.stats.reading import read_events, read_queues, read_workers
from bridge.stats.snapshot import FleetView, active_tasks, worker_states
from bridge.wire import ConnectOptions, JetStreamError

#: Key of the figures in the bucket `status`.
FIGURES_KEY: Final = "figures"
PERIOD_SECONDS: Final = 1.0
_RECONNECT_SECONDS: Final = 0.5

log = get_logger("bridge.stats")
_decode_figures = msgspec.json.Decoder(Figures).decode


class Collector:
    """Keeps the snapshot current until told to stop.

    `prepare` is awaited before each connection: it makes sure that the streams exist, also
    when the server came back with an empty store. `fleet` tells the controller's own workers.
    """

    def __init__(
        self,
        options: ConnectOptions,
        names: Names,
        *,
        prepare: Callable[[], Awaitable[None]],
        fleet: Callable[[], FleetView],
    ) -> None:
        self._options = options
        self._names = names
        self._prepare = prepare
        self._fleet = fleet
        self._bucket = names.bucket("status")
        self._started_epoch = time.time()
        #: None until the stored ones were read: counting from zero would overwrite them
        self._figures: Figures | None = None
        self._stored_seq = -1

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set, over any number of lost connections; then once more."""
        interrupted = False
        while not stop.is_set():
            try:
                await self._prepare()
                async with session(self._options) as client:
                    if interrupted:
                        log.info("statistics resumed")
                    interrupted = False
                    await self._observe(client, stop)
            except (NatsConnectionError, JetStreamError, LookupError) as error:
                if not interrupted:
                    log.warning("statistics interrupted", reason=str(error))
                interrupted = True
                await _pause(stop, _RECONNECT_SECONDS)

    async def _observe(self, client: Client, stop: asyncio.Event) -> None:
        if self._figures is None:
            self._figures = await self._load(client)
        since = time.time()
        while not stop.is_set():
            started = time.monotonic()
            await self._refresh(client, self._figures, since)
            await _pause(stop, PERIOD_SECONDS - (time.monotonic() - started))
        await self._refresh(client, self._figures, since)

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
        if complete:
            # With events still unread a worker only looks silent.
            figures.expire(now, since_epoch)
        if figures.last_seq != self._stored_seq:
            await self._put(client, FIGURES_KEY, msgspec.json.encode(figures))
            self._stored_seq = figures.last_seq
        records = await read_workers(client, self._names)
        queues = await read_queues(client, self._names)
        fleet = self._fleet()
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

    async def _put(self, client: Client, key: str, value: bytes) -> None:
        await request(client, bucket_subject(self._bucket, key), msgspec.Raw(value))


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    """Wait, but not longer than until `stop`."""
    with contextlib.suppress(TimeoutError):  # the usual end of a pause
        await asyncio.wait_for(stop.wait(), max(0.0, seconds))
