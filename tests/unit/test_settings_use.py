"""Settings in use: exposure, masking, child processes, queues."""

from __future__ import annotations

import pytest

from bridge.errors import ConfigError
from bridge.wire.options import ENVIRONMENT
from config.schema import FIELDS
from config.settings import Settings, check_exposure, load, masked

SECRETS = {
    "NATS_URL": "nats://bridge:pa55@one:4222,nats://t0ken@two:4222",
    "NATS_PASSWORD": "pa55",
    "NATS_TOKEN": "t0ken",
    "FLOWER_BASIC_AUTH": "admin:pa55",
}
PRODUCTION = {"ENVIRONMENT": "production"}


def test_masked_hides_every_secret_and_keeps_the_rest() -> None:
    """What may be printed holds no password and no token, but the servers and the user."""
    shown = masked(load(SECRETS))

    assert "pa55" not in str(shown)
    assert "t0ken" not in str(shown)
    assert shown["nats_url"] == "nats://bridge:***@one:4222,nats://***@two:4222"
    assert shown["nats"]["password"] == shown["flower"]["basic_auth"] == "***"
    assert shown["nats"]["user"] == ""
    assert shown["port"] == 8090


def test_masked_shows_every_setting() -> None:
    """No setting is missing in what `doctor` prints."""
    shown = masked(Settings())

    for field in FIELDS:
        value = shown
        for name in field.path:
            value = value[name]
        assert value == field.default


def test_child_environ_gives_a_child_the_same_settings() -> None:
    """A child that reads only the environment has what the parent had."""
    given = {
        **SECRETS,
        "API_PORT": "0",
        "SHOW_TRACEBACKS": "true",
        "SCALE_THRESHOLD": "0.25",
        "NATS_TLS_HANDSHAKE_FIRST": "true",
        "WORKER_QUEUES": "a,b",
    }
    settings = load(given)

    assert load(settings.child_environ()) == settings


def test_child_environ_leaves_out_what_is_not_set() -> None:
    """An empty NATS_URL must not reach a child, which would take it for a setting."""
    assert "NATS_URL" not in Settings().child_environ()


def test_server_url_without_a_named_server_is_the_embedded_one() -> None:
    """Every process finds the embedded server by its port alone."""
    assert load({"NATS_PORT": "4300"}).server_url == "nats://127.0.0.1:4300"
    assert load({"NATS_PORT": "4300", "NATS_URL": "nats://a:1"}).server_url == "nats://a:1"


def test_fields_name_the_variables_that_the_nats_client_reads() -> None:
    """A login written in YAML reaches the client inside the workers."""
    assert set(ENVIRONMENT.values()) <= {field.env for field in FIELDS}


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.9", "::1", "[::1]", "localhost"])
def test_check_exposure_accepts_production_on_loopback(host: str) -> None:
    """Without keys production may listen on this machine only."""
    check_exposure(load({**PRODUCTION, "API_HOST": host}))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "worker.example"])
def test_check_exposure_refuses_an_open_api_in_production(host: str) -> None:
    """Without keys production refuses a network, and says what to do."""
    with pytest.raises(ConfigError, match="set API_KEYS_FILE"):
        check_exposure(load({**PRODUCTION, "API_HOST": host}))


@pytest.mark.parametrize(
    "environ",
    [
        {**PRODUCTION, "API_HOST": "0.0.0.0", "API_KEYS_FILE": "keys"},
        {**PRODUCTION, "API_HOST": "0.0.0.0", "ALLOW_UNAUTHENTICATED": "true"},
        {"ENVIRONMENT": "development", "API_HOST": "0.0.0.0"},
        {**PRODUCTION, "FLOWER_HOST": "0.0.0.0", "FLOWER_BASIC_AUTH": "u:p"},
        {**PRODUCTION, "FLOWER_HOST": "0.0.0.0", "FLOWER_ENABLED": "false"},
    ],
)
def test_check_exposure_accepts_what_was_decided(environ: dict[str, str]) -> None:
    """Keys, an explicit permission, or an environment that is not production pass."""
    check_exposure(load(environ))


def test_check_exposure_refuses_an_open_flower_in_production() -> None:
    """Flower can stop workers, so it needs a password on a network."""
    with pytest.raises(ConfigError, match="set FLOWER_BASIC_AUTH"):
        check_exposure(load({**PRODUCTION, "FLOWER_HOST": "0.0.0.0"}))


@pytest.mark.parametrize(
    ("environ", "queues"),
    [
        ({}, ()),
        ({"WORKER_TYPE": "reports"}, ("reports",)),
        ({"WORKER_QUEUES": "a, b,"}, ("a", "b")),
        ({"WORKER_TYPE": "reports", "WORKER_QUEUES": "a"}, ("a",)),
    ],
)
def test_queues_follow_the_type_unless_named(
    environ: dict[str, str], queues: tuple[str, ...]
) -> None:
    """Type general serves the app's default queue, another type the queue of its name."""
    assert load(environ).queues == queues
