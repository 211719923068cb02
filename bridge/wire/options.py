"""How to reach and greet a NATS server."""

from __future__ import annotations

import os
import ssl
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

import msgspec

from bridge.errors import ConfigError
from bridge.masking import mask_text

DEFAULT_PORT = 4222
_SCHEMES = {"nats", "tls"}

#: Field of ConnectOptions -> environment variable that fills it where the program does not.
ENVIRONMENT = {
    "user": "NATS_USER",
    "password": "NATS_PASSWORD",
    "token": "NATS_TOKEN",
    "nkey_seed_file": "NATS_NKEY_SEED_FILE",
    "credentials_file": "NATS_CREDENTIALS_FILE",
    "tls_ca_file": "NATS_TLS_CA_FILE",
    "tls_cert_file": "NATS_TLS_CERT_FILE",
    "tls_key_file": "NATS_TLS_KEY_FILE",
    "tls_handshake_first": "NATS_TLS_HANDSHAKE_FIRST",
}
#: Fields that say who we are; the ways to log in exclude one another.
LOGIN_FIELDS = ("user", "password", "token", "nkey_seed_file", "credentials_file")
#: Fields that Celery's transport options may carry under the same names.
TRANSPORT_OPTIONS = (
    "token",
    "nkey_seed_file",
    "credentials_file",
    "tls_ca_file",
    "tls_cert_file",
    "tls_key_file",
    "tls_handshake_first",
)
_TRUE = {"1", "true", "yes", "on"}


class ConnectOptions(msgspec.Struct, kw_only=True, frozen=True):
    """Servers, credentials, TLS and time limits of one connection. Times in seconds."""

    servers: tuple[tuple[str, int], ...]
    name: str = "celery-nats-bridge"
    user: str | None = None
    password: str | None = None
    token: str | None = None
    #: file that holds an nkey seed (`SU...`)
    nkey_seed_file: str | None = None
    #: `.creds` file with a user JWT and its seed
    credentials_file: str | None = None
    tls: bool = False
    tls_ca_file: str | None = None
    tls_cert_file: str | None = None
    tls_key_file: str | None = None
    #: the server is configured with `handshake_first`
    tls_handshake_first: bool = False
    connect_timeout: float = 2.0
    #: how long a write may find the socket full before the connection counts as broken
    write_timeout: float = 10.0

    @classmethod
    def from_url(cls, url: str, **overrides: Any) -> ConnectOptions:
        """Read ``nats://[user:password@|token@|:token@]host[:port][,host…][/vhost]``.

        Schemes are ``nats`` and ``tls``. What neither the URL nor `overrides` sets comes from
        ENVIRONMENT; its login counts only where they name none. Raises ConfigError on a URL
        that is none.
        """
        parts = _split(url)
        try:
            servers = tuple(
                (part.hostname or "localhost", part.port or DEFAULT_PORT) for part in parts
            )
        except ValueError as error:
            raise ConfigError(f"not a NATS URL: {mask_text(url)} ({error})") from error
        if any(part.scheme not in _SCHEMES for part in parts):
            raise ConfigError(
                f"not a NATS URL: {mask_text(url)}; write nats://host:port or tls://…"
            )
        given = {**_login(parts[0].username, parts[0].password), **overrides}
        fields: dict[str, Any] = _from_environment()
        if any(given.get(name) for name in LOGIN_FIELDS):
            fields = {name: value for name, value in fields.items() if name not in LOGIN_FIELDS}
        fields.update(given)
        fields.setdefault("tls", parts[0].scheme == "tls" or bool(fields.get("tls_ca_file")))
        return cls(servers=servers, **fields)

    def __repr__(self) -> str:
        # A struct's own would show the password.
        return f"<ConnectOptions {self.name} {self.servers}>"

    def ssl_context(self) -> ssl.SSLContext:
        """Return the TLS context. Raises ConfigError when a file cannot be read."""
        try:
            context = ssl.create_default_context(cafile=self.tls_ca_file)
            if self.tls_cert_file:
                context.load_cert_chain(self.tls_cert_file, self.tls_key_file)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"the TLS files for NATS cannot be used ({error}): check NATS_TLS_CA_FILE, "
                "NATS_TLS_CERT_FILE and NATS_TLS_KEY_FILE"
            ) from error
        return context


def vhost_of(url: str) -> str:
    """Return the virtual host of a URL as `ConnectOptions.from_url` takes it, "" where it has none.

    Raises ConfigError on a URL that is none.
    """
    return _split(url)[-1].path.strip("/")


def broker_url(url: str) -> str:
    """Return a URL of several servers as kombu takes it: one whole URL each, separated by ``;``.

    Raises ConfigError on a URL that is none.
    """
    parts = _split(url)
    login, at, _ = parts[0].netloc.rpartition("@")
    return ";".join(
        part._replace(
            netloc=part.netloc if "@" in part.netloc else f"{login}{at}{part.netloc}",
            path=parts[-1].path,
        ).geturl()
        for part in parts
    )


def _split(url: str) -> list[SplitResult]:
    """Return the parts of each server's URL. Raises ConfigError."""
    try:
        return [urlsplit(server) for server in _servers(url)]
    except ValueError as error:
        raise ConfigError(f"not a NATS URL: {mask_text(url)} ({error})") from error


def _servers(url: str) -> list[str]:
    """Return one URL per server; the first one's scheme holds for those without."""
    first, *others = url.split(",")
    scheme, *_ = first.partition("://")
    servers = [first, *(o if "://" in o else f"{scheme}://{o}" for o in others)]
    if any(not server.rpartition("://")[2] for server in servers[1:]):
        raise ValueError("a server name is missing beside a comma")
    return servers


def _from_environment() -> dict[str, Any]:
    found: dict[str, Any] = {
        field: value for field, name in ENVIRONMENT.items() if (value := os.environ.get(name))
    }
    if "tls_handshake_first" in found:
        found["tls_handshake_first"] = found["tls_handshake_first"].lower() in _TRUE
    return found


def _login(user: str | None, password: str | None) -> dict[str, str]:
    if user is None:
        return {}
    if password is None:
        # NATS's own convention: a lone user part is a token.
        return {"token": unquote(user)}
    if not user:
        # Celery shows users and hides passwords, so a token is better written as one.
        return {"token": unquote(password)}
    return {"user": unquote(user), "password": unquote(password)}
