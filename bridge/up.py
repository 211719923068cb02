"""Runs the whole service in the foreground: nats-server, controller with workers, web, Flower.

Everything that can be checked is checked before the first process is started; afterwards each
process is kept running until Ctrl-C or SIGTERM, which ends all of them in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from bridge import logs, probe
from bridge.errors import BridgeError, ConfigError, ServiceUnavailable
from bridge.fleet import ProcessSpec, ProcessState, Supervisor
from bridge.sample import report
from bridge.server import EmbeddedServer, port_in_use
from bridge.wire.options import broker_url
from config.settings import Settings, check_exposure
from web.auth import ApiKeys

_READY_SECONDS: Final = 60.0
#: Between two looks at a process that cannot tell by itself when it is ready.
_LOOK_SECONDS: Final = 0.1
# What a clean stop may take: together with the workers' own time it stays under ten seconds.
_WEB_STOP_SECONDS: Final = 1.5
_FLOWER_STOP_SECONDS: Final = 1.5
_NATS_STOP_SECONDS: Final = 2.0
#: The controller ends its workers by force after their time, which takes a moment itself.
_CONTROLLER_EXTRA_SECONDS: Final = 2.0

log = logs.get_logger("bridge.up")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What was checked and is to be run. `server` None: NATS runs elsewhere."""

    settings: Settings
    url: str
    server: EmbeddedServer | None
    #: environment of every process
    environ: Mapping[str, str]


def prepare(settings: Settings, environ: Mapping[str, str]) -> Plan:
    """Check all that could keep the service from running; start nothing.

    Raises ConfigError or NatsConnectionError: the message names the remedy.
    """
    check_exposure(settings)
    ApiKeys.load(settings.api_keys_file)
    settings = _with_ports(settings)
    environ = {**environ, **settings.child_environ()}
    probe.celery_app(settings.celery_app, environ)
    server = None
    url = settings.nats_url
    if url:
        probe.nats_server(url)
    else:
        server = EmbeddedServer.prepare(
            Path(settings.data_dir),
            environ,
            port=settings.nats.port,
            sync_interval=settings.nats.sync_interval,
        )
        url = server.url
    # Output is relayed line by line; whether ours goes to a terminal is for us to know.
    shared = {
        "NATS_URL": url,
        "CELERY_BROKER_URL": broker_url(url),
        "CELERY_RESULT_BACKEND": url,
    }
    environ = {**environ, **shared, logs.FORMAT_VARIABLE: "json", "PYTHONUNBUFFERED": "1"}
    return Plan(settings=settings, url=url, server=server, environ=environ)


def _with_ports(settings: Settings) -> Settings:
    """Return the settings with real ports in place of 0, and all of them free."""
    flower = settings.flower
    port = _usable_port(settings.host, settings.port, "API_PORT")
    settings = msgspec.structs.replace(settings, port=port)
    if not flower.enabled:
        return settings
    flower_port = _usable_port(flower.host, flower.port, "FLOWER_PORT")
    return msgspec.structs.replace(
        settings, flower=msgspec.structs.replace(flower, port=flower_port)
    )


def _usable_port(host: str, port: int, variable: str) -> int:
    if port == 0:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probing:
            probing.bind((host, 0))
            return int(probing.getsockname()[1])
    if port_in_use(host, port):
        raise ConfigError(
            f"port {port} on {host} is in use: stop what uses it or set {variable} to a free port"
        )
    return port


