"""Wires fleet, figures, scaling and commands together.

It lives through any outage of NATS, and its own end ends its workers.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import socket
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from nats.aio.client import Client

from bridge import logs
from bridge.control import Control
from bridge.controller.commands import Commands
from bridge.controller.driver import Driver
from bridge.controller.host import HostKeeper
from bridge.controller.lead import Placement
from bridge.controller.sizes import FIXED_POOLS
from bridge.errors import BridgeError, NatsConnectionError
from bridge.fleet import Fleet, WorkerOptions
from bridge.masking import mask_text
from bridge.names import Names
from bridge.records import WorkerRecord
from bridge.scaling import (
    Autoscaler,
    Leader,
    Limits,
    NotLeading,
    Reading,
    Size,
    StoredHistory,
    from_snapshot,
)
from bridge.stats import Collector, FleetView
from bridge.stats.pause import pause
from bridge.stats.reading import read_workers
from bridge.wire import Connection, ConnectOptions, JetStream, JetStreamError
from bridge.wire.options import broker_url, vhost_of
from config.settings import Settings

_RETRY_SECONDS: Final = 1.0
_FAULT_SECONDS: Final = 10.0

log = logs.get_logger("bridge.controller")


class Controller:
    """`run` returns after a clean stop.

    `environ` is the environment that worker processes get. `settings` must name a NATS server.
    """

    def __init__(self, settings: Settings, environ: Mapping[str, str]) -> None:
        self._settings = settings
        self._names = Names(vhost_of(settings.server_url))
        self._options = ConnectOptions.from_url(settings.nats_url, name="controller")
        options = worker_options(settings, environ)
        self._fleet = fleet = Fleet(options, settings.scaling.drain_seconds)
        instance = f"{options.host}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        control = Control(broker_url(settings.nats_url))
        self._keeper = HostKeeper(
            self._options,
            self._names,
            fleet,
            control,
            instance=instance,
            serve=self._serve,
            leftover_seconds=settings.shutdown_seconds,
        )
        self._leader = Leader(self._options, self._names, name=instance)
        self._placement: Driver = Placement(self._leader, self._keeper, options)
        if settings.fleet_driver == "kubernetes":
            self._placement = self._replicas(options, control)
        self._collector = Collector(
            self._options,
            self._names,
            prepare=self._ensure_topology,
            fleet=self._view,
            leads=lambda: self._leader.leads,
        )
        self._scaler = self._autoscaler()
        self._commands = Commands(
            self._names,
            leader=self._leader,
            scaler=self._scaler,
            placement=self._placement,
            collector=self._collector,
            fleet=fleet,
            keeper=self._keeper,
            scaling=settings.scaling,
        )

    def _replicas(self, options: WorkerOptions, control: Control) -> Driver:
        # Its client is an optional dependency, and slow to import.
        from bridge.controller.kubernetes import Replicas, deployment  # noqa: PLC0415

        place = self._settings.kubernetes
        return Replicas(
            self._leader,
            self._keeper,
            options,
            control,
            deployment(place.namespace, place.deployment),
            workers=self._read_workers,
        )

    async def _read_workers(self) -> dict[str, WorkerRecord]:
        return await read_workers(self._keeper.client, self._names)

    def _autoscaler(self) -> Autoscaler:
        settings, scaling = self._settings, self._settings.scaling
        most = settings.max_concurrent_tasks
        fixed = settings.worker_pool in FIXED_POOLS
        least = most if fixed else 1
        return Autoscaler(
            self._observe,
            self._placement.apply,
            Limits(
                min_workers=scaling.min_workers,
                max_workers=scaling.max_workers,
                min_concurrent=least,
                max_concurrent=most,
                scale_threshold=scaling.scale_threshold,
                target_wait_seconds=scaling.target_wait_seconds,
                cooldown_seconds=scaling.cooldown_seconds,
            ),
            StoredHistory(self._leader, self._names),
            initial=Size(settings.worker_count, least if scaling.automatic else most),
            automatic=scaling.automatic,
            start_hold_seconds=scaling.manual_hold_seconds,
            leads=lambda: self._leader.leads,
        )

    async def run(self, stop: asyncio.Event, hurry: asyncio.Event) -> None:
        """Keep this host's workers until `stop` is set, then end them all.

        They may finish their tasks for as long as the settings say, or until `hurry` is set.
        """
        if not await self._nats_is_ready(stop):
            return
        deciding, observed = asyncio.Event(), asyncio.Event()
        keeping = self._start("host", self._keeper.run, observed)
        decisions: list[asyncio.Task[None]] = []
        try:
            await pause(None, stop, self._keeper.claimed)
            if not stop.is_set():
                decisions = self._start_deciding(deciding, observed)
            await stop.wait()
        finally:
            await self._leave(deciding, hurry)
            observed.set()
            await asyncio.gather(keeping, *decisions)
        log.info("controller stopped")

    def _start_deciding(
        self, deciding: asyncio.Event, observed: asyncio.Event
    ) -> list[asyncio.Task[None]]:
        """Start what only counts while this one leads; the figures go on to the end."""
        figures_stored = asyncio.Event()
        collecting = self._start("figures", self._collector.run, observed)
        collecting.add_done_callback(lambda _: figures_stored.set())
        return [
            collecting,
            self._start("leader", self._leader.run, figures_stored),
            self._start("scaling", self._scale, deciding),
            self._start("placement", self._placement.run, deciding),
        ]

    async def _scale(self, stop: asyncio.Event) -> None:
        # So that the first look of the only controller does not find it not yet elected.
        await pause(_RETRY_SECONDS, stop, self._leader.elected)
        await self._scaler.run(stop)

    def _start(
        self, name: str, work: Callable[[asyncio.Event], Awaitable[None]], stop: asyncio.Event
    ) -> asyncio.Task[None]:
        return asyncio.create_task(_lasting(name, work, stop), name=name)

    async def _leave(self, deciding: asyncio.Event, hurry: asyncio.Event) -> None:
        deciding.set()
        # Who is in a hurry may have ended NATS already: the workers must not wait for it then.
        good_bye = asyncio.create_task(self._say_good_bye())
        hurrying = asyncio.create_task(hurry.wait())
        await asyncio.wait({good_bye, hurrying}, return_when=asyncio.FIRST_COMPLETED)
        await self._stop_fleet(hurry)
        hurrying.cancel()
        await good_bye
        try:
            await self._placement.forget()
        except (NatsConnectionError, NotLeading) as error:
            log.warning("target not taken back", reason=str(error))
        await self._keeper.finish()

    async def _say_good_bye(self) -> None:
        """Finish what was asked of this host, and tell the others that it leaves."""
        await self._commands.finish()
        await self._keeper.leave()

    async def _stop_fleet(self, hurry: asyncio.Event) -> None:
        hurrying = asyncio.create_task(hurry.wait())
        warm = asyncio.create_task(self._fleet.stop(self._settings.shutdown_seconds))
        await asyncio.wait({warm, hurrying}, return_when=asyncio.FIRST_COMPLETED)
        if not warm.done():
            await self._fleet.stop(0)
        await warm
        hurrying.cancel()

    async def _serve(self, client: Client) -> None:
        await self._commands.serve(client)

    async def _observe(self) -> Reading | None:
        snapshot = self._collector.latest
        if snapshot is None:
            return None
        self._placement.note(snapshot)
        return from_snapshot(snapshot)

    async def _view(self) -> FleetView:
        return self._placement.view(self._settings.max_concurrent_tasks)

    # -- NATS ----------------------------------------------------------------------------

    async def _nats_is_ready(self, stop: asyncio.Event) -> bool:
        """Wait for NATS for as long as it takes; False when stopped before."""
        told = False
        while not stop.is_set():
            try:
                await self._ensure_topology()
            except (NatsConnectionError, JetStreamError) as error:
                if not told:
                    log.warning("waiting for NATS", reason=str(error))
                told = True
                await pause(_RETRY_SECONDS, stop)
            else:
                return True
        return False

    async def _ensure_topology(self) -> None:
        await asyncio.to_thread(self._create_streams)

    def _create_streams(self) -> None:
        connection = Connection(self._options)
        connection.connect()
        try:
            JetStream(connection).ensure_topology(self._names, self._settings.nats.replicas)
        finally:
            connection.close()


async def _lasting(
    name: str, work: Callable[[asyncio.Event], Awaitable[None]], stop: asyncio.Event
) -> None:
    """Keep a part going: a fault in one must not cost a single worker."""
    while not stop.is_set():
        try:
            await work(stop)
        except BridgeError as error:
            log.error("part failed", part=name, reason=str(error))
            await pause(_RETRY_SECONDS, stop)
        except Exception:
            log.exception("part failed", part=name)
            await pause(_FAULT_SECONDS, stop)


def worker_options(settings: Settings, environ: Mapping[str, str]) -> WorkerOptions:
    """Return how the settings want each worker to be started."""
    host = settings.worker_host or socket.gethostname()
    place = f"{mask_text(settings.nats_url)} {host} {settings.worker_type}"
    return WorkerOptions(
        app=settings.celery_app,
        worker_type=settings.worker_type,
        pool=settings.worker_pool,
        concurrency=settings.max_concurrent_tasks,
        queues=",".join(settings.queues),
        log_level=settings.log_level,
        host=host,
        fleet_id=hashlib.sha256(place.encode()).hexdigest()[:16],
        environ={
            **environ,
            "CELERY_BROKER_URL": broker_url(settings.nats_url),
            "CELERY_RESULT_BACKEND": settings.nats_url,
            # Relayed line by line: whether ours goes to a terminal is for us to know.
            logs.FORMAT_VARIABLE: "json",
            "BRIDGE_WORKER_TYPE": settings.worker_type,
        },
    )


def run(settings: Settings, environ: Mapping[str, str]) -> None:
    """Run the controller until SIGTERM or SIGINT; SIGQUIT or a second one ends it at once."""
    asyncio.run(_until_signal(Controller(settings, environ)))


async def _until_signal(controller: Controller) -> None:
    stop, hurry = asyncio.Event(), asyncio.Event()

    def end(number: signal.Signals) -> None:
        if stop.is_set() or number == signal.SIGQUIT:
            hurry.set()
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        loop.add_signal_handler(number, end, number)
    await controller.run(stop, hurry)
