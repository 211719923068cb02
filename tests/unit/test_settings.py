"""Settings: defaults, YAML, environment, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bridge.errors import ConfigError
from config.schema import FIELDS
from config.settings import DEFAULT_FILE, Settings, load

SPEC_FILE = """
services:
  task-worker:
    port: 8091
    host: "0.0.0.0"
    worker_count: 4
    worker_type: "general"
    max_concurrent_tasks: 6
    nats_url: "nats://localhost:4222"
    scaling:
      min_workers: 2
      max_workers: 12
      scale_threshold: 0.7
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    return path


def service(tmp_path: Path, body: str) -> Path:
    return write(tmp_path, f"services:\n  task-worker:\n    {body}\n")


def test_load_gives_the_documented_defaults() -> None:
    """Without any environment the service is on loopback with the spec's numbers."""
    settings = load({})

    assert settings == Settings()
    assert (
        settings.host,
        settings.port,
        settings.worker_count,
        settings.max_concurrent_tasks,
        settings.nats_url,
    ) == ("127.0.0.1", 8090, 3, 5, "")


def test_default_file_shows_every_key_with_its_variable() -> None:
    """default.yaml sets each setting once, and its comments name each variable."""
    text = DEFAULT_FILE.read_text()
    tree = yaml.safe_load(text)["services"]["task-worker"]

    for field in FIELDS:
        value: Any = tree
        for name in field.path:
            value = value[name]
        assert value == field.read(Settings()), field.key
        assert text.count(f"[{field.env}]") == 1


def test_load_reads_the_form_of_the_spec(tmp_path: Path) -> None:
    """A file in the spec's form sets its keys and leaves the others at their defaults."""
    settings = load({"TASK_WORKER_CONFIG": str(write(tmp_path, SPEC_FILE))})

    assert (settings.port, settings.host, settings.worker_count) == (8091, "0.0.0.0", 4)
    assert (settings.scaling.min_workers, settings.scaling.max_workers) == (2, 12)
    assert settings.scaling.scale_threshold == 0.7
    assert settings.nats_url == "nats://localhost:4222"
    assert settings.flower == Settings().flower


def test_load_lets_the_environment_override_the_file(tmp_path: Path) -> None:
    """The spec's variables go before the file, whose other keys stay."""
    settings = load({"API_PORT": "9000", "NATS_URL": "nats://n:1"}, write(tmp_path, SPEC_FILE))

    assert (settings.port, settings.nats_url, settings.worker_count) == (9000, "nats://n:1", 4)


def test_load_takes_an_empty_variable_for_unset() -> None:
    """A variable set to the empty string changes nothing."""
    assert load({field.env: "" for field in FIELDS}) == Settings()


def test_load_lets_another_service_share_the_file(tmp_path: Path) -> None:
    """Only the part of this service is read."""
    path = write(tmp_path, f"{SPEC_FILE}\n  other-service:\n    anything: 1\n")

    assert load({}, path).port == 8091


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("API_PORT", "70000", "port = '70000' is not allowed: it must be a whole number from 0"),
        ("API_PORT", "http", "a whole number from 0 to 65535"),
        ("LOG_LEVEL", "LOUD", "one of CRITICAL, DEBUG, ERROR, INFO, WARNING"),
        ("WORKER_TYPE", "a b", "text like"),
        ("SCALE_THRESHOLD", "0", "a number above 0 to 1"),
        ("SCALE_THRESHOLD", "nan", "a number above 0 to 1"),
        ("FLOWER_ENABLED", "yes", "true or false"),
        ("ENVIRONMENT", "prod", "one of development, production, staging, test"),
        ("NATS_SYNC_INTERVAL", "often", "text like"),
        ("RESULT_EXPIRES_SECONDS", "inf", "a number from 1"),
    ],
)
def test_load_refuses_a_variable_out_of_its_limits(variable: str, value: str, told: str) -> None:
    """The error names the variable, the value and what is allowed."""
    with pytest.raises(ConfigError) as refused:
        load({variable: value})

    assert f"environment variable {variable}" in str(refused.value)
    assert told in str(refused.value)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("porrt: 1", "unknown setting 'porrt'; known are: environment"),
        ("scaling: {most: 1}", "unknown setting 'scaling.most'"),
        ('port: "8090"', "port = '8090' is not allowed: it must be a whole number"),
        ("port: true", "port = True is not allowed"),
        ("worker_type: 5", "worker_type = 5 is not allowed"),
        ("nats_url:", "nats_url = None is not allowed: it must be text"),
        ("scaling: 3", "scaling = 3 is not allowed: it holds further keys"),
        ("port: {a: 1}", "port = {'a': 1} is not allowed"),
        ("port: 1\n    port: 2", "the key 'port' is given twice"),
        ("port: [", "is not valid YAML"),
        ("? [a]\n    : 1", "is not valid YAML"),
    ],
)
def test_load_refuses_a_bad_file(tmp_path: Path, body: str, told: str) -> None:
    """The error names the file, the key and what is wrong with it."""
    path = service(tmp_path, body)

    with pytest.raises(ConfigError) as refused:
        load({}, path)

    assert str(path) in str(refused.value)
    assert told in str(refused.value)


