"""One delivery on its way from NATS to kombu."""

from __future__ import annotations

from typing import Any

from kombu.transport import base

from bridge.names import DEFAULT_PRIORITY, MAX_PRIORITY
from bridge.transport import bare
from bridge.transport.headers import DELIVERY_COUNT, decode_message
from bridge.transport.pull import Delivery
from bridge.wire import Message as WireMessage


def level_of(priority: int | str | None) -> int:
    """Return the priority a message is stored under (ADR 0003)."""
    if priority is None:
        return DEFAULT_PRIORITY
    return max(0, min(MAX_PRIORITY, int(priority)))


class RawMessage:
    """A message as a channel hands it to kombu's consumers; `delivery` is None on core NATS.

    `redelivered` is then what tells that it came before.
    """

    __slots__ = (
        "_decoded",
        "consumer_tag",
        "delivery",
        "delivery_tag",
        "queue",
        "redelivered",
        "wire",
    )

    def __init__(
        self,
        queue: str,
        wire: WireMessage,
        delivery: Delivery | None,
        delivery_tag: int,
        consumer_tag: str,
        *,
        redelivered: bool = False,
    ) -> None:
        self.redelivered = redelivered
        self.queue = queue
        self.wire = wire
        self.delivery = delivery
        self.delivery_tag = delivery_tag
        self.consumer_tag = consumer_tag
        self._decoded: tuple[dict[str, Any], dict[str, Any], bytes] | None = None

    def decoded(self) -> tuple[dict[str, Any], dict[str, Any], bytes]:
        """Return headers, properties and body. Raises MalformedMessage."""
        if self._decoded is None:
            fields, payload, delivery = self.wire.headers, self.wire.payload, self.delivery
            if delivery is None or not bare.is_bare(fields):
                self._decoded = *decode_message(fields), payload
            else:
                sequence = f"{delivery.stream}:{delivery.stream_seq}"
                self._decoded = bare.complete(fields, payload, sequence)
        return self._decoded


class Message(base.Message):
    """kombu's message, filled from NATS headers."""

    def __init__(self, raw: RawMessage, channel: Any) -> None:
        headers, properties, body = raw.decoded()
        num_delivered = 1 if raw.delivery is None else raw.delivery.num_delivered
        info = {
            "exchange": properties.pop("exchange", ""),
            "routing_key": properties.pop("routing_key", raw.queue),
            "redelivered": raw.redelivered or num_delivered > 1,
            "consumer_tag": raw.consumer_tag,
            "delivery_tag": raw.delivery_tag,
        }
        if "priority" in properties:
            info["priority"] = properties["priority"]
        if num_delivered > 1:
            headers[DELIVERY_COUNT] = num_delivered - 1
        properties["delivery_info"] = info
        super().__init__(
            body=body,
            channel=channel,
            delivery_tag=raw.delivery_tag,
            content_type=properties.get("content_type"),
            content_encoding=properties.get("content_encoding"),
            delivery_info=info,
            properties=properties,
            headers=headers,
        )
        #: Lives as long as this message: see `Leftovers`.
        self.delivery = raw.delivery
