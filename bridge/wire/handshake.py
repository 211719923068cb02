"""The first words on a connection: INFO, TLS, CONNECT, and whether the server lets us in."""

from __future__ import annotations

import socket
import ssl
import time
from collections import deque
from typing import Any, NamedTuple

from bridge.errors import NatsAuthError, NatsConnectionError
from bridge.wire.auth import login_fields
from bridge.wire.options import ENVIRONMENT, LOGIN_FIELDS, ConnectOptions
from bridge.wire.protocol import (
    PING,
    PONG,
    Control,
    Frame,
    Info,
    Parser,
    ProtocolError,
    ServerError,
    encode_connect,
)

_READ_BYTES = 64 * 1024
_AUTH_ERRORS = ("authorization", "user authentication", "account authentication")
_LOGIN_HINT = "check the login in the URL or in " + ", ".join(ENVIRONMENT[f] for f in LOGIN_FIELDS)
_FIRST_HINT = "do NATS_TLS_HANDSHAKE_FIRST and its handshake_first agree?"
_CLIENT_CERTIFICATE_HINT = (
    "set NATS_TLS_CERT_FILE and NATS_TLS_KEY_FILE to a certificate that the server trusts"
)


class Greeted(NamedTuple):
    """A connection that is logged in."""

    #: non-blocking
    socket: socket.socket
    info: dict[str, Any]
    parser: Parser
    #: what came after the server's consent
    frames: deque[Frame]


def greet(options: ConnectOptions, host: str, port: int) -> Greeted:
    """Connect and log in within ``options.connect_timeout``.

    Raises NatsAuthError when the server refuses us, NatsConnectionError when there is none or
    it cannot be trusted, ConfigError when a file that `options` names cannot be used.
    """
    place = f"{host}:{port}"
    try:
        return _Handshake(options, host, port).run()
    except NatsConnectionError:
        raise
    except ssl.SSLCertVerificationError as error:
        raise NatsConnectionError(
            f"the certificate of {place} is not valid here ({error.verify_message}): set "
            "NATS_TLS_CA_FILE to the CA that signed it, and use a host name it is made for"
        ) from error
    except ssl.SSLError as error:
        raise NatsConnectionError(
            f"TLS with {place} failed ({error}): is it a NATS server with TLS, and {_FIRST_HINT}"
        ) from error
    except TimeoutError as error:
        raise NatsConnectionError(
            f"{place} did not answer as NATS within {options.connect_timeout:g} s: is it a NATS "
            f"server, and {_FIRST_HINT}"
        ) from error
    except (OSError, UnicodeError, ProtocolError) as error:
        raise NatsConnectionError(
            f"no NATS server at {place} ({error}): start it or correct the URL"
        ) from error


def complaint(text: str) -> NatsConnectionError:
    """Return the exception for an -ERR that ends the connection."""
    if text.lower().startswith(_AUTH_ERRORS):
        return NatsAuthError(f"NATS refused the login ({text}): {_LOGIN_HINT}")
    return NatsConnectionError(f"NATS ended the connection: {text}")


class _Handshake:
    """One attempt at one server, on a blocking socket with a deadline."""

    def __init__(self, options: ConnectOptions, host: str, port: int) -> None:
        self._options = options
        self._host = host
        self._deadline = time.monotonic() + options.connect_timeout
        self._socket = socket.create_connection((host, port), options.connect_timeout)
        self._parser = Parser()
        self._frames: deque[Frame] = deque()
        self._info: dict[str, Any] = {}

    def run(self) -> Greeted:
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            self._secure()
            self._login()
            self._socket.setblocking(False)
        except (ssl.SSLError, ConnectionError) as error:
            self._socket.close()
            self._blame_certificate(error)
            raise
        except BaseException:
            self._socket.close()
            raise
        return Greeted(self._socket, self._info, self._parser, self._frames)

    def _secure(self) -> None:
        """Get INFO, and TLS where either side wants it."""
        first = self._options.tls_handshake_first
        if first:
            self._start_tls()
        while not self._info:
            self._answer(self._next_frame())
        if first or not (self._options.tls or self._info.get("tls_required")):
            return
        if not (self._info.get("tls_required") or self._info.get("tls_available")):
            raise NatsConnectionError(
                f"{self._host} offers no TLS: use nats:// or switch TLS on in the server"
            )
        # Nothing that came in clear text may count as said under TLS.
        self._parser, self._frames = Parser(), deque()
        self._start_tls()

    def _start_tls(self) -> None:
        self._limit_time()
        context = self._options.ssl_context()
        self._socket = context.wrap_socket(self._socket, server_hostname=self._host)

    def _login(self) -> None:
        fields = {
            "verbose": False,
            "pedantic": False,
            "lang": "python-celery-nats-bridge",
            "version": "1",
            "protocol": 1,
            "headers": True,
            "no_responders": True,
            "name": self._options.name,
            **login_fields(self._options, self._info.get("nonce", "")),
        }
        self._send(encode_connect(fields) + PING)
        while (frame := self._next_frame()) != Control(b"PONG"):
            self._answer(frame)

    def _blame_certificate(self, error: OSError) -> None:
        """In TLS 1.3 a server that does not accept our certificate says so after the handshake."""
        if isinstance(error, NatsConnectionError) or not isinstance(self._socket, ssl.SSLSocket):
            return
        if isinstance(error, ssl.SSLError) or self._info.get("tls_verify"):
            raise NatsAuthError(
                f"{self._host} does not accept our TLS certificate ({error}): "
                f"{_CLIENT_CERTIFICATE_HINT}"
            ) from error

    def _answer(self, frame: Frame) -> None:
        if isinstance(frame, Info):
            self._info = frame.fields
        elif isinstance(frame, ServerError):
            raise complaint(frame.text)
        elif frame == Control(b"PING"):
            self._send(PONG)

    def _next_frame(self) -> Frame:
        while not self._frames:
            self._limit_time()
            data = self._socket.recv(_READ_BYTES)
            if not data:
                said = "" if self._info else f" without a word; {_FIRST_HINT}"
                raise ConnectionResetError(f"it closed the connection{said}")
            self._frames.extend(self._parser.feed(data))
        return self._frames.popleft()

    def _send(self, data: bytes) -> None:
        self._limit_time()
        self._socket.sendall(data)

    def _limit_time(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)
