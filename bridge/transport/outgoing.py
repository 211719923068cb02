"""What a durable queue's message looks like on its way to JetStream. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from bridge.names import Names
from bridge.transport import delay
from bridge.transport.message import level_of
from bridge.wire.connection import Outgoing
from bridge.wire.kv import ttl_headers


def addressed(
    names: Names,
    queue: str,
    headers: Mapping[str, Any],
    properties: Mapping[str, Any],
    fields: dict[str, str],
    payload: bytes,
    queue_ttl: float | None = None,
) -> Outgoing:
    """Return subject, payload and NATS headers that put a kombu message into `queue`.

    `fields` and `payload` are the encoded message; a task that is due later goes to a schedule.
    `queue_ttl` is how many seconds any message may wait in this queue.
    """
    subject = names.task_subject(queue, level_of(properties.get("priority")))
    if "task" not in headers:
        own_ttl = ttl_seconds(properties.get("expiration"))
        ttl = min((t for t in (own_ttl, queue_ttl) if t is not None), default=None)
        return subject, payload, {**fields, **ttl_headers(ttl)}
    # A task's expiry is left to the worker, which tells who waits for the result. Gone from its
    # queue by itself, it would be waited for for ever.
    due = delay.due_time(headers, datetime.now(UTC))
    if due is None:
        return subject, payload, {**fields, **ttl_headers(queue_ttl)} if queue_ttl else fields
    fields = {**fields, **delay.schedule_headers(due, subject, queue_ttl)}
    task_id = str(headers.get("id", ""))
    return names.schedule_subject(queue, task_id, delay.nonce()), payload, fields


def ttl_seconds(expiration: str | float | None) -> float | None:
    """Return the seconds of AMQP's `expiration`, a string of milliseconds."""
    return None if expiration is None else int(expiration) / 1000
