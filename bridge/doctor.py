"""Says what the settings are and whether everything they name is there."""

from __future__ import annotations

import contextlib
import difflib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import click
import msgspec
import yaml

from bridge import probe
from bridge.errors import BridgeError, ConfigError
from bridge.names import PRIORITIES, Names
from bridge.records import SNAPSHOT_KEY, Snapshot
from bridge.server import LOOPBACK, binary_version, find_binary, port_in_use
from bridge.wire import Bucket, Connection, ConnectOptions, JetStream, JetStreamError
from bridge.wire.options import vhost_of
from bridge.wire.refusals import STREAM_NOT_FOUND
from config.schema import FIELDS
from config.settings import Settings, check_exposure, masked
from web.auth import ApiKeys

#: A snapshot older than this is from a controller that no longer runs.
_FRESH_SECONDS: Final = 10.0
#: More than this part of an account's storage is as good as all of it.
_FULL: Final = 0.9
#: So alike (1 is the same) is a name to what it was meant to be, as WORKER_CUONT.
_MISSPELT: Final = 0.9


class Finding(NamedTuple):
    """The outcome of one check; `detail` of a failed one says what to do."""

    name: str
    ok: bool
    detail: str


def examine(settings: Settings, environ: Mapping[str, str]) -> list[Finding]:
    """Run every check; none changes anything."""
    checks: list[tuple[str, Callable[[], str]]] = [
        ("environment", lambda: _environment(environ)),
        ("exposure", lambda: _exposure(settings)),
        ("celery app", lambda: _celery_app(settings, environ)),
        ("nats", lambda: _nats(settings, environ)),
        ("account", lambda: _account(settings)),
        ("data directory", lambda: _data_dir(settings)),
        ("workers", lambda: _workers(settings)),
        ("web", lambda: _web(settings)),
        ("flower", lambda: _flower(settings)),
    ]
    return [_finding(name, check) for name, check in checks]


def run(settings: Settings, environ: Mapping[str, str]) -> bool:
    """Print settings and findings; True when nothing failed."""
    click.echo(yaml.safe_dump({"settings": masked(settings)}, sort_keys=False))
    findings = examine(settings, environ)
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        mark = click.style("ok  ", fg="green") if finding.ok else click.style("fail", fg="red")
        click.echo(f"{mark} {finding.name:<{width}}  {finding.detail}")
    return all(finding.ok for finding in findings)


def _finding(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name, True, check())
    except BridgeError as error:
        return Finding(name, False, str(error))


def _environment(environ: Mapping[str, str]) -> str:
    known = [field.env for field in FIELDS]
    for name in sorted(environ.keys() - set(known)):
        if meant := difflib.get_close_matches(name, known, 1, _MISSPELT):
            raise ConfigError(f"{name} is no setting and has no effect; did you mean {meant[0]}?")
    return "no variable looks misspelt"


def _exposure(settings: Settings) -> str:
    check_exposure(settings)
    asked = "API keys" if ApiKeys.load(settings.api_keys_file).required else "no API keys"
    return f"listens on {settings.host}, asks for {asked}"


def _celery_app(settings: Settings, environ: Mapping[str, str]) -> str:
    probe.celery_app(settings.celery_app, environ)
    return settings.celery_app


def _nats(settings: Settings, environ: Mapping[str, str]) -> str:
    if not _runs(settings):
        binary = find_binary(environ)
        version = ".".join(map(str, binary_version(binary)))
        return f"embedded {version} ({binary}), not running"
    info = probe.nats_server(settings.server_url)
    kind = "external" if settings.nats_url else "embedded"
    return f"{kind} {info.get('version')} answers, JetStream is on"


def _runs(settings: Settings) -> bool:
    """Whether a NATS server is there, or should be."""
    return bool(settings.nats_url) or port_in_use(LOOPBACK, settings.nats.port)


@contextlib.contextmanager
def _jetstream(settings: Settings) -> Iterator[tuple[JetStream, Names]]:
    connection = Connection(ConnectOptions.from_url(settings.server_url, name="doctor"))
    connection.connect()
    try:
        yield JetStream(connection), Names(vhost_of(settings.server_url))
    finally:
        connection.close()


