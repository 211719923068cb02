"""gunicorn, embedded. Import it only after gevent has patched the process (`web.server`)."""

from __future__ import annotations

import contextlib
import gc
import logging
import socket
import time
from http import HTTPStatus
from typing import Any

import msgspec
from flask import Flask
from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger
from gunicorn.workers.ggevent import GeventPyWSGIWorker, PyWSGIHandler, PyWSGIServer

from bridge import logs
from bridge.envelope import failure
from bridge.errors import ConfigError, ErrorCode
from config.settings import Settings
from web.app import create_app
from web.auth import ApiKeys
from web.resources import Resources

logger = logging.getLogger("web")

_BACKLOG = 2048
#: Clients keep their connections; a load balancer's idle time is commonly 60 s.
_KEEPALIVE_SECONDS = 75
#: A worker that does not report for this long is stuck and is replaced.
_STUCK_SECONDS = 30
#: More than the waits one process admits, so that they leave room for others.
_CONNECTIONS = 2000
_GRACEFUL_SECONDS = 5


def serve(settings: Settings) -> None:
    """Listen and serve until a signal ends the process. Raises ConfigError."""
    logs.configure(level=settings.log_level)
    # What is wrong with them is told now, once, not by every worker process.
    ApiKeys.load(settings.api_keys_file)
    listener = _listen(settings.host, settings.port)
    settings = msgspec.structs.replace(settings, port=listener.getsockname()[1])
    logger.info("web.listening host=%s port=%d", settings.host, settings.port)
    _Application(settings, listener).run()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host.strip("[]"), port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror or error}. Stop what uses it, or "
            "set API_PORT and API_HOST."
        ) from error


class _Logger(Logger):  # type: ignore[misc]
    """Leaves gunicorn's log lines to the one format of this service."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        for log in (self.error_log, self.access_log):
            log.handlers = []
            log.propagate = True


class _Handler(PyWSGIHandler):  # type: ignore[misc]
    """Speaks the envelope where a request is malformed, and lets go of idle clients on stop."""

    def handle(self) -> None:
        self.socket.settimeout(_KEEPALIVE_SECONDS)
        super().handle()

    def read_requestline(self) -> Any:
        if self.server.stopping:
            return ""
        self.server.idle.add(self.socket)
        try:
            return super().read_requestline()
        finally:
            self.server.idle.discard(self.socket)

    def handle_one_request(self) -> Any:
        result = super().handle_one_request()
        if not isinstance(result, tuple):
            return result
        status = int(result[0])
        return status, _raw_refusal(status)

    def log_request(self) -> None:
        """One line per request would cost more than many requests do."""


class _Server(PyWSGIServer):  # type: ignore[misc]
    """A server that can tell its idle connections from its busy ones."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.idle: set[Any] = set()
        self.stopping = False

    def close(self) -> None:
        """Accept no more, and end the connections that wait for a next request."""
        self.stopping = True
        super().close()
        for idle in list(self.idle):
            with contextlib.suppress(OSError):
                idle.shutdown(socket.SHUT_RD)


class _Worker(GeventPyWSGIWorker):  # type: ignore[misc]
    """A gevent worker in a process that is patched already.

    gevent's own HTTP server answers in one write and takes two thirds of the time of gunicorn's.
    """

    server_class = _Server
    wsgi_handler = _Handler

    def patch(self) -> None:
        # gunicorn's own would patch a second time, which warns, and then do this.
        self.sockets: list[Any] = [
            socket.socket(held.FAMILY, socket.SOCK_STREAM, fileno=held.sock.detach())
            for held in self.sockets
        ]


class _Application(BaseApplication):  # type: ignore[misc]
    """gunicorn with our settings; the application is made in each worker after the fork."""

    def __init__(self, settings: Settings, listener: socket.socket) -> None:
        self._settings = settings
        self._listener = listener
        self._started_epoch = time.time()
        self._resources: Resources | None = None
        super().__init__()

    def load_config(self) -> None:
        options = {
            "bind": [f"fd://{self._listener.fileno()}"],
            "workers": self._settings.web_workers,
            "worker_class": _Worker,
            "worker_connections": _CONNECTIONS,
            "keepalive": _KEEPALIVE_SECONDS,
            "timeout": _STUCK_SECONDS,
            "graceful_timeout": _GRACEFUL_SECONDS,
            "logger_class": _Logger,
            "loglevel": "warning",
            "control_socket_disable": True,
            "proc_name": "task-worker-web",
            "when_ready": _share_memory,
            "worker_exit": self._stop_resources,
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> Flask:
        self._resources = Resources(self._settings)
        self._resources.start()
        return create_app(self._settings, self._resources, self._started_epoch)

    def _stop_resources(self, _server: Any, _worker: Any) -> None:
        if self._resources is not None:
            self._resources.stop()


def _share_memory(_server: Any) -> None:
    # Without this the workers' collectors write to, and so copy, every page they inherit.
    gc.freeze()


def _raw_refusal(status: int) -> bytes:
    """A whole answer to a request that cannot be read, in the envelope."""
    reason = HTTPStatus(status).phrase
    body = failure(ErrorCode.INVALID_PARAMETERS, f"The request cannot be read: {reason}.")
    head = (
        f"HTTP/1.1 {status} {reason}\r\nConnection: close\r\nContent-Type: application/json\r\n"
        f"X-Content-Type-Options: nosniff\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode("ascii") + body
