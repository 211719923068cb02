"""The daemon beside the web front: worker processes and figures.

It lives through any outage of NATS, and its own end ends its workers.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Mapping

from bridge.errors import NatsConnectionError
from bridge.fleet import Fleet, WorkerOptions
from bridge.logs import get_logger
from bridge.names import Names
from bridge.stats import Collector, FleetView
from bridge.wire import Connection, ConnectOptions, JetStream, JetStreamError
from config.settings import Settings

_RETRY_SECONDS = 1.0
_FAULT_SECONDS = 10.0

log = get_logger("bridge.controller")


class Controller:
    """Wires fleet and figures together; `run` returns after a clean stop.

    `environ` is the environment that worker processes get. `settings` must name a NATS server.
    """

    def __init__(self, settings: Settings, environ: Mapping[str, str]) -> None:
        self._settings = settings
        self._names = Names()
        self._options = ConnectOptions.from_url(settings.nats_url, name="controller")
        self._fleet = Fleet(worker_options(settings, environ))
        self._collector = Collector(
            self._options, self._names, prepare=self._ensure_topology, fleet=self._view
        )

    async def run(self, stop: asyncio.Event, hurry: asyncio.Event) -> None:
        """Hold the wanted number of workers until `stop` is set, then end them all.

        They may finish their tasks for as long as the settings say, or until `hurry` is set.
        """
        if not await self._nats_is_ready(stop):
            return
        observed = asyncio.Event()
        collecting = asyncio.create_task(self._collect(observed))
        try:
            await self._fleet.set_target(self._settings.worker_count)
            await stop.wait()
        finally:
            await self._stop_fleet(hurry)
            observed.set()
            await collecting
        log.info("controller stopped")

    async def _collect(self, observed: asyncio.Event) -> None:
        """Keep the figures going: a fault in them must not cost a single worker."""
        while not observed.is_set():
            try:
                await self._collector.run(observed)
            except Exception:
                log.exception("statistics failed")
                await _pause(observed, _FAULT_SECONDS)

    async def _stop_fleet(self, hurry: asyncio.Event) -> None:
        hurrying = asyncio.create_task(hurry.wait())
        warm = asyncio.create_task(self._fleet.stop(self._settings.shutdown_seconds))
        await asyncio.wait({warm, hurrying}, return_when=asyncio.FIRST_COMPLETED)
        if not warm.done():
            await self._fleet.stop(0)
        await warm
        hurrying.cancel()

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
                await _pause(stop, _RETRY_SECONDS)
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

    def _view(self) -> FleetView:
        options = self._fleet.options
        return FleetView(
            host=options.host,
            worker_type=options.worker_type,
            concurrency=options.concurrency,
            target=self._fleet.target,
            members=self._fleet.members(),
        )


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    """Wait, but not longer than until `stop`."""
    with contextlib.suppress(TimeoutError):  # the usual end of a pause
        await asyncio.wait_for(stop.wait(), seconds)


def worker_options(settings: Settings, environ: Mapping[str, str]) -> WorkerOptions:
    """Return how the settings want each worker to be started."""
    return WorkerOptions(
        app=settings.celery_app,
        worker_type=settings.worker_type,
        pool=settings.worker_pool,
        concurrency=settings.max_concurrent_tasks,
        queues=",".join(settings.queues),
        log_level=settings.log_level,
        environ={
            **environ,
            "CELERY_BROKER_URL": settings.nats_url,
            "CELERY_RESULT_BACKEND": settings.nats_url,
            # Relayed line by line: whether ours goes to a terminal is for us to know.
            "BRIDGE_LOG_FORMAT": "json",
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
