"""kombu's own classes for any transport, run against `nats://`.

`make compat` runs this file beside kombu's unpacked source distribution, which is where `t` comes
from; `COMPAT_NATS_URL` names the server. Nothing of kombu's tests is kept here.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import kombu
import pytest
from t.integration.common import (
    BaseEventLoop,
    BaseExchangeTypes,
    BaseFailover,
    BaseMessage,
    BasePriority,
    BaseTimeToLive,
    BasicFunctionality,
)

# These tests make a connection before anything else of kombu's (ADR 0005).
import bridge.kombu_alias  # noqa: F401

URL = os.environ["COMPAT_NATS_URL"]


@pytest.fixture
def dead_url() -> Iterator[str]:
    """The URL of a port that stays taken and never listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"nats://127.0.0.1:{held.getsockname()[1]}"


@pytest.fixture
def connection() -> kombu.Connection:
    return kombu.Connection(URL)


@pytest.fixture
def invalid_connection(dead_url: str) -> kombu.Connection:
    return kombu.Connection(dead_url)


@pytest.fixture
def failover_connection(dead_url: str) -> kombu.Connection:
    return kombu.Connection(f"{dead_url};{URL}")


class TestBasicFunctionality(BasicFunctionality):
    """Connections, channels, plain and simple queues."""


class TestExchangeTypes(BaseExchangeTypes):
    """Direct, fanout and topic exchanges of durable queues."""


class TestTimeToLive(BaseTimeToLive):
    """Messages that expire are not delivered."""


class TestPriority(BasePriority):
    """Higher numbers come first, as in RabbitMQ."""


class TestMessage(BaseMessage):
    """Acknowledge, reject and requeue."""


class TestEventLoop(BaseEventLoop):
    """Acknowledgements from another thread reach the event loop."""


class TestFailover(BaseFailover):
    """The second URL takes over from a dead first one."""
