"""Messages that are due later wait in the server (ADR-51 of NATS: message schedules)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from bridge.wire.kv import whole_seconds

#: What is due sooner stays in the worker's own timer: the server looks at its schedules only
#: every 250 ms (nats-facts, section 1).
MIN_DELAY_SECONDS = 1.0


def due_time(headers: Mapping[str, Any] | None, now: datetime) -> datetime | None:
    """Return when a task message is due, None when it can go at once.

    `headers` are Celery's; `eta` there is ISO-8601, UTC where it names no zone.
    """
    eta = headers.get("eta") if headers else None
    if not eta:
        return None
    due = eta if isinstance(eta, datetime) else datetime.fromisoformat(eta)
    if due.tzinfo is None:
        due = due.replace(tzinfo=UTC)
    return due if (due - now).total_seconds() >= MIN_DELAY_SECONDS else None


def schedule_headers(due: datetime, target: str, ttl: float | None = None) -> dict[str, str]:
    """Return the headers that make the server publish a message to `target` when due.

    It may wait there for `ttl` seconds.
    """
    moment = due.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    headers = {"Nats-Schedule": f"@at {moment}", "Nats-Schedule-Target": target}
    return headers if ttl is None else {**headers, "Nats-Schedule-TTL": whole_seconds(ttl)}


def nonce() -> str:
    """Keeps two schedules of one task id (a retry beside its first run) apart."""
    return os.urandom(6).hex()
