"""What kombu asks before each publish, whether its queue is declared, without what it costs there.

kombu makes and binds two copies of the queue before it looks: 35 of the 230 µs of an `apply_async`
(docs/performance.md).
"""

from __future__ import annotations

from typing import Any

import kombu.messaging

from bridge.transport.channel import Channel

_kombu_maybe_declare = kombu.messaging.maybe_declare


def maybe_declare(
    entity: Any, channel: Any = None, retry: bool = False, **retry_policy: Any
) -> bool:
    """As kombu.common.maybe_declare: declare an entity, True unless that is known to be done."""
    if isinstance(channel, Channel) and channel.has_declared(entity):
        return False
    return bool(_kombu_maybe_declare(entity, channel, retry, **retry_policy))


def install() -> None:
    """Have kombu's producers look here first; those of other transports notice nothing."""
    kombu.messaging.maybe_declare = maybe_declare
