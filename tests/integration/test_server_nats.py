"""The tests' own nats-server and the embedded one."""

from __future__ import annotations

import socket

from tests.support.nats import NatsServer


def test_server_keeps_port_and_answers_after_restart(nats_server: NatsServer) -> None:
    """A killed server comes back on the port that clients know."""
    port = nats_server.port

    nats_server.kill()
    nats_server.start()

    assert nats_server.port == port
    with socket.create_connection(("127.0.0.1", port), timeout=2) as client:
        assert client.recv(4).startswith(b"INFO")