def _account(settings: Settings) -> str:
    """Tell what is used of the limits that JetStream has for our account; fail where it is full."""
    if not _runs(settings):
        return "not running"
    with _jetstream(settings) as (js, names):
        info = js.api("INFO")
        # An account may have limits for each number of copies instead.
        account = info.get("tiers", {}).get(f"R{settings.nats.replicas}", info)
        limits, stored = account["limits"], account["storage"]
        consumers = _consumers(js, names, limits["max_consumers"])
    storage = _used(stored // 1_000_000, limits["max_storage"] // 1_000_000, "MB")
    if 0 < limits["max_storage"] * _FULL < stored:
        raise ConfigError(f"{storage} stored: remove what is not needed, or raise its max_file")
    return f"{_used(account['streams'], limits['max_streams'], 'streams')}, {consumers}, {storage}"


def _consumers(js: JetStream, names: Names, max_consumers: int) -> str:
    stream = _stream(js, names.task_stream)
    used = stream["state"]["consumer_count"] if stream else 0
    # Both are limits of one stream.
    limits = [max_consumers, stream["config"]["max_consumers"] if stream else -1]
    limit = min((limit for limit in limits if limit > 0), default=-1)
    return f"{_used(used, limit, 'consumers')} ({len(PRIORITIES)} a queue)"


def _stream(js: JetStream, name: str) -> dict[str, Any] | None:
    try:
        return js.api(f"STREAM.INFO.{name}")
    except JetStreamError as error:
        if error.err_code != STREAM_NOT_FOUND:
            raise
        return None


def _used(used: int, limit: int, unit: str) -> str:
    return f"{used} of {limit} {unit}" if limit > 0 else f"{used} {unit}"


def _data_dir(settings: Settings) -> str:
    if settings.nats_url:
        return "not needed: NATS runs elsewhere"
    path = Path(settings.data_dir)
    existing = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ConfigError(f"{existing} cannot be written; correct that or set DATA_DIR")
    return f"{path.absolute()} can be written"


def _workers(settings: Settings) -> str:
    if not _runs(settings):
        return "not running"
    with _jetstream(settings) as (js, names):
        bucket = Bucket(js, names.bucket("status"))
        stored = bucket.get(SNAPSHOT_KEY) if _stream(js, bucket.stream) else None
    if stored is None:
        return "no controller has run yet"
    snapshot = msgspec.json.decode(stored, type=Snapshot)
    age_seconds = time.time() - snapshot.taken_epoch
    if age_seconds > _FRESH_SECONDS:
        return f"no controller runs (the last one was seen {age_seconds:.0f} s ago)"
    running = sum(worker.state == "running" for worker in snapshot.workers)
    if running < snapshot.target_workers:
        errors = [w.last_error for w in snapshot.workers if w.last_error]
        raise ConfigError(
            f"{running} of {snapshot.target_workers} workers run; look at their log lines"
            + (f"; last error: {errors[0].splitlines()[-1]}" if errors else "")
        )
    return f"{running} of {snapshot.target_workers} run"


def _web(settings: Settings) -> str:
    return _listener(settings.host, settings.port, "/health", "API_PORT")


def _flower(settings: Settings) -> str:
    flower = settings.flower
    if not flower.enabled:
        return "switched off"
    return _listener(flower.host, flower.port, "/healthcheck", "FLOWER_PORT")


def _listener(host: str, port: int, path: str, variable: str) -> str:
    """Return whether ours answers there; fail where a stranger holds the port."""
    if not port or not port_in_use(host, port):
        return f"not running; port {port} is free"
    try:
        status, _ = probe.http_request(host, port, path)
    except OSError as error:
        raise ConfigError(
            f"port {port} is used by something that does not answer {path} ({error}); "
            f"stop it or set {variable}"
        ) from error
    if status != 200:
        raise ConfigError(f"port {port} answers {path} with {status}; set {variable} to another")
    return f"answers on port {port}"
