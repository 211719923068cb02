"""Builds the Celery message (protocol 2) of a submitted task. Pure.

It is what `celery.app.amqp.AMQP.as_task_v2` would build for the same call, which a contract
test holds; made here because that needs a Celery app and takes longer than all the rest.
"""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec
from celery.utils.nodenames import anon_nodename
from celery.utils.saferepr import saferepr

from bridge.names import escape
from bridge.transport.headers import (
    APPLICATION_PREFIX,
    PROPERTY_HEADERS,
    encode_message,
    encode_value,
)

#: Celery's own default for `argsrepr_maxsize` and `task_repr_maxlevels`
_REPR_CHARACTERS = 1024
_REPR_LEVELS = 3
#: kombu's number for messages that survive a restart
_PERSISTENT = 2

_CORRELATION_ID = PROPERTY_HEADERS["correlation_id"]
_ID, _KWARGSREPR, _ETA, _EXPIRES = (
    APPLICATION_PREFIX + escape(name) for name in ("id", "kwargsrepr", "eta", "expires")
)

_NO_ARGUMENTS = encode_value("{}")

_EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


class TaskMessage(NamedTuple):
    """NATS headers and payload."""

    headers: dict[str, str]
    payload: bytes


def build(
    *,
    task_id: str,
    name: str,
    kwargs: dict[str, Any],
    priority: int,
    eta: datetime | None = None,
    expires: datetime | None = None,
    timeout_seconds: float | None = None,
    ignore_result: bool = False,
) -> TaskMessage:
    """Return the message that makes a worker call task `name` with `kwargs`.

    `task_id` must be a UUID: its text needs no encoding.
    """
    headers = dict(_template(name, priority, timeout_seconds, ignore_result))
    headers[_CORRELATION_ID] = headers[_ID] = task_id
    headers[_KWARGSREPR] = _shown(kwargs)
    if eta is not None:
        headers[_ETA] = encode_value(eta.isoformat())
    if expires is not None:
        headers[_EXPIRES] = encode_value(expires.isoformat())
    return TaskMessage(headers, msgspec.json.encode(([], kwargs, _EMBED)))


@lru_cache(maxsize=1024)
def _template(
    name: str, priority: int, timeout_seconds: float | None, ignore_result: bool
) -> dict[str, str]:
    """What the messages of many calls have in common, encoded once.

    The codec leaves out what has the protocol's default, for instance `root_id`.
    """
    headers, _ = encode_message(
        b"",
        headers={
            "lang": "py",
            "task": name,
            "retries": 0,
            "timelimit": _time_limits(timeout_seconds),
            "argsrepr": "()",
            "origin": anon_nodename(),
            "ignore_result": ignore_result,
        },
        properties={
            "reply_to": "",
            "delivery_mode": _PERSISTENT,
            "priority": priority,
            "content_type": "application/json",
            "content_encoding": "utf-8",
        },
    )
    return headers


def _time_limits(timeout_seconds: float | None) -> list[float | None]:
    """Hard and soft limit: told at `timeout_seconds`, killed when not ended shortly after."""
    if timeout_seconds is None:
        return [None, None]
    return [timeout_seconds + max(5.0, timeout_seconds / 10), timeout_seconds]


def _shown(kwargs: dict[str, Any]) -> str:
    """Return what monitors show of the arguments, as Celery's `saferepr` gives it, encoded.

    `repr` is thirty times as fast and the same where nothing is escaped, cut or nested deeply.
    """
    text = repr(kwargs)
    plain = (
        len(text) < _REPR_CHARACTERS
        and "\\" not in text
        and '"' not in text
        and text.count("{") + text.count("[") <= _REPR_LEVELS
    )
    if not plain:
        return encode_value(saferepr(kwargs, _REPR_CHARACTERS, _REPR_LEVELS))
    if not kwargs:
        return _NO_ARGUMENTS
    # With quotes like Python's it cannot be taken for JSON, so it needs no encoding.
    return text if text.isascii() else encode_value(text)
