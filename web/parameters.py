"""Reads bodies and query parameters strictly."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from flask import request

from bridge.errors import InvalidParameters
from bridge.submission import strict_json
from web.context import context

_TRUTH = {"true": True, "1": True, "false": False, "0": False}


def json_body() -> Any:
    """Return the decoded body. Raises InvalidParameters (400, 413, 415)."""
    if request.mimetype != "application/json":
        raise InvalidParameters("Content-Type: send the body as application/json.", status=415)
    return strict_json.decode(_body(context().settings.max_body_bytes))


def _body(limit_bytes: int) -> bytes:
    """Read the body, and no more than `limit_bytes` of it.

    Flask's own reader cuts a chunked body off at the limit without telling.
    """
    environ = request.environ
    declared = request.content_length
    if declared is None:
        wanted = limit_bytes + 1 if environ.get("wsgi.input_terminated") else 0
    else:
        wanted = declared
    if declared is not None and declared > limit_bytes:
        raise _too_large(limit_bytes)
    try:
        body: bytes = environ["wsgi.input"].read(wanted)
    except OSError as error:
        raise _cut_short(str(error)) from error
    if len(body) > limit_bytes:
        raise _too_large(limit_bytes)
    if declared is not None and len(body) < declared:
        raise _cut_short(f"{len(body)} of {declared} bytes came")
    return body


def _too_large(limit_bytes: int) -> InvalidParameters:
    return InvalidParameters(
        f"The body is over the limit of {limit_bytes} bytes. Send less, or raise MAX_BODY_BYTES.",
        status=413,
    )


def _cut_short(reason: str) -> InvalidParameters:
    return InvalidParameters(
        f"The body cannot be read to its end: {reason}. Check Content-Length and the chunks."
    )


def only(allowed: Iterable[str] = ()) -> None:
    """Refuse query parameters that are unknown or given twice. Raises InvalidParameters."""
    if not request.query_string:
        return
    known = set(allowed)
    for name, values in request.args.lists():
        if name not in known:
            raise InvalidParameters(f"{name}: unknown query parameter. Remove it.")
        if len(values) > 1:
            raise InvalidParameters(f"{name}: given {len(values)} times. Give it once.")


def seconds(name: str, most: float) -> float:
    """Return a query parameter in seconds, 0 when absent. Raises InvalidParameters."""
    text = request.args.get(name, "0")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= most:
        raise InvalidParameters(f"{name}: send seconds from 0 to {most:g}, not {text[:40]!r}.")
    return value


def flag(name: str) -> bool:
    """Return a true/false query parameter, False when absent. Raises InvalidParameters."""
    text = request.args.get(name, "false")
    value = _TRUTH.get(text.lower())
    if value is None:
        raise InvalidParameters(f"{name}: send true or false, not {text[:40]!r}.")
    return value
