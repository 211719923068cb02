"""Every way to log in, each against a real server that is configured so."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nkeys
import pytest

from bridge.errors import NatsAuthError, NatsConnectionError, NatsPermissionError
from bridge.names import Names
from bridge.wire import Bucket, Connection, ConnectOptions, JetStream, Message
from tests.support.accounts import Identity, Operator
from tests.support.certificates import Authority
from tests.support.greenlets import PATCHES, assert_works_green
from tests.support.nats import NatsServer
from tests.support.wire import PATIENCE_SECONDS, connected, read_until

#: The time limit of a connection attempt, and what the machine may add to it.
CONNECT_SECONDS = 2.0
MARGIN_SECONDS = 2.0

StartServer = Callable[[str], NatsServer]


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[StartServer]:
    """Starts one server with further configuration text."""
    servers: list[NatsServer] = []

    def start(extra: str) -> NatsServer:
        server = NatsServer(tmp_path / "nats", extra=extra)
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority that no server trusts."""
    return Authority(tmp_path_factory.mktemp("stranger"))


def options(server: NatsServer, scheme: str = "nats", **fields: Any) -> ConnectOptions:
    url = f"{scheme}://127.0.0.1:{server.port}"
    return ConnectOptions.from_url(url, connect_timeout=CONNECT_SECONDS, **fields)


def assert_works(given: ConnectOptions) -> None:
    """Log in, and do everything a stored task needs."""
    connection = Connection(given)
    connection.connect()
    try:
        js = JetStream(connection)
        js.ensure_topology(Names())
        bucket = Bucket(js, Names().bucket("tasks"))
        bucket.put("key", b"value")
        assert bucket.get("key") == b"value"
    finally:
        connection.close()


def refusal(given: ConnectOptions, kind: type[NatsConnectionError] = NatsAuthError) -> str:
    """Return the message of the expected refusal, which must come in time."""
    connection = Connection(given)
    started = time.monotonic()
    with pytest.raises(kind) as caught:
        connection.connect()
    assert time.monotonic() - started < CONNECT_SECONDS + MARGIN_SECONDS
    assert not connection.connected
    return str(caught.value)


def test_user_and_password(start_server: StartServer) -> None:
    """The right password works; a wrong one or none is refused with the settings to check."""
    server = start_server("authorization { user: u, password: p }\n")

    assert_works(options(server, user="u", password="p"))
    assert "NATS_PASSWORD" in refusal(options(server, user="u", password="wrong"))
    assert "NATS_USER" in refusal(options(server))


def test_token(start_server: StartServer) -> None:
    """The right token works, also as the lone user part of a URL; a wrong one is refused."""
    server = start_server("authorization { token: s3cret }\n")

    assert_works(ConnectOptions.from_url(f"nats://s3cret@127.0.0.1:{server.port}"))
    message = refusal(options(server, token="wr0ng"))
    assert "NATS_TOKEN" in message
    assert "wr0ng" not in message


def test_nkey(start_server: StartServer, tmp_path: Path) -> None:
    """The seed of a known nkey works; another seed is refused."""
    known, unknown = (Identity(nkeys.PREFIX_BYTE_USER) for _ in range(2))
    for name, identity in (("known", known), ("unknown", unknown)):
        (tmp_path / name).write_text(identity.seed)
    server = start_server(f"authorization {{ users: [ {{ nkey: {known.public} }} ] }}\n")

    assert_works(options(server, nkey_seed_file=str(tmp_path / "known")))
    message = refusal(options(server, nkey_seed_file=str(tmp_path / "unknown")))
    assert "NATS_NKEY_SEED_FILE" in message


def test_credentials_file(start_server: StartServer, tmp_path: Path) -> None:
    """A .creds file of a trusted operator works; an expired or a foreign one is refused."""
    operator = Operator()
    server = start_server(operator.server_config)
    good = operator.write_credentials(tmp_path / "good.creds")
    expired = operator.write_credentials(tmp_path / "old.creds", int(time.time()) - 60)
    foreign = Operator().write_credentials(tmp_path / "foreign.creds")

    assert_works(options(server, credentials_file=str(good)))
    assert "NATS_CREDENTIALS_FILE" in refusal(options(server, credentials_file=str(expired)))
    assert "NATS_CREDENTIALS_FILE" in refusal(options(server, credentials_file=str(foreign)))


def _drain_for_ever(connection: Connection) -> None:
    while True:  # the server's own pings come first
        connection.drain(timeout=10)


def test_login_that_expires_ends_the_connection(start_server: StartServer, tmp_path: Path) -> None:
    """When the server revokes a login in use, the reader learns it is about the login."""
    operator = Operator()
    server = start_server(operator.server_config)
    creds = operator.write_credentials(tmp_path / "short.creds", int(time.time()) + 2)
    connection = Connection(options(server, credentials_file=str(creds)))
    connection.connect()

    try:
        with pytest.raises(NatsAuthError, match="NATS_CREDENTIALS_FILE"):
            _drain_for_ever(connection)
        assert not connection.connected
    finally:
        connection.close()


