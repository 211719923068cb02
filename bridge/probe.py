"""Asks the service's dependencies whether they are there: what `up`, `doctor` and `health` share.

Every function returns what it found or raises a ConfigError or NatsConnectionError whose
message says what to do.
"""

from __future__ import annotations

import http.client
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, Final

from bridge.errors import ConfigError, NatsConnectionError
from bridge.server import require_version
from bridge.wire import Connection, ConnectOptions, JetStream, JetStreamError

_APP_TIMEOUT_SECONDS: Final = 30.0
_FIND_APP: Final = """
import sys
from celery import Celery
from celery.app.utils import find_app
if not isinstance(found := find_app(sys.argv[1]), Celery):
    sys.exit(f"it is a {type(found).__name__}")
"""
_EVERYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104


def reachable_host(host: str) -> str:
    """Return where a server that listens on `host` answers on this machine."""
    return _EVERYWHERE.get(host, host)


def http_request(
    host: str, port: int, path: str, *, body: bytes | None = None, timeout_seconds: float = 2.0
) -> tuple[int, bytes]:
    """GET `path`, or POST `body` as JSON; return status and body of the answer.

    Raises OSError when nothing answers HTTP there in time.
    """
    connection = http.client.HTTPConnection(reachable_host(host), port, timeout=timeout_seconds)
    try:
        method, headers = "GET", {}
        if body is not None:
            method, headers = "POST", {"Content-Type": "application/json"}
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except http.client.HTTPException as error:
        raise ConnectionError(f"no HTTP answer from {host}:{port}: {error!r}") from error
    finally:
        connection.close()


def nats_server(url: str) -> dict[str, Any]:
    """Connect once and return the server's INFO; checks its version and that JetStream is on.

    Raises NatsConnectionError when it cannot be reached, ConfigError when it does not fit.
    """
    options = ConnectOptions.from_url(url, name="probe")
    connection = Connection(options)
    try:
        connection.connect()
    except NatsConnectionError as error:
        raise NatsConnectionError(f"NATS_URL: {error}") from error
    try:
        info = connection.server_info
        require_version(str(info.get("version", "")), "the server of NATS_URL")
        JetStream(connection, options.connect_timeout).api("INFO")
    except JetStreamError as error:
        raise ConfigError(f"JetStream is not available on the NATS server: {error}") from error
    finally:
        connection.close()
    return info


def celery_app(name: str, environ: Mapping[str, str]) -> None:
    """Check that ``celery -A name`` would find its app. Raises ConfigError.

    In a process of its own: the user's code must not run in ours.
    """
    try:
        answer = subprocess.run(
            [sys.executable, "-c", _FIND_APP, name],
            env=dict(environ),
            capture_output=True,
            text=True,
            timeout=_APP_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ConfigError(
            f"importing the Celery app {name} took more than {_APP_TIMEOUT_SECONDS:.0f} s; "
            "look for work done at import"
        ) from error
    if answer.returncode != 0:
        reason = (answer.stderr.strip().splitlines() or ["no output"])[-1]
        raise ConfigError(
            f"the Celery app {name} cannot be loaded ({reason}); set CELERY_APP or --app to "
            "module:attribute"
        )
