"""What kombu's connection makes of a `nats://` URL: the login reaches NATS and nobody else."""

from __future__ import annotations

import pytest
from kombu import Connection


@pytest.mark.parametrize("url", ["nats://s3cret@host", "nats://:s3cret@host"])
def test_token_is_no_user(url: str) -> None:
    """A token, in either spelling, is used as one and shown neither in URI nor as user."""
    connection = Connection(url)

    assert connection.transport.connect_options().token == "s3cret"
    assert connection.clone().transport.connect_options().token == "s3cret"
    assert "s3cret" not in connection.as_uri()
    assert connection.info()["userid"] is None


def test_user_and_password_stay_what_they_are() -> None:
    """The user is shown, the password is hidden, and both reach NATS."""
    connection = Connection("nats://me:s3cret@host")
    options = connection.transport.connect_options()

    assert (options.user, options.password, options.token) == ("me", "s3cret", None)
    assert connection.as_uri() == "nats://me:**@host:4222//"


def test_token_of_the_next_server_is_no_user_either() -> None:
    """After failover to another URL its own token counts, and is hidden as well."""
    connection = Connection("nats://first@one;nats://s3cret@two")
    connection.maybe_switch_next()

    assert connection.transport.connect_options().token == "s3cret"
    assert "s3cret" not in connection.as_uri()
