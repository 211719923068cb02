"""Builds the Celery message (protocol 2) of a submitted task. Pure.

It is what `celery.app.amqp.AMQP.as_task_v2` would build for the same call, which a contract
test holds; made here because that needs a Celery app and takes longer than all the rest.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

import msgspec
from celery.utils.nodenames import anon_nodename
from celery.utils.saferepr import saferepr

#: Celery's own default for `argsrepr_maxsize` and `task_repr_maxlevels`
_REPR_CHARACTERS = 1024
_REPR_LEVELS = 3
#: kombu's number for messages that survive a restart
_PERSISTENT = 2

_EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


class TaskMessage(NamedTuple):
    """A message as kombu's channel takes it."""

    headers: dict[str, Any]
    properties: dict[str, Any]
    body: bytes


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
    """Return the message that makes a worker call task `name` with `kwargs`."""
    headers = {
        "lang": "py",
        "task": name,
        "id": task_id,
        "shadow": None,
        "eta": eta and eta.isoformat(),
        "expires": expires and expires.isoformat(),
        "group": None,
        "group_index": None,
        "retries": 0,
        "timelimit": _time_limits(timeout_seconds),
        "root_id": task_id,
        "parent_id": None,
        "argsrepr": "()",
        "kwargsrepr": _shown(kwargs),
        "origin": anon_nodename(),
        "ignore_result": ignore_result,
        "replaced_task_nesting": 0,
        "stamped_headers": None,
        "stamps": {},
    }
    properties = {
        "correlation_id": task_id,
        "reply_to": "",
        "delivery_mode": _PERSISTENT,
        "priority": priority,
        "content_type": "application/json",
        "content_encoding": "utf-8",
    }
    return TaskMessage(headers, properties, msgspec.json.encode(([], kwargs, _EMBED)))


def _time_limits(timeout_seconds: float | None) -> list[float | None]:
    """Hard and soft limit: told at `timeout_seconds`, killed when not ended shortly after."""
    if timeout_seconds is None:
        return [None, None]
    return [timeout_seconds + max(5.0, timeout_seconds / 10), timeout_seconds]


def _shown(kwargs: dict[str, Any]) -> str:
    """Return what monitors show of the arguments, as Celery's `saferepr` gives it.

    `repr` is thirty times as fast and the same where nothing is escaped, cut or nested deeply.
    """
    text = repr(kwargs)
    plain = (
        len(text) < _REPR_CHARACTERS
        and "\\" not in text
        and '"' not in text
        and text.count("{") + text.count("[") <= _REPR_LEVELS
    )
    return text if plain else str(saferepr(kwargs, _REPR_CHARACTERS, _REPR_LEVELS))
