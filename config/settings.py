"""Loads the settings: defaults, then a YAML file, then the environment; the later wins."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import yaml

from bridge.errors import ConfigError
from bridge.masking import MASK, mask_value
from config.schema import FIELDS, Field, Flower, Nats, Scaling, Settings

__all__ = [
    "DEFAULT_FILE",
    "FILE_VARIABLE",
    "Flower",
    "Nats",
    "Scaling",
    "Settings",
    "check_exposure",
    "load",
    "masked",
]

#: Names a file that is read instead of `DEFAULT_FILE`; it may set only some keys.
FILE_VARIABLE: Final = "TASK_WORKER_CONFIG"
DEFAULT_FILE: Final = Path(__file__).with_name("default.yaml")
SERVICE: Final = "task-worker"

_BY_KEY: Final = {field.key: field for field in FIELDS}
_GROUPS: Final = {field.path[0] for field in FIELDS if len(field.path) > 1}


class _Given(NamedTuple):
    """A value that someone set, and where."""

    value: Any
    source: str


def load(environ: Mapping[str, str], path: Path | None = None) -> Settings:
    """Return the settings in force.

    `path` names the YAML file; without it the variable TASK_WORKER_CONFIG does, and without
    that the `default.yaml` beside this module is read. An environment variable set to the
    empty string counts as not set.

    Raises ConfigError for an unreadable file, an unknown key, a value of the wrong type or
    out of its limits; the message names the key, the value, what is allowed and the source.
    """
    given = _from_file(path or Path(environ.get(FILE_VARIABLE) or DEFAULT_FILE))
    for field in FIELDS:
        if text := environ.get(field.env, ""):
            source = f"environment variable {field.env}"
            given[field.key] = _Given(_convert(field, text, source, strict=False), source)
    settings = _build(given)
    _check_together(settings, given)
    return settings


def masked(settings: Settings) -> dict[str, Any]:
    """Return the settings nested as in YAML, fit to be shown: every secret is ``***``."""
    shown: dict[str, Any] = {}
    for field in FIELDS:
        *groups, name = field.path
        place = shown
        for group in groups:
            place = place.setdefault(group, {})
        value = field.read(settings)
        place[name] = MASK if field.secret and value else mask_value(name, value)
    return shown


def check_exposure(settings: Settings) -> None:
    """Refuse to open the service to a network in production without authentication.

    Raises ConfigError; ALLOW_UNAUTHENTICATED=true is the explicit way past it.
    """
    if settings.environment != "production" or settings.allow_unauthenticated:
        return
    if not settings.api_keys_file and not is_loopback(settings.host):
        raise ConfigError(
            f"the API would listen on {settings.host}, beyond this machine, with no API keys: "
            "set API_KEYS_FILE, or API_HOST=127.0.0.1, or ALLOW_UNAUTHENTICATED=true if "
            "something in front of it authenticates"
        )
    flower = settings.flower
    if flower.enabled and not flower.basic_auth and not is_loopback(flower.host):
        raise ConfigError(
            f"Flower would listen on {flower.host}, beyond this machine, with no password, and "
            "Flower can stop workers: set FLOWER_BASIC_AUTH=user:password, or "
            "FLOWER_HOST=127.0.0.1, or FLOWER_ENABLED=false, or ALLOW_UNAUTHENTICATED=true if "
            "something in front of it authenticates"
        )


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach `host`; any name but localhost counts as not."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


# -- the file ------------------------------------------------------------------------------


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that is given twice; plain YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key_node.value!r} is given twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def _from_file(path: Path) -> dict[str, _Given]:
    service = _service_part(_parse(path), path)
    given = {}
    for key, value in _leaves(service, (), str(path)):
        field = _BY_KEY.get(key)
        if field is None:
            known = ", ".join(_BY_KEY)
            raise ConfigError(f"{path}: unknown setting {key!r}; known are: {known}")
        given[key] = _Given(_convert(field, value, str(path), strict=True), str(path))
    return given


def _parse(path: Path) -> Any:
    try:
        return yaml.load(path.read_bytes(), _StrictLoader)  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise ConfigError(
            f"cannot read the settings file {path} ({error.strerror}): "
            f"correct {FILE_VARIABLE} or create the file"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path} is not valid YAML: {reason}") from error


def _service_part(document: Any, path: Path) -> dict[Any, Any]:
    """Return what stands under ``services: task-worker:``; other services may share the file."""
    services = document.get("services") if isinstance(document, dict) else None
    service = services.get(SERVICE) if isinstance(services, dict) else None
    if not isinstance(service, dict):
        raise ConfigError(f"{path}: the settings must stand under 'services:' and '{SERVICE}:'")
    if unknown := [key for key in document if key != "services"]:
        raise ConfigError(
            f"{path}: unknown setting {unknown[0]!r}; put it under 'services:' and '{SERVICE}:'"
        )
    return service


def _leaves(node: dict[Any, Any], path: tuple[str, ...], source: str) -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        here = (*path, str(name))
        if here[0] in _GROUPS and len(here) == 1:
            if not isinstance(value, dict):
                raise ConfigError(
                    f"{source}: {name} = {value!r} is not allowed: it holds further keys"
                )
            yield from _leaves(value, here, source)
        else:
            yield ".".join(here), value


# -- values --------------------------------------------------------------------------------


def _convert(field: Field, value: Any, source: str, *, strict: bool) -> Any:
    try:
        return msgspec.convert(value, field.type, strict=strict)
    except msgspec.ValidationError as error:
        shown = MASK if field.secret else repr(mask_value(field.key, value))
        raise ConfigError(
            f"{source}: {field.key} = {shown} is not allowed: it must be {field.allowed}"
        ) from error


def _build(given: Mapping[str, _Given]) -> Settings:
    tree: dict[str, Any] = {}
    groups: dict[str, dict[str, Any]] = {}
    for key, (value, _) in given.items():
        *group, name = _BY_KEY[key].path
        (groups.setdefault(group[0], {}) if group else tree)[name] = value
    return msgspec.convert(tree | groups, Settings)


def _check_together(settings: Settings, given: Mapping[str, _Given]) -> None:
    """Raise ConfigError where values that are each allowed do not fit one another."""

    def told(key: str) -> str:
        field = _BY_KEY[key]
        source = given[key].source if key in given else "default"
        return f"{key} = {field.read(settings)} ({source})"

    least, most = settings.scaling.min_workers, settings.scaling.max_workers
    if least > most:
        raise ConfigError(
            f"{told('scaling.min_workers')} is above {told('scaling.max_workers')}: "
            "lower MIN_WORKERS or raise MAX_WORKERS"
        )
    if not least <= settings.worker_count <= most:
        raise ConfigError(
            f"{told('worker_count')} is outside {told('scaling.min_workers')} to "
            f"{told('scaling.max_workers')}: change WORKER_COUNT, MIN_WORKERS or MAX_WORKERS"
        )
