"""Tasks from clients that know NATS but not Celery (docs/wire-format.md). Pure.

A bare message has a header ``Celery-task`` with the task's name and a JSON object with its keyword
arguments as payload. Everything kombu sends has a content type, by which the two are told apart.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import msgspec

from bridge.transport.headers import APPLICATION_PREFIX, PROPERTY_HEADERS, decode_message

_CONTENT_TYPE = PROPERTY_HEADERS["content_type"]
_TASK = f"{APPLICATION_PREFIX}task"
_ID = f"{APPLICATION_PREFIX}id"
_MESSAGE_ID = "Nats-Msg-Id"
#: Namespace of ids made from a place in the stream.
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "celery-nats-bridge")
_EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


class MalformedMessage(ValueError):
    """A message on a task queue that is no task; its text says what to send instead."""


def is_bare(fields: Mapping[str, str]) -> bool:
    return _CONTENT_TYPE not in fields


def complete(
    fields: Mapping[str, str], payload: bytes, place: str
) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Return headers, properties and body of the task a bare message asks for.

    `place` names the message's stream and sequence: the id of a message without ``Celery-id`` or
    ``Nats-Msg-Id`` is derived from it, so it is the same on redelivery.

    Raises:
        MalformedMessage: it names no task, or its payload is not a JSON object.
    """
    if not fields.get(_TASK):
        raise MalformedMessage(f"no header {_TASK} that names the task")
    try:
        kwargs = msgspec.json.decode(payload or b"{}", type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise MalformedMessage(
            f"the payload is not a JSON object of keyword arguments: {error}"
        ) from error
    task_id = fields.get(_ID) or fields.get(_MESSAGE_ID) or str(uuid.uuid5(_NAMESPACE, place))
    headers, properties = decode_message({**fields, _ID: task_id})
    # An id is text, whatever it looks like.
    headers["id"] = headers["root_id"] = task_id
    properties.update(
        content_type="application/json", content_encoding="utf-8", correlation_id=task_id
    )
    return headers, properties, msgspec.json.encode([[], kwargs, _EMBED])