@pytest.mark.parametrize("text", ["", "[]", "services: {}", "services: {task_worker: {port: 1}}"])
def test_load_refuses_a_file_without_the_service(tmp_path: Path, text: str) -> None:
    """A misspelt service name is an error and not a silent default."""
    with pytest.raises(ConfigError, match="must stand under 'services:' and 'task-worker:'"):
        load({}, write(tmp_path, text))


def test_load_refuses_a_key_beside_the_services(tmp_path: Path) -> None:
    """A setting at the top of the file would have no effect, so it is an error."""
    with pytest.raises(ConfigError, match="unknown setting 'port'"):
        load({}, write(tmp_path, f"port: 1\n{SPEC_FILE}"))


def test_load_refuses_a_missing_file(tmp_path: Path) -> None:
    """A wrong TASK_WORKER_CONFIG is named and not replaced by the defaults."""
    with pytest.raises(ConfigError, match=r"cannot read .*absent.yaml.*TASK_WORKER_CONFIG"):
        load({"TASK_WORKER_CONFIG": str(tmp_path / "absent.yaml")})


def test_load_refuses_limits_that_cross(tmp_path: Path) -> None:
    """The error about two settings tells where each came from."""
    path = service(tmp_path, "scaling: {min_workers: 5}")

    with pytest.raises(ConfigError) as refused:
        load({"MAX_WORKERS": "4"}, path)

    assert f"scaling.min_workers = 5 ({path})" in str(refused.value)
    assert "scaling.max_workers = 4 (environment variable MAX_WORKERS)" in str(refused.value)


@pytest.mark.parametrize("count", ["1", "11"])
def test_load_refuses_a_worker_count_outside_the_limits(tmp_path: Path, count: str) -> None:
    """worker_count must lie within min_workers and max_workers."""
    path = service(tmp_path, "scaling: {min_workers: 2}")

    with pytest.raises(ConfigError, match=r"scaling.max_workers = 10 \(default\)"):
        load({"WORKER_COUNT": count}, path)


def test_load_never_shows_a_secret(tmp_path: Path) -> None:
    """The error about a secret setting does not hold its value."""
    path = service(tmp_path, "nats: {password: 987654321}")

    with pytest.raises(ConfigError) as refused:
        load({}, path)

    assert "nats.password = ***" in str(refused.value)
    assert "987654321" not in str(refused.value)


@given(text=st.text(st.characters(codec="ascii", exclude_characters="\0")))
def test_load_of_any_text_gives_a_port_or_a_config_error(text: str) -> None:
    """No text in a variable gets past the limits or raises another error."""
    try:
        settings = load({"API_PORT": text})
    except ConfigError:
        return

    assert 0 <= settings.port <= 65535


def test_settings_cannot_be_changed() -> None:
    """What was checked stays as it was."""
    with pytest.raises(AttributeError):
        Settings().port = 1  # type: ignore[misc]


def test_fields_have_names_of_their_own() -> None:
    """No two settings share a key or an environment variable."""
    assert len({field.env for field in FIELDS}) == len(FIELDS)
    assert len({field.key for field in FIELDS}) == len(FIELDS)
