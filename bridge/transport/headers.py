"""kombu messages to NATS headers and back. Pure; the mapping is told in docs/wire-format.md.

AMQP's properties become headers of their own, every application header becomes
``Celery-<name>``. A string stays as it is where a reader cannot take it for JSON; all else is
JSON. What equals the default of Celery's task message protocol 2 is left out and put back on
reading, which also makes a bare message with only ``Celery-task`` a complete task.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from kombu.utils.json import dumps, loads

from bridge.names import escape, unescape

APPLICATION_PREFIX = "Celery-"

#: AMQP property -> NATS header
PROPERTY_HEADERS = {
    "content_type": "Content-Type",
    "content_encoding": "Content-Encoding",
    "correlation_id": "Correlation-Id",
    "reply_to": "Reply-To",
    "priority": "Priority",
    "delivery_mode": "Delivery-Mode",
    "expiration": "Expiration",
    "message_id": "Message-Id",
    "timestamp": "Timestamp",
    "type": "Type",
    "user_id": "User-Id",
    "app_id": "App-Id",
    "cluster_id": "Cluster-Id",
    # Not AMQP properties, but part of what a consumer is told of a message.
    "exchange": "Exchange",
    "routing_key": "Routing-Key",
}
_HEADER_PROPERTIES = {header: name for name, header in PROPERTY_HEADERS.items()}
#: kombu stamps every message persistent; only another mode is news.
_PROPERTY_DEFAULTS: dict[str, Any] = {"delivery_mode": 2}

#: Defaults of task message protocol 2 (Celery documentation, "Message Protocol"). `root_id`
#: defaults to the task's own id.
TASK_DEFAULTS: dict[str, Any] = {
    "lang": "py",
    "shadow": None,
    "eta": None,
    "expires": None,
    "group": None,
    "group_index": None,
    "retries": 0,
    "timelimit": [None, None],
    "parent_id": None,
    "ignore_result": False,
    "replaced_task_nesting": 0,
    "stamped_headers": None,
    "stamps": {},
}

#: Header a redelivered message carries: how often it was delivered before (RabbitMQ's name).
#: It describes one delivery, so it is never sent.
DELIVERY_COUNT = "x-delivery-count"

_PLAIN_TEXT = re.compile(r"[!-~](?:[ -~]*[!-~])?")
_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_CONSTANTS = frozenset({"true", "false", "null", "NaN", "Infinity", "-Infinity"})
#: First characters of JSON; most headers are told from it by their first.
_JSON_STARTS = frozenset('{["-0123456789tfnNI')
_SCALARS = frozenset({str, int, float, bool, type(None)})
#: Longer scalars are not remembered: they hardly come twice.
_REMEMBERED_CHARACTERS = 64


def encode_value(value: Any) -> str:
    """Return a header value that `decode_value` turns back into `value`."""
    if isinstance(value, str) and len(value) > _REMEMBERED_CHARACTERS:
        return _encode_text(value)
    # kombu's encoder knows more types and is made anew for every call.
    is_known = isinstance(value, str) or type(value) in _SCALARS
    text: str = _encode_known(value) if is_known else dumps(value)
    return text


def _encode_text(value: str) -> str:
    is_itself = _PLAIN_TEXT.fullmatch(value) is not None and decode_value(value) is value
    return value if is_itself else json.dumps(value)


@lru_cache(maxsize=1024, typed=True)  # 1, 1.0 and True are equal and written differently
def _encode_known(value: Any) -> str:
    return _encode_text(value) if isinstance(value, str) else json.dumps(value)


def decode_value(text: str) -> Any:
    """Return the value of a header; text that is not JSON is itself."""
    first = text[:1]
    if first not in _JSON_STARTS:
        return text
    if first in {"{", "["}:
        return _decode_json(text)
    # No number: learning of an id from an exception that it is none takes long.
    if first == '"' or text in _CONSTANTS or _NUMBER.fullmatch(text):
        return _decode_known(text) if len(text) <= _REMEMBERED_CHARACTERS else _decode_json(text)
    return text


def _decode_json(text: str) -> Any:
    try:
        return loads(text)
    except ValueError:
        return text


#: For scalars only, which nobody can change.
_decode_known = lru_cache(maxsize=1024)(_decode_json)


@lru_cache(maxsize=1024)
def _field_of(name: str) -> str:
    return APPLICATION_PREFIX + escape(name)


@lru_cache(maxsize=1024)
def _name_of(field: str) -> tuple[str, bool] | None:
    """Return what a NATS header is called in Celery, and whether that is a property there."""
    if field.startswith(APPLICATION_PREFIX):
        return unescape(field.removeprefix(APPLICATION_PREFIX)), False
    name = _HEADER_PROPERTIES.get(field)
    return None if name is None else (name, True)


def encode_message(
    body: str | bytes, *, headers: Mapping[str, Any] | None, properties: Mapping[str, Any]
) -> tuple[dict[str, str], bytes]:
    """Return NATS headers and payload of a kombu message.

    Raises TypeError where a header or property holds what JSON cannot.
    """
    fields: dict[str, str] = {}
    for name, value in properties.items():
        # AMQP drops properties it does not know, and Celery's retry relies on it.
        field = PROPERTY_HEADERS.get(name)
        if field and value is not None and value != _PROPERTY_DEFAULTS.get(name):
            fields[field] = encode_value(value)
    headers = headers or {}
    defaults = _defaults_for(headers)
    for name, value in headers.items():
        if name == DELIVERY_COUNT:
            continue
        if name in defaults and (value == defaults[name] or _is_empty(name, value)):
            continue
        fields[_field_of(name)] = encode_value(value)
    if isinstance(body, str):
        body = body.encode(properties.get("content_encoding") or "utf-8")
    return fields, bytes(body)


def decode_message(fields: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return application headers and properties; other NATS headers are none of Celery's."""
    headers: dict[str, Any] = {}
    properties: dict[str, Any] = dict(_PROPERTY_DEFAULTS)
    for field, text in fields.items():
        known = _name_of(field)
        if known is not None:
            name, is_property = known
            (properties if is_property else headers)[name] = decode_value(text)
    return {**_defaults_for(headers), **headers}, properties


def _defaults_for(headers: Mapping[str, Any]) -> dict[str, Any]:
    if "task" not in headers:
        return {}
    # A list or dict of its own for every message: Celery writes into them.
    return {
        **TASK_DEFAULTS,
        "timelimit": [None, None],
        "stamps": {},
        "root_id": headers.get("id"),
    }


def _is_empty(name: str, value: Any) -> bool:
    # Celery sends a tuple where the wire has a list.
    return name == "timelimit" and tuple(value) == (None, None)
