"""Dockerfile and docker-compose.yml name only what exists; no container engine is needed."""

from __future__ import annotations

import json
import re
import subprocess
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import yaml

from bridge.__main__ import main
from bridge.logs import FORMAT_VARIABLE
from bridge.server import MAX_PAYLOAD_BYTES, MINIMUM_VERSION, ServerConfig, find_binary
from config.schema import FIELDS
from config.settings import FILE_VARIABLE, Settings, check_exposure, load

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = sorted(name for name in SERVICES if name != "nats")
NATS_CONF = (ROOT / "config" / "nats-server.conf").read_text()
SETTINGS = {field.env for field in FIELDS}
#: Read by Python, Celery and the shell.
FOREIGN = {"PATH", "PYTHONUNBUFFERED", "CELERY_BROKER_URL", "CELERY_RESULT_BACKEND"}
SUBSTITUTION = re.compile(r"\$\{(\w+)(?::-([^}]*)|:\?[^}]*)\}")


def instructions() -> list[tuple[str, str]]:
    """Instruction and argument of each line of the Dockerfile, continued lines joined."""
    text = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines]


def of(instruction: str) -> list[str]:
    return [argument for name, argument in instructions() if name == instruction]


def image_environ() -> dict[str, str]:
    return dict(pair.split("=", 1) for line in of("ENV") for pair in line.split())


def environ(service: str) -> dict[str, str]:
    """Environment of a service, with every ``${...}`` at its default or, if it has none, set."""
    given = SERVICES[service].get("environment", {})
    substituted = {name: SUBSTITUTION.sub(r"\2", str(value)) for name, value in given.items()}
    required = {name for name, value in given.items() if ":?" in str(value)}
    return {name: "user:pw" if name in required else value for name, value in substituted.items()}


def commands() -> list[list[str]]:
    """Every command line in both files."""
    found = [json.loads(argument[argument.index("[") :]) for argument in of("CMD")]
    found += [json.loads(argument[argument.index("[") :]) for argument in of("HEALTHCHECK")]
    for name in OURS:
        found += [SERVICES[name]["command"], SERVICES[name]["healthcheck"]["test"][1:]]
    return found


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_command_exists(command: list[str]) -> None:
    """Each command is one of ours, or one of Celery's on an app that can be imported."""
    match command:
        case ["python", "-m", "bridge", name]:
            assert name in main.commands
        case ["celery", "-A", app, name, *_]:
            module, _, attribute = app.partition(":")
            assert getattr(import_module(module), attribute).main == "tasks"
            plugins = {plugin.name for plugin in entry_points(group="celery.commands")}
            assert name in plugins | {"inspect"}
        case ["python", "-c", code]:
            compile(code, "healthcheck", "exec")
        case _:
            pytest.fail(f"unknown command {command}")


@pytest.mark.parametrize("service", OURS)
def test_variables_of_a_service_are_settings_it_accepts(service: str) -> None:
    """A service starts with its environment: every name is known and every value allowed."""
    given = environ(service)

    assert set(given) <= SETTINGS | FOREIGN
    settings = load(image_environ() | given)
    assert settings.environment == "production"


def test_variables_of_the_image_are_known() -> None:
    """The Dockerfile sets only variables that something reads."""
    assert set(image_environ()) <= SETTINGS | FOREIGN | {FORMAT_VARIABLE, FILE_VARIABLE}


def test_web_may_listen_in_its_container() -> None:
    """The web service is allowed to listen beyond its container, and compose to this machine."""
    settings = load(image_environ() | environ("web"))

    assert settings.host == "0.0.0.0"
    check_exposure(settings)
    assert SERVICES["web"]["ports"] == [f"127.0.0.1:{settings.port}:{settings.port}"]


def test_ports_are_those_of_the_code() -> None:
    """Published, exposed and listened-on ports agree with each other and with the defaults."""
    default = Settings()

    assert of("EXPOSE") == [image_environ()["API_PORT"]] == [str(default.port)]
    assert environ("web")["API_PORT"] == str(default.port)
    assert f"--port={default.flower.port}" in SERVICES["flower"]["command"]
    assert SERVICES["flower"]["ports"] == [f"127.0.0.1:{default.flower.port}:{default.flower.port}"]
    assert f":{default.flower.port}/" in SERVICES["flower"]["healthcheck"]["test"][-1]


