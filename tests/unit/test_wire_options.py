"""What a URL, the environment and a program say about a connection, and who wins."""

from __future__ import annotations

from pathlib import Path

import nkeys
import pytest

from bridge.errors import ConfigError
from bridge.wire import ConnectOptions
from bridge.wire.auth import login_fields, read_credentials
from bridge.wire.options import broker_url, vhost_of


@pytest.mark.parametrize(
    ("url", "servers"),
    [
        ("nats://h", (("h", 4222),)),
        ("nats://", (("localhost", 4222),)),
        ("nats://h:1/vhost", (("h", 1),)),
        ("nats://[::1]:5", (("::1", 5),)),
        ("nats://a:1,b,nats://c:3", (("a", 1), ("b", 4222), ("c", 3))),
        ("nats://u:p@a,u:p@b:2/vhost", (("a", 4222), ("b", 2))),
    ],
)
def test_servers_of_a_url(url: str, servers: tuple[tuple[str, int], ...]) -> None:
    """One or more hosts, with and without a port, scheme or path."""
    assert ConnectOptions.from_url(url).servers == servers


@pytest.mark.parametrize(
    ("url", "vhost"),
    [
        ("nats://h", ""),
        ("nats://h:1/shop", "shop"),
        ("nats://a:1,b:2", ""),
        ("nats://a:1,b:2/shop", "shop"),
        ("nats://a:1,nats://b:2/shop", "shop"),
    ],
)
def test_virtual_host_of_a_url(url: str, vhost: str) -> None:
    """It stands behind the last server, which need not repeat the scheme."""
    assert vhost_of(url) == vhost


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("nats://h:1/shop", "nats://h:1/shop"),
        ("nats://a:1,b", "nats://a:1;nats://b"),
        ("tls://u:p@a,[::1]:2/shop", "tls://u:p@a/shop;tls://u:p@[::1]:2/shop"),
        ("nats://t@a,nats://t@b", "nats://t@a;nats://t@b"),
    ],
)
def test_broker_url_has_login_and_virtual_host_for_each_server(url: str, expected: str) -> None:
    """What kombu takes one server at a time is complete each time."""
    assert broker_url(url) == expected


@pytest.mark.parametrize(
    ("url", "user", "password", "token"),
    [
        ("nats://h", None, None, None),
        ("nats://u:p@h", "u", "p", None),
        ("nats://u:@h", "u", "", None),
        ("nats://a%40b:p%2Fq%2C@h", "a@b", "p/q,", None),
        ("nats://t%21@h", None, None, "t!"),
        ("nats://:t%21@h", None, None, "t!"),
    ],
)
def test_login_of_a_url(
    url: str, user: str | None, password: str | None, token: str | None
) -> None:
    """User and password, or a lone token, percent-decoded."""
    options = ConnectOptions.from_url(url)

    assert (options.user, options.password, options.token) == (user, password, token)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "h:4222",
        "redis://h",
        "nats://h:x",
        "nats://h:99999",
        "nats://[::1",
        "nats://h,",
        "nats://h,redis://i",
    ],
)
def test_what_is_no_url_is_refused(url: str) -> None:
    """A URL that names no NATS server is an error that says so."""
    with pytest.raises(ConfigError, match="not a NATS URL"):
        ConnectOptions.from_url(url)


def test_errors_and_repr_show_no_password() -> None:
    """Neither the message about a bad URL nor the options in a log line give a secret away."""
    with pytest.raises(ConfigError) as caught:
        ConnectOptions.from_url("nats://u:s3cret@h:x")

    assert "s3cret" not in str(caught.value)
    assert "s3cret" not in repr(ConnectOptions.from_url("nats://u:s3cret@h"))


def test_environment_fills_what_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Login and TLS come from the environment where URL and program name none."""
    monkeypatch.setenv("NATS_USER", "env")
    monkeypatch.setenv("NATS_PASSWORD", "pw")
    monkeypatch.setenv("NATS_TLS_CA_FILE", "/ca.pem")
    monkeypatch.setenv("NATS_TLS_HANDSHAKE_FIRST", "Yes")

    options = ConnectOptions.from_url("nats://h")

    assert (options.user, options.password) == ("env", "pw")
    assert (options.tls, options.tls_ca_file, options.tls_handshake_first) == (
        True,
        "/ca.pem",
        True,
    )


@pytest.mark.parametrize("variable", ["NATS_TOKEN", "NATS_NKEY_SEED_FILE", "NATS_CREDENTIALS_FILE"])
def test_login_of_the_url_wins_over_any_other(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """Who writes a user into the URL logs in as that user, whatever else is exported."""
    monkeypatch.setenv(variable, "/nowhere")

    options = ConnectOptions.from_url("nats://u:p@h")

    assert login_fields(options, "nonce") == {"user": "u", "pass": "p"}


def test_program_wins_over_url_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the program sets holds; a CA file alone switches TLS on."""
    monkeypatch.setenv("NATS_USER", "env")

    options = ConnectOptions.from_url("nats://h", token="t", tls_ca_file="/ca", connect_timeout=9.0)

    assert login_fields(options, "nonce") == {"auth_token": "t"}
    assert (options.tls, options.connect_timeout) == (True, 9.0)


def test_scheme_tls_switches_tls_on() -> None:
    """`tls://` is NATS's own way to ask for it."""
    assert ConnectOptions.from_url("tls://h").tls
    assert not ConnectOptions.from_url("nats://h").tls


def test_missing_ca_file_is_a_configuration_error() -> None:
    """A CA file that is not there is named with the setting to correct."""
    options = ConnectOptions.from_url("nats://h", tls_ca_file="/nowhere/ca.pem")

    with pytest.raises(ConfigError, match="NATS_TLS_CA_FILE"):
        options.ssl_context()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"not a seed", "seed is not valid"),
        (b"SUAAA", "seed is not valid"),
        (b"UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4", "seed is not valid"),
    ],
)
def test_unusable_seed_file_is_a_configuration_error(
    tmp_path: Path, content: bytes | None, complaint: str
) -> None:
    """A seed file that is missing, binary, damaged or a public key is refused before CONNECT."""
    path = tmp_path / "user.nk"
    if content is not None:
        path.write_bytes(content)
    options = ConnectOptions.from_url("nats://h", nkey_seed_file=str(path))

    with pytest.raises(ConfigError, match=complaint):
        login_fields(options, "nonce")


def test_nkey_signs_the_servers_nonce(tmp_path: Path) -> None:
    """The signature of the nonce is valid for the public key that is sent along."""
    seed = nkeys.encode_seed(bytes(range(32)), nkeys.PREFIX_BYTE_USER)
    path = tmp_path / "user.nk"
    path.write_bytes(seed + b"\n")

    fields = login_fields(ConnectOptions.from_url("nats://h", nkey_seed_file=str(path)), "nonce")

    pair = nkeys.from_seed(bytearray(seed))
    assert fields["nkey"] == pair.public_key.decode()
    assert fields["sig"].rstrip("=") == fields["sig"]


def test_credentials_file_without_seed_is_refused(tmp_path: Path) -> None:
    """A file with only half of the credentials is named as such."""
    path = tmp_path / "user.creds"
    path.write_text("-----BEGIN NATS USER JWT-----\neyJ0\n------END NATS USER JWT------\n")

    with pytest.raises(ConfigError, match="USER NKEY SEED"):
        read_credentials(str(path))
