"""Every setting: its name in YAML, its environment variable, type, limits and default.

The fields below are the only table. The nesting is that of the YAML file; `Env` names the
environment variable. What each setting means stands beside it in `default.yaml`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal, NamedTuple, get_args, get_type_hints

import msgspec
from msgspec import Meta

Environment = Literal["development", "test", "staging", "production"]
LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
FleetDriver = Literal["processes", "kubernetes"]
WorkerPool = Literal["prefork", "threads", "gevent", "solo"]

#: The type whose workers serve the queue that the Celery app calls its default.
GENERAL_WORKER_TYPE: Final = "general"

_YEAR_SECONDS: Final = 366 * 86_400


class Env(NamedTuple):
    """Environment variable of a setting; a secret one is never shown."""

    name: str
    secret: bool = False


class Scaling(msgspec.Struct, kw_only=True, frozen=True):
    """How many workers there may be, and when there should be more."""

    min_workers: Annotated[int, Env("MIN_WORKERS"), Meta(ge=1, le=1000)] = 1
    max_workers: Annotated[int, Env("MAX_WORKERS"), Meta(ge=1, le=1000)] = 10
    scale_threshold: Annotated[float, Env("SCALE_THRESHOLD"), Meta(gt=0, le=1)] = 0.8
    automatic: Annotated[bool, Env("AUTOSCALE")] = True
    target_wait_seconds: Annotated[float, Env("TARGET_WAIT_SECONDS"), Meta(ge=0.1, le=3600)] = 2.0
    cooldown_seconds: Annotated[float, Env("COOLDOWN_SECONDS"), Meta(ge=1, le=3600)] = 15.0
    manual_hold_seconds: Annotated[
        float, Env("MANUAL_HOLD_SECONDS"), Meta(ge=1, le=_YEAR_SECONDS)
    ] = 600.0
    answer_seconds: Annotated[float, Env("SCALE_ANSWER_SECONDS"), Meta(ge=1, le=300)] = 30.0
    drain_seconds: Annotated[float, Env("DRAIN_SECONDS"), Meta(gt=0, le=86_400)] = 300.0


class Kubernetes(msgspec.Struct, kw_only=True, frozen=True):
    """The Deployment whose pods are the workers, where FLEET_DRIVER is kubernetes."""

    namespace: Annotated[str, Env("KUBERNETES_NAMESPACE"), Meta(min_length=1)] = "default"
    deployment: Annotated[str, Env("KUBERNETES_DEPLOYMENT"), Meta(min_length=1)] = "celery-worker"


class Nats(msgspec.Struct, kw_only=True, frozen=True):
    """The embedded server, and how to log in to an external one."""

    server_bin: Annotated[str, Env("NATS_SERVER_BIN")] = ""
    port: Annotated[int, Env("NATS_PORT"), Meta(ge=1, le=65535)] = 4222
    sync_interval: Annotated[
        str, Env("NATS_SYNC_INTERVAL"), Meta(pattern=r"^(always|[1-9][0-9]*(ms|s|m|h))$")
    ] = "1s"
    replicas: Annotated[int, Env("NATS_REPLICAS"), Meta(ge=1, le=5)] = 1
    user: Annotated[str, Env("NATS_USER")] = ""
    password: Annotated[str, Env("NATS_PASSWORD", secret=True)] = ""
    token: Annotated[str, Env("NATS_TOKEN", secret=True)] = ""
    nkey_seed_file: Annotated[str, Env("NATS_NKEY_SEED_FILE")] = ""
    credentials_file: Annotated[str, Env("NATS_CREDENTIALS_FILE")] = ""
    tls_ca_file: Annotated[str, Env("NATS_TLS_CA_FILE")] = ""
    tls_cert_file: Annotated[str, Env("NATS_TLS_CERT_FILE")] = ""
    tls_key_file: Annotated[str, Env("NATS_TLS_KEY_FILE")] = ""
    tls_handshake_first: Annotated[bool, Env("NATS_TLS_HANDSHAKE_FIRST")] = False


class Flower(msgspec.Struct, kw_only=True, frozen=True):
    """The Flower dashboard that `python -m bridge up` starts."""

    enabled: Annotated[bool, Env("FLOWER_ENABLED")] = True
    host: Annotated[str, Env("FLOWER_HOST"), Meta(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Env("FLOWER_PORT"), Meta(ge=0, le=65535)] = 5555
    basic_auth: Annotated[str, Env("FLOWER_BASIC_AUTH", secret=True)] = ""


class Settings(msgspec.Struct, kw_only=True, frozen=True):
    """Settings of the whole service. Times are seconds, sizes bytes; "" means not set."""

    environment: Annotated[Environment, Env("ENVIRONMENT")] = "development"
    log_level: Annotated[LogLevel, Env("LOG_LEVEL")] = "INFO"
    host: Annotated[str, Env("API_HOST"), Meta(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Env("API_PORT"), Meta(ge=0, le=65535)] = 8090
    web_workers: Annotated[int, Env("WEB_WORKERS"), Meta(ge=1, le=64)] = 2
    max_body_bytes: Annotated[int, Env("MAX_BODY_BYTES"), Meta(ge=1024, le=64 << 20)] = 1 << 20
    api_keys_file: Annotated[str, Env("API_KEYS_FILE")] = ""
    allow_unauthenticated: Annotated[bool, Env("ALLOW_UNAUTHENTICATED")] = False
    show_tracebacks: Annotated[bool, Env("SHOW_TRACEBACKS")] = False
    worker_count: Annotated[int, Env("WORKER_COUNT"), Meta(ge=1, le=1000)] = 3
    worker_type: Annotated[
        str, Env("WORKER_TYPE"), Meta(pattern="^[A-Za-z0-9_-]+$", max_length=64)
    ] = GENERAL_WORKER_TYPE
    worker_pool: Annotated[WorkerPool, Env("WORKER_POOL")] = "prefork"
    worker_queues: Annotated[str, Env("WORKER_QUEUES")] = ""
    fleet_driver: Annotated[FleetDriver, Env("FLEET_DRIVER")] = "processes"
    worker_host: Annotated[str, Env("WORKER_HOST"), Meta(pattern=r"^[^@\s]*$")] = ""
    max_concurrent_tasks: Annotated[int, Env("MAX_CONCURRENT_TASKS"), Meta(ge=1, le=1000)] = 5
    celery_app: Annotated[str, Env("CELERY_APP"), Meta(min_length=1)] = "tasks.app:app"
    ack_wait_seconds: Annotated[float, Env("ACK_WAIT_SECONDS"), Meta(ge=1, le=3600)] = 30.0
    result_expires_seconds: Annotated[
        float, Env("RESULT_EXPIRES_SECONDS"), Meta(ge=1, le=_YEAR_SECONDS)
    ] = 86_400.0
    shutdown_seconds: Annotated[float, Env("SHUTDOWN_SECONDS"), Meta(gt=0, le=3600)] = 6.0
    data_dir: Annotated[str, Env("DATA_DIR"), Meta(min_length=1)] = "data"
    nats_url: Annotated[str, Env("NATS_URL")] = ""
    scaling: Scaling = Scaling()
    kubernetes: Kubernetes = Kubernetes()
    nats: Nats = Nats()
    flower: Flower = Flower()

    @property
    def server_url(self) -> str:
        """URL of the NATS server: the one that is named, or where the embedded one listens."""
        return self.nats_url or f"nats://127.0.0.1:{self.nats.port}"

    @property
    def queues(self) -> tuple[str, ...]:
        """Queues the workers serve; empty means the one the Celery app calls its default."""
        if self.worker_queues:
            return tuple(name.strip() for name in self.worker_queues.split(",") if name.strip())
        return () if self.worker_type == GENERAL_WORKER_TYPE else (self.worker_type,)

    def child_environ(self) -> dict[str, str]:
        """Return the environment variables that give a child process these same settings.

        Add it to the parent's own environment. It carries secrets: not for showing.
        """
        values = ((field, field.read(self)) for field in FIELDS)
        return {field.env: _environ_form(value) for field, value in values if value != ""}


class Field(NamedTuple):
    """One setting, as the table holds it."""

    #: names from the root, as nested in YAML: ``("scaling", "min_workers")``
    path: tuple[str, ...]
    env: str
    secret: bool
    type: Any
    default: Any
    #: what values may be, in words
    allowed: str

    @property
    def key(self) -> str:
        """Dotted name, for instance ``scaling.min_workers``."""
        return ".".join(self.path)

    def read(self, settings: Settings) -> Any:
        """Return the value of this setting."""
        value: Any = settings
        for name in self.path:
            value = getattr(value, name)
        return value


def _environ_form(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _describe(kind: Any) -> str:
    match msgspec.inspect.type_info(kind):
        case msgspec.inspect.LiteralType(values=values):
            return "one of " + ", ".join(map(str, values))
        case msgspec.inspect.BoolType():
            return "true or false"
        case msgspec.inspect.IntType(ge=low, le=high):
            return f"a whole number from {low} to {high}"
        case msgspec.inspect.FloatType(gt=above, ge=low, le=high):
            start = f"above {above}" if above is not None else f"from {low}"
            return f"a number {start}" + ("" if high is None else f" to {high}")
        case msgspec.inspect.StrType(pattern=pattern, min_length=shortest):
            if pattern:
                return f"text like {pattern}"
            return "text, not empty" if shortest else "text"
        case other:
            raise TypeError(f"config.schema cannot describe {other!r}: add a case to _describe")


def _fields(struct: type[msgspec.Struct], path: tuple[str, ...] = ()) -> Iterator[Field]:
    hints = get_type_hints(struct, include_extras=True)
    for info in msgspec.structs.fields(struct):
        hint, here = hints[info.name], (*path, info.name)
        if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
            yield from _fields(hint, here)
            continue
        env = next(extra for extra in get_args(hint) if isinstance(extra, Env))
        yield Field(here, env.name, env.secret, hint, info.default, _describe(hint))


#: Every setting, in the order of the classes above.
FIELDS: Final = tuple(_fields(Settings))