def test_flower_knows_its_options_and_health_page() -> None:
    """The options of the flower service and its health page exist in Flower."""
    options = import_module("flower.options").default_options
    handlers = import_module("flower.urls").handlers
    pages = {h[0] if isinstance(h, tuple) else h.regex.pattern for h in handlers}

    for option in SERVICES["flower"]["command"][4:]:
        assert option.removeprefix("--").partition("=")[0] in options
    assert "basic_auth" in options
    assert "/healthcheck" in pages


def test_services_find_nats() -> None:
    """Every service's NATS_URL is the nats service and the port of its configuration."""
    (port,) = re.findall(r"^port: (\d+)$", NATS_CONF, re.MULTILINE)

    for service in OURS:
        urls = {value for name, value in environ(service).items() if value.startswith("nats:")}
        assert urls == {f"nats://nats:{port}"}
        assert SERVICES[service]["depends_on"] == {"nats": {"condition": "service_healthy"}}


def test_nats_configuration_is_valid_and_like_the_embedded_one(tmp_path: Path) -> None:
    """nats-server itself accepts the file; payload and sync are those of the embedded server."""
    binary = find_binary({})
    done = subprocess.run(
        [binary, "-t", "-c", ROOT / "config" / "nats-server.conf"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert f"max_payload: {MAX_PAYLOAD_BYTES}\n" in NATS_CONF
    assert f'sync_interval: "{ServerConfig(store_dir=tmp_path).sync_interval}"' in NATS_CONF
    assert 'store_dir: "/data"' in NATS_CONF
    assert "nats-data:/data" in SERVICES["nats"]["volumes"]


def test_nats_health_check_asks_the_monitoring_port() -> None:
    """The port of the health check is the monitoring port of the configuration."""
    (port,) = re.findall(r"^http: (\d+)$", NATS_CONF, re.MULTILINE)

    assert SERVICES["nats"]["healthcheck"]["test"][-1] == f"http://127.0.0.1:{port}/healthz"


def test_nats_image_is_new_enough() -> None:
    """The image's release is at least the one the code requires."""
    major, minor = re.fullmatch(r"nats:(\d+)\.(\d+)-alpine", SERVICES["nats"]["image"]).groups()  # type: ignore[union-attr]

    assert (int(major), int(minor)) >= MINIMUM_VERSION[:2]


def test_paths_exist_and_reach_the_build() -> None:
    """What is copied or mounted lies in the repository, and .dockerignore lets it through."""
    let_through = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    copied = {
        path for line in of("COPY") if not line.startswith("--from") for path in line.split()[:-1]
    }
    mounted = {
        volume.split(":")[0]
        for service in SERVICES.values()
        for volume in service.get("volumes", [])
        if volume.startswith("./")
    }

    assert copied == let_through
    assert {"bridge", "config", "tasks", "web", "requirements.txt"} <= copied
    for path in copied | mounted:
        assert (ROOT / path).exists(), path


def test_named_volumes_and_networks_are_declared() -> None:
    """Compose refuses a volume or network that a service uses and the file does not declare."""
    for service in SERVICES.values():
        assert set(service["networks"]) <= set(COMPOSE["networks"])
        named = {volume.split(":")[0] for volume in service.get("volumes", [])}
        assert {name for name in named if name[0] != "."} <= set(COMPOSE["volumes"])


def test_controller_gets_longer_to_stop_than_its_tasks() -> None:
    """Compose kills the controller only after its workers had their time."""
    seconds = SERVICES["controller"]["stop_grace_period"]

    assert int(seconds.removesuffix("s")) > load(environ("controller")).shutdown_seconds


def test_image_does_not_run_as_root() -> None:
    """The user of the image is one that the Dockerfile makes."""
    (user,) = of("USER")

    assert any(line.startswith("useradd") and f" {user}" in line for line in of("RUN"))
    assert instructions()[-1][0] == "CMD"