class Service:
    """The processes of a plan. `stop` ends the wait for their readiness."""

    def __init__(self, plan: Plan, stop: asyncio.Event) -> None:
        self.plan = plan
        self._stop = stop
        settings, python = plan.settings, sys.executable
        self._nats: Supervisor | None = None
        if plan.server is not None:
            # Go lets its heap double before it collects; half of that is ample here, and the
            # server of a quiet service then takes half the memory (42 to 20 MB measured).
            environ = {"GOGC": "50", **plan.environ}
            self._nats = Supervisor(
                ProcessSpec(name="nats", command=plan.server.command, environ=environ)
            )
        self._controller = self._supervisor(
            "controller",
            [python, "-m", "bridge", "controller"],
            # Its way to end its workers at once, who are no children of ours.
            cold_signal=signal.SIGQUIT,
            cold_seconds=_CONTROLLER_EXTRA_SECONDS,
        )
        self._web = self._supervisor("web", [python, "-m", "bridge", "web"])
        self._flower: Supervisor | None = None
        if settings.flower.enabled:
            self._flower = self._supervisor("flower", _flower_command(settings))

    def _supervisor(self, name: str, command: list[str], **ending: Any) -> Supervisor:
        environ = self.plan.environ
        return Supervisor(ProcessSpec(name=name, command=command, environ=environ, **ending))

    async def start(self) -> bool:
        """Start all; True when a task would be accepted and run, False when told to stop.

        Raises ServiceUnavailable when a process ends or does not get ready in time.
        """
        if self._nats is not None:
            await self._nats.start()
            if not await self._until(self._nats, self._nats_answers):
                return False
        await self._controller.start()
        await self._web.start()
        if not await self._until(self._web, self._web_is_ready):
            return False
        if self._flower is None:
            return True
        # Last, since it asks the workers for what it shows when it starts.
        await self._flower.start()
        return await self._until(self._flower, self._flower_answers)

    async def stop(self) -> None:
        """End all: first what accepts work, then what does it, then where it is kept."""
        await self._web.stop(_WEB_STOP_SECONDS)
        worker_seconds = self.plan.settings.shutdown_seconds
        await asyncio.gather(
            self._controller.stop(worker_seconds + _CONTROLLER_EXTRA_SECONDS),
            *([self._flower.stop(_FLOWER_STOP_SECONDS)] if self._flower else []),
        )
        if self._nats is not None:
            await self._nats.stop(_NATS_STOP_SECONDS)

    async def kill(self) -> None:
        """End all at once."""
        await asyncio.gather(*(process.stop(0) for process in self._processes()))

    def _processes(self) -> list[Supervisor]:
        return [
            process
            for process in (self._nats, self._controller, self._web, self._flower)
            if process is not None
        ]

    async def _until(self, process: Supervisor, ready: Callable[[], bool]) -> bool:
        """True once `ready`, False when told to stop, ServiceUnavailable when neither can be."""
        deadline = time.monotonic() + _READY_SECONDS
        while not await asyncio.to_thread(ready):
            for other in self._processes():
                if other.state in {ProcessState.CRASHED, ProcessState.LOST}:
                    ending, *lines = (other.last_error or "ended").splitlines()
                    reason = "; ".join([ending, *lines[-1:]])
                    raise ServiceUnavailable(f"{other.spec.name} {reason}")
            if time.monotonic() > deadline:
                raise ServiceUnavailable(
                    f"{process.spec.name} was not ready within {_READY_SECONDS:.0f} s; "
                    "see the log lines above"
                )
            with contextlib.suppress(TimeoutError):  # time for another look
                await asyncio.wait_for(self._stop.wait(), _LOOK_SECONDS)
            if self._stop.is_set():
                return False
        return True

    def _nats_answers(self) -> bool:
        try:
            probe.nats_server(self.plan.url)
        except (BridgeError, OSError):
            return False
        return True

    def _web_is_ready(self) -> bool:
        settings = self.plan.settings
        return _answers(settings.host, settings.port, "/ready")

    def _flower_answers(self) -> bool:
        flower = self.plan.settings.flower
        return _answers(flower.host, flower.port, "/healthcheck")


def _flower_command(settings: Settings) -> list[str]:
    # A password reaches Flower by FLOWER_BASIC_AUTH: arguments are for everyone to see.
    return [
        *(sys.executable, "-m", "celery", "--quiet", "-A", settings.celery_app, "flower"),
        f"--address={settings.flower.host}",
        f"--port={settings.flower.port}",
    ]


def _answers(host: str, port: int, path: str) -> bool:
    try:
        status, _ = probe.http_request(host, port, path)
    except OSError:
        return False
    return status == 200


def run(settings: Settings, environ: Mapping[str, str]) -> None:
    """Run the service until Ctrl-C. Raises BridgeError when it cannot be started."""
    plan = prepare(settings, environ)
    with plan.server or contextlib.nullcontext():
        asyncio.run(_run(plan))


async def _run(plan: Plan) -> None:
    stop = _stop_on_signals()
    service = Service(plan, stop)
    try:
        if await service.start():
            await _show_sample(plan.settings, stop)
            await stop.wait()
    finally:
        await _end(service, stop)


async def _show_sample(settings: Settings, stop: asyncio.Event) -> None:
    reporting = asyncio.create_task(asyncio.to_thread(report, settings), name="sample")
    stopping = asyncio.create_task(stop.wait(), name="stop")
    await asyncio.wait({reporting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not reporting.done():
        # Its request ends with the web process.
        reporting.add_done_callback(lambda task: task.exception())
        return
    try:
        reporting.result()
    except ServiceUnavailable as error:
        # The service is up all the same; a backlog from an earlier run may be in front.
        log.error("sample task not finished", reason=str(error))


async def _end(service: Service, stop: asyncio.Event) -> None:
    """Stop in order; a further signal meanwhile ends everything at once."""
    log.info("stopping")
    stop.clear()
    again = asyncio.create_task(stop.wait(), name="stop again")
    orderly = asyncio.create_task(service.stop(), name="orderly stop")
    await asyncio.wait({again, orderly}, return_when=asyncio.FIRST_COMPLETED)
    if not orderly.done():
        await service.kill()
    await orderly
    again.cancel()
    log.info("stopped")


def _stop_on_signals() -> asyncio.Event:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    return stop
