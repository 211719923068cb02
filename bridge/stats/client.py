"""The controller's connection: nats-py, so that the official client reads what ours writes.

It never reconnects by itself: what watches opens another, and so nothing that was meant for a
broken connection is sent later.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js.errors import APIError

from bridge.errors import NatsConnectionError, NatsTimeout
from bridge.logs import get_logger
from bridge.stats.pause import pause
from bridge.wire import ConnectOptions, JetStreamError
from bridge.wire.refusals import is_operation_refused

REQUEST_TIMEOUT_SECONDS: Final = 2.0
_PING_SECONDS: Final = 5
_RECONNECT_SECONDS: Final = 0.5
_END_OF_BATCH: Final = "204"
_NOT_FOUND: Final = "404"
_WRONG_LAST_SEQUENCE: Final = 10071

log = get_logger("bridge.stats")


@contextlib.asynccontextmanager
async def session(options: ConnectOptions) -> AsyncIterator[Client]:
    """Connect for the length of a ``with`` block. Raises NatsConnectionError."""
    client = Client()
    try:
        async with asyncio.timeout(options.connect_timeout * len(options.servers) + 1):
            await client.connect(**_arguments(options))
    except (NatsError, OSError, TimeoutError) as error:
        await client.close()
        raise NatsConnectionError(f"cannot connect to NATS: {error}") from error
    try:
        yield client
    finally:
        await client.close()


async def keep_connected(
    options: ConnectOptions,
    work: Callable[[Client], Awaitable[None]],
    stop: asyncio.Event,
    *,
    part: str,
    prepare: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Await `work` on a connection, and again on the next one when that is lost, until `stop`.

    `prepare` is awaited before each connection and may raise what lost connections raise. `part`
    tells the log who is without NATS, once for each outage.
    """
    lost = False
    while not stop.is_set():
        try:
            if prepare is not None:
                await prepare()
            async with session(options) as client:
                if lost:
                    log.info("with NATS again", part=part)
                lost = False
                await work(client)
        except (NatsConnectionError, JetStreamError, LookupError) as error:
            if not lost:
                log.warning("without NATS", part=part, reason=str(error))
            lost = True
            await pause(_RECONNECT_SECONDS, stop)


def _arguments(options: ConnectOptions) -> dict[str, Any]:
    """Return the arguments of nats-py's connect for our options."""
    secured = options.tls or options.tls_ca_file or options.tls_cert_file
    scheme = "tls" if secured else "nats"
    return {
        "servers": [f"{scheme}://{_bracketed(host)}:{port}" for host, port in options.servers],
        "name": options.name,
        "user": options.user,
        "password": options.password,
        "token": options.token,
        "nkeys_seed": options.nkey_seed_file,
        "user_credentials": options.credentials_file,
        "tls": options.ssl_context() if secured else None,
        "tls_handshake_first": options.tls_handshake_first,
        "connect_timeout": options.connect_timeout,
        "allow_reconnect": False,
        "max_reconnect_attempts": 1,
        "reconnect_time_wait": 0.1,
        "ping_interval": _PING_SECONDS,
        "error_cb": _log_error,
    }


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


async def _log_error(error: Exception) -> None:
    if is_operation_refused(str(error)):
        # Who awaits an answer only sees that none comes, and an answer of ours goes nowhere.
        log.warning("NATS refused an operation", reason=str(error))
        return
    # What awaits an answer gets the error too; this is the reason to be found beside it.
    log.debug("nats connection error", reason=str(error))


async def request(client: Client, subject: str, body: Any = None) -> dict[str, Any]:
    """Call a JSON API of the server.

    Raises NatsConnectionError, NatsTimeout, or LookupError when the server answers an error.
    """
    payload = b"" if body is None else msgspec.json.encode(body)
    try:
        reply = await client.request(subject, payload, timeout=REQUEST_TIMEOUT_SECONDS)
    except TimeoutError as error:
        raise NatsTimeout(f"NATS did not answer {subject} in time") from error
    except NatsError as error:
        raise NatsConnectionError(f"NATS did not answer {subject}: {error}") from error
    answer: dict[str, Any] = msgspec.json.decode(reply.data)
    if "error" in answer:
        raise LookupError(f"{subject}: {answer['error'].get('description', answer['error'])}")
    return answer


async def direct_get(client: Client, stream: str, query: dict[str, Any]) -> list[Msg]:
    """Return the messages that a batched direct get (ADR-31 of NATS) finds, maybe none.

    Raises NatsConnectionError, NatsTimeout.
    """
    inbox = client.new_inbox()
    found: list[Msg] = []
    try:
        replies = await client.subscribe(inbox)
        try:
            payload = msgspec.json.encode(query)
            await client.publish(f"$JS.API.DIRECT.GET.{stream}", payload, reply=inbox)
            while True:
                message = await replies.next_msg(REQUEST_TIMEOUT_SECONDS)
                status = (message.headers or {}).get("Status")
                if status in {_END_OF_BATCH, _NOT_FOUND}:
                    return found
                if status is not None:
                    raise NatsConnectionError(f"direct get from {stream} failed with {status}")
                found.append(message)
        finally:
            if client.is_connected:
                await replies.unsubscribe()
    except TimeoutError as error:
        raise NatsTimeout(f"stream {stream} did not answer in time") from error
    except NatsError as error:
        raise NatsConnectionError(f"stream {stream} cannot be read: {error}") from error


async def store(
    client: Client, subject: str, value: bytes, headers: dict[str, str] | None = None
) -> int | None:
    """Store a message and return its sequence; None when the expected last one is not there.

    Raises NatsConnectionError, NatsTimeout.
    """
    js = client.jetstream(timeout=REQUEST_TIMEOUT_SECONDS)
    try:
        return (await js.publish(subject, value, headers=headers)).seq
    except APIError as error:
        if error.err_code == _WRONG_LAST_SEQUENCE:
            return None
        raise NatsConnectionError(f"NATS did not store {subject}: {error}") from error
    except TimeoutError as error:
        raise NatsTimeout(f"NATS did not confirm {subject} in time") from error
    except NatsError as error:
        raise NatsConnectionError(f"NATS did not store {subject}: {error}") from error


def header(message: Msg, name: str) -> str:
    """Return a header that the server sets on what a direct get finds."""
    return (message.headers or {}).get(name, "")


def is_marker(message: Msg) -> bool:
    """Tell what stands for a deleted or expired value from a value."""
    return bool(header(message, "KV-Operation") or header(message, "Nats-Marker-Reason"))
