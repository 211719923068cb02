"""kombu transport `nats://`.

Features
========
* Type: native, one socket, asynchronous under Celery's hub
* Supports direct, topic and fanout exchanges, priorities 0-9 (higher first), per-message TTL,
  delayed delivery in the server (`eta`, `countdown`)

Connection String
=================
``nats://[user:password@|token@]host[:4222][/vhost]``, ``tls://…`` for TLS; several, separated by
``;``, are tried in turn.

Transport Options
=================
* ``ack_wait``: seconds a silent worker keeps its deliveries (30)
* ``max_deliveries``: how often a message may be delivered before it is set aside (20; 0: for ever);
  one that its consumer requeues is delivered again, too
* ``timeout``: seconds a request may take (5)
* ``replicas``: copies of each stream this transport creates (1)
* ``token``, ``nkey_seed_file``, ``credentials_file``, ``tls_ca_file``, ``tls_cert_file``,
  ``tls_key_file``, ``tls_handshake_first``: see `bridge.wire.ConnectOptions`
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, ClassVar

from amqp.exceptions import ChannelError, RecoverableConnectionError
from kombu.transport import base

from bridge.errors import NatsConnectionError
from bridge.names import DEFAULT_VHOST, Names
from bridge.transport.arguments import warn_of_ignored_options
from bridge.transport.broker import BrokerConnection
from bridge.transport.channel import Channel
from bridge.transport.exchange import EXCHANGE_TYPES
from bridge.wire import ConnectOptions, PayloadTooLarge
from bridge.wire.jetstream import JetStreamError
from bridge.wire.options import DEFAULT_PORT, TRANSPORT_OPTIONS

ACK_WAIT_SECONDS = 30.0
TIMEOUT_SECONDS = 5.0
#: As RabbitMQ 4 has it for quorum queues.
MAX_DELIVERIES = 20
#: Celery's `broker_use_ssl` -> ConnectOptions
_SSL_OPTIONS = {"ca_certs": "tls_ca_file", "certfile": "tls_cert_file", "keyfile": "tls_key_file"}


class Management(base.Management):
    """What `celery list bindings` asks for."""

    def get_bindings(self) -> list[dict[str, str]]:
        """Return what every stored queue is bound to; those in memory are known to nobody else."""
        with self.transport.client.channel() as channel:
            return [
                {
                    "destination": binding.queue,
                    "source": binding.exchange,
                    "routing_key": binding.binding_key,
                }
                for binding in channel.broker.bindings.all()
            ]


class Transport(base.Transport):
    """What kombu and Celery ask of a broker; see the module for options."""

    Management = Management

    driver_type = "nats"
    driver_name = "celery-nats-bridge"
    default_port = DEFAULT_PORT
    scheme = "nats"

    # The last is what kombu itself raises for a channel whose connection is gone.
    connection_errors = (NatsConnectionError, OSError, RecoverableConnectionError)
    channel_errors = (ChannelError, JetStreamError, PayloadTooLarge)
    recoverable_connection_errors = connection_errors
    recoverable_channel_errors = ()

    #: Called after each failure to connect, whatever the scheme. What it raises ends retries of
    #: kombu's that have no end of their own.
    on_connect_failure: ClassVar[Callable[[], None] | None] = None

    implements = base.Transport.implements.extend(
        asynchronous=True,
        batch_publish=True,
        exchange_type=EXCHANGE_TYPES,
        heartbeats=False,
    )

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        # A lone user part is a token (NATS's convention). kombu shows users and hides passwords,
        # in logs, in `celery inspect stats` and in Flower.
        if client.userid and client.password is None:
            client.userid, client.password = None, client.userid

    @property
    def default_connection_params(self) -> dict[str, Any]:
        return {"hostname": "localhost", "port": DEFAULT_PORT, "virtual_host": DEFAULT_VHOST}

    def driver_version(self) -> str:
        return "1.0.0"

    def establish_connection(self) -> BrokerConnection:
        """Connect and make sure the streams are there. Raises NatsConnectionError."""
        try:
            return self._connected()
        except NatsConnectionError:
            if Transport.on_connect_failure is not None:
                Transport.on_connect_failure()
            raise

    def _connected(self) -> BrokerConnection:
        client, options = self.client, self.client.transport_options or {}
        warn_of_ignored_options(options)
        max_deliveries = options.get("max_deliveries")
        if max_deliveries is None:  # and not 0, which is no limit
            max_deliveries = os.environ.get("MAX_DELIVERIES") or MAX_DELIVERIES
        connection = BrokerConnection(
            self.connect_options(),
            Names(client.virtual_host or DEFAULT_VHOST),
            ack_wait=float(
                options.get("ack_wait") or os.environ.get("ACK_WAIT_SECONDS") or ACK_WAIT_SECONDS
            ),
            max_deliveries=int(max_deliveries),
            timeout=float(options.get("timeout") or TIMEOUT_SECONDS),
            replicas=int(options.get("replicas") or os.environ.get("NATS_REPLICAS") or 1),
        )
        connection.client = client
        return connection

    def connect_options(self) -> ConnectOptions:
        """Return how the wire reaches the server that kombu's connection names now."""
        client, options = self.client, self.client.transport_options or {}
        given: dict[str, Any] = {key: options[key] for key in TRANSPORT_OPTIONS if key in options}
        password = client.password() if callable(client.password) else client.password
        if client.userid:
            given.update(user=client.userid, password=password)
        elif password:
            given["token"] = password
        if client.ssl:
            given["tls"] = True
            if isinstance(client.ssl, dict):
                given.update(
                    (field, client.ssl[key])
                    for key, field in _SSL_OPTIONS.items()
                    if key in client.ssl
                )
        if client.connect_timeout:
            given["connect_timeout"] = float(client.connect_timeout)
        host, port = client.hostname or "localhost", client.port or DEFAULT_PORT
        return ConnectOptions.from_url(f"{self.scheme}://{host}:{port}", name="celery", **given)

    def close_connection(self, connection: BrokerConnection) -> None:
        # Its `client` stays: kombu looks for it once more when it declares a queue anew.
        connection.close()

    def create_channel(self, connection: BrokerConnection) -> Channel:
        return Channel(connection)

    def close_channel(self, connection: BrokerConnection) -> None:
        """Channels close themselves; kombu asks this only of virtual transports."""

    def drain_events(self, connection: BrokerConnection, timeout: float | None = None) -> None:
        try:
            connection.drain_events(timeout)
        except NatsConnectionError:
            if not connection.connected:
                connection.keeper.stop()  # whoever reads may connect again, and knows it now
            raise

    def verify_connection(self, connection: BrokerConnection) -> bool:
        return connection.connected

    def register_with_event_loop(self, connection: BrokerConnection, loop: Any) -> None:
        connection.register_with_event_loop(loop)

    def _collect(self, connection: BrokerConnection | None) -> None:
        if connection is not None:
            connection.collect()


class TlsTransport(Transport):
    """`tls://`, NATS's own scheme for TLS."""

    scheme = "tls"
