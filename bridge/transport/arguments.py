"""What a queue's AMQP arguments ask for, and how its JetStream consumers keep it. Pure."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache
from typing import Any, Final, NamedTuple, Self

logger = logging.getLogger("nats")

#: An auto-delete queue without `x-expires` that nobody uses goes after a day. Sooner would lose
#: tasks sent while their worker restarts; AMQP's "with its last consumer" would, too.
AUTO_DELETE_SECONDS: Final = 24 * 3600.0
_MESSAGE_TTL_KEY: Final = "message-ttl-ms"
#: Promises to somebody that we do not keep. Others are ours anyway (`x-max-priority`) or are
#: about the inside of RabbitMQ (`x-queue-type`).
_NOT_KEPT: Final = (
    "x-max-length",
    "x-max-length-bytes",
    "x-overflow",
    "x-dead-letter-exchange",
    "x-dead-letter-routing-key",
    "x-single-active-consumer",
)
#: Transport options of Redis that somebody may count on, and what there is instead.
_INSTEAD: Final = {
    "global_keyprefix": "the URL's path keeps applications apart",
    "queue_order_strategy": "messages go by priority and queues take turns",
}


class QueueArguments(NamedTuple):
    """`message_ttl`: seconds a message may wait. `expires`: seconds after which an unused queue
    is no longer there. None: no limit."""

    message_ttl: float | None = None
    expires: float | None = None

    @classmethod
    def of(cls, arguments: Mapping[str, Any] | None, *, auto_delete: bool) -> Self:
        """Read AMQP's arguments (milliseconds)."""
        arguments = arguments or {}
        ttl, expires = (
            None if arguments.get(key) is None else arguments[key] / 1000
            for key in ("x-message-ttl", "x-expires")
        )
        if auto_delete:
            # What such a queue holds is worth as much as the queue. A reply that is never fetched
            # would stay for ever: the server does not purge what belonged to a queue.
            ttl = expires if ttl is None else ttl
            expires = expires or AUTO_DELETE_SECONDS
        return cls(ttl, expires)

    @classmethod
    def from_consumer(cls, config: Mapping[str, Any]) -> Self:
        """Read them from a consumer's configuration as the server tells it."""
        ttl = config.get("metadata", {}).get(_MESSAGE_TTL_KEY)
        expires = config.get("inactive_threshold")
        return cls(int(ttl) / 1000 if ttl else None, expires / 1e9 if expires else None)

    def consumer_config(self) -> dict[str, Any]:
        """Return what goes into a consumer's configuration."""
        config: dict[str, Any] = {}
        if self.message_ttl is not None:
            config["metadata"] = {_MESSAGE_TTL_KEY: str(round(self.message_ttl * 1e3))}
        if self.expires is not None:
            config["inactive_threshold"] = round(self.expires * 1e9)
        return config


def warn_of_ignored(queue: str, arguments: Mapping[str, Any] | None) -> None:
    """Log, once a process, which arguments of a queue have no effect."""
    ignored = [key for key in _NOT_KEPT if (arguments or {}).get(key) is not None]
    if ignored:
        _warn(queue, ", ".join(ignored))


@cache
def _warn(queue: str, ignored: str) -> None:
    logger.warning("queue %s: nats:// does not keep %s", queue, ignored)


def warn_of_ignored_options(options: Mapping[str, Any]) -> None:
    """Log, once a process, which of Redis's transport options are missed."""
    for option in _INSTEAD:
        value = options.get(option)
        if value and value != "round_robin":
            _warn_of_option(option, repr(value))


@cache
def _warn_of_option(option: str, value: str) -> None:
    logger.warning(
        "broker_transport_options: %s=%s has no effect on nats://, where %s",
        option,
        value,
        _INSTEAD[option],
    )
