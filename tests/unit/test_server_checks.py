"""What is checked before an embedded nats-server is started."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from bridge.errors import ConfigError
from bridge.server import (
    EmbeddedServer,
    ServerConfig,
    find_binary,
    parse_version,
    port_in_use,
    require_version,
)


def fake_server(directory: Path, version: str) -> Path:
    """Write a program that tells a version as nats-server does."""
    program = directory / "nats-server"
    program.write_text(f"#!/bin/sh\necho 'nats-server: v{version}'\n")
    program.chmod(0o755)
    return program


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_named_binary_wins_over_path(tmp_path: Path) -> None:
    """NATS_SERVER_BIN is taken before anything on PATH."""
    named = fake_server(tmp_path, "2.15.1")

    assert find_binary({"NATS_SERVER_BIN": str(named), "PATH": "/usr/bin"}) == named


def test_named_binary_that_is_none_is_refused(tmp_path: Path) -> None:
    """A wrong NATS_SERVER_BIN is an error, not a reason to take another server."""
    with pytest.raises(ConfigError, match="NATS_SERVER_BIN"):
        find_binary({"NATS_SERVER_BIN": str(tmp_path / "absent")})


def test_binary_of_the_environment_is_found_without_path() -> None:
    """The one that was installed beside this Python is found when PATH has none."""
    assert find_binary({"PATH": ""}).name == "nats-server"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("nats-server: v2.15.1\n", (2, 15, 1)), ("2.14.0-RC.2", (2, 14, 0))],
)
def test_version_is_read(text: str, expected: tuple[int, int, int]) -> None:
    """Both the program's answer and INFO's field give the version."""
    assert parse_version(text) == expected


@pytest.mark.parametrize("text", ["2.13.9", "no version"])
def test_unfit_version_is_refused(text: str) -> None:
    """A server without lasting schedules, or one that tells no version, is not used."""
    with pytest.raises(ConfigError, match=r"2\.14"):
        require_version(text, "the server")


def test_old_binary_is_refused_before_anything_is_written(tmp_path: Path, free_port: int) -> None:
    """The version is checked before the data directory is touched."""
    old = fake_server(tmp_path, "2.10.0")

    with pytest.raises(ConfigError, match="too old"):
        EmbeddedServer.prepare(tmp_path / "data", {"NATS_SERVER_BIN": str(old)}, port=free_port)

    assert not (tmp_path / "data").exists()


def test_port_in_use_names_the_remedies(tmp_path: Path) -> None:
    """Whoever finds the port taken is told of NATS_URL and NATS_PORT."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        with pytest.raises(ConfigError, match=f"{port} is in use.*NATS_URL.*NATS_PORT"):
            EmbeddedServer.prepare(tmp_path, {}, port=port)
        assert port_in_use("127.0.0.1", port)


def test_data_directory_is_used_by_one_at_a_time(tmp_path: Path, free_port: int) -> None:
    """A second service on the same store is refused until the first has released it."""
    first = EmbeddedServer.prepare(tmp_path, {}, port=free_port)
    with pytest.raises(ConfigError, match="another running service"):
        EmbeddedServer.prepare(tmp_path, {}, port=free_port)

    first.release()

    with EmbeddedServer.prepare(tmp_path, {}, port=free_port) as second:
        assert second.url == f"nats://127.0.0.1:{free_port}"


def test_data_directory_that_cannot_be_made_is_refused(tmp_path: Path, free_port: int) -> None:
    """A data directory below a file is one clear error."""
    (tmp_path / "file").write_text("")

    with pytest.raises(ConfigError, match="DATA_DIR"):
        EmbeddedServer.prepare(tmp_path / "file" / "data", {}, port=free_port)


def test_file_that_is_in_the_way_is_named(tmp_path: Path, free_port: int) -> None:
    """What cannot be written inside the directory is told like the directory itself."""
    (tmp_path / "nats-server.conf").mkdir()

    with pytest.raises(ConfigError, match=r"nats-server\.conf.*DATA_DIR"):
        EmbeddedServer.prepare(tmp_path, {}, port=free_port)
    with pytest.raises(ConfigError, match=r"nats-server\.conf"):  # and the lock was let go
        EmbeddedServer.prepare(tmp_path, {}, port=free_port)


def test_refused_start_releases_the_directory(tmp_path: Path, free_port: int) -> None:
    """A failed preparation holds no lock."""
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError):
        EmbeddedServer.prepare(tmp_path, {}, port=taken.getsockname()[1])

    EmbeddedServer.prepare(tmp_path, {}, port=free_port).release()


def test_store_path_cannot_inject_configuration(tmp_path: Path) -> None:
    """A path that would end the quotes of the configuration file is refused."""
    with pytest.raises(ConfigError, match="quotes"):
        ServerConfig(store_dir=tmp_path / 'a"b').render()