def test_permission_that_lacks_is_told_to_who_waits(start_server: StartServer) -> None:
    """A refused publish fails its request at once, by name, and no other; a subscription the next.

    The connection goes on.
    """
    server = start_server(
        "authorization { users: [ { user: u, password: p, permissions: {\n"
        '  publish: { deny: "secret" }, subscribe: { deny: "hidden" } } } ] }\n'
    )
    login = {"user": "u", "password": "p"}
    asked: list[Message] = []
    with connected(server.url, **login) as connection, connected(server.url, **login) as service:
        service.subscribe("slow", asked.append)
        service.flush()
        with ThreadPoolExecutor(1) as threads:
            other = threads.submit(connection.request, "slow", timeout=PATIENCE_SECONDS)
            read_until(service, lambda: asked)  # the other thread waits, and reads for both
            with pytest.raises(NatsPermissionError, match='Publish to "secret"'):
                connection.request("secret", timeout=PATIENCE_SECONDS)
            service.publish(asked[0].reply, b"late")
            assert other.result(PATIENCE_SECONDS).payload == b"late"
        connection.subscribe("hidden", asked.append)
        with pytest.raises(NatsPermissionError, match='Subscription to "hidden"'):
            connection.request("slow", timeout=PATIENCE_SECONDS)  # nobody waits for a subscription
        connection.flush()
        assert connection.connected


def tls_config(authority: Authority, more: str = "", names: str = "IP:127.0.0.1") -> str:
    certificate, key = authority.issue("server", names)
    ca = authority.certificate
    return f'tls {{ cert_file: "{certificate}", key_file: "{key}", ca_file: "{ca}", {more} }}\n'


@pytest.mark.parametrize("first", [False, True], ids=["after-info", "handshake-first"])
def test_tls(
    start_server: StartServer, authority: Authority, stranger: Authority, first: bool
) -> None:
    """TLS works with the right CA; a server of another CA is not trusted, and says how to."""
    server = start_server(tls_config(authority, f"handshake_first: {str(first).lower()}"))
    given = {"tls_handshake_first": first}

    assert_works(options(server, tls_ca_file=str(authority.certificate), **given))
    assert_works(options(server, "tls", tls_ca_file=str(authority.certificate), **given))
    for wrong in (str(stranger.certificate), None):
        message = refusal(options(server, tls_ca_file=wrong, **given), NatsConnectionError)
        assert "NATS_TLS_CA_FILE" in message


def test_certificate_for_another_host_is_refused(
    start_server: StartServer, authority: Authority
) -> None:
    """A valid certificate of a wrong host name does not count."""
    server = start_server(tls_config(authority, names="DNS:elsewhere.example"))

    message = refusal(options(server, tls_ca_file=str(authority.certificate)), NatsConnectionError)
    assert "host name" in message


@pytest.mark.parametrize("first", [False, True], ids=["after-info", "handshake-first"])
def test_client_certificate(
    start_server: StartServer, authority: Authority, stranger: Authority, first: bool
) -> None:
    """A server that verifies clients takes a certificate of its CA and no other."""
    server = start_server(
        tls_config(authority, f"verify: true, handshake_first: {str(first).lower()}")
    )
    given = {"tls_ca_file": str(authority.certificate), "tls_handshake_first": first}
    own, foreign = authority.issue("client"), stranger.issue("client")

    assert_works(options(server, tls_cert_file=str(own[0]), tls_key_file=str(own[1]), **given))
    assert "NATS_TLS_CERT_FILE" in refusal(options(server, **given))
    wrong = {"tls_cert_file": str(foreign[0]), "tls_key_file": str(foreign[1])}
    assert "NATS_TLS_CERT_FILE" in refusal(options(server, **given, **wrong))


def test_tls_that_only_we_want_is_not_given_up(start_server: StartServer) -> None:
    """Asked for TLS, we do not send a login in clear text to a server without it."""
    server = start_server("")

    message = refusal(options(server, "tls", user="u", password="p"), NatsConnectionError)
    assert "offers no TLS" in message


def test_handshake_first_on_one_side_only_is_explained(
    start_server: StartServer, authority: Authority
) -> None:
    """Each half of the misunderstanding ends in time with the setting that causes it."""
    server = start_server(tls_config(authority, "handshake_first: true"))
    ca = str(authority.certificate)

    message = refusal(options(server, tls_ca_file=ca), NatsConnectionError)
    assert "NATS_TLS_HANDSHAKE_FIRST" in message


def test_handshake_first_towards_a_plain_server_is_explained(
    start_server: StartServer, authority: Authority
) -> None:
    """A server without TLS answers a handshake with INFO, which is told as what it is."""
    server = start_server("")
    given = {"tls_ca_file": str(authority.certificate), "tls_handshake_first": True}

    assert "NATS_TLS_HANDSHAKE_FIRST" in refusal(options(server, **given), NatsConnectionError)


def test_large_payloads_over_tls(start_server: StartServer, authority: Authority) -> None:
    """Many TLS records make one message, both ways, while another thread's pings mix in."""
    server = start_server(tls_config(authority))
    connection = Connection(options(server, tls_ca_file=str(authority.certificate)))
    connection.connect()
    received: list[bytes] = []
    payload = bytes(range(256)) * (7 * 4096)
    try:
        connection.subscribe("big", lambda message: received.append(message.payload))
        for _ in range(3):
            connection.publish("big", payload)
            connection.check_peer(5.0)
        connection.flush(timeout=20)
        assert received == [payload] * 3
    finally:
        connection.close()


@pytest.mark.parametrize("library", PATCHES)
def test_tls_under_greenlets(start_server: StartServer, authority: Authority, library: str) -> None:
    """Each library has sockets for TLS of its own, which are closed in their own way."""
    server = start_server(tls_config(authority))

    assert_works_green(library, server.url, str(authority.certificate))
