"""Reads bodies and query parameters strictly."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from flask import request

from bridge.errors import InvalidParameters
from bridge.submission import strict_json

_TRUTH = {"true": True, "1": True, "false": False, "0": False}


def json_body() -> Any:
    """Return the decoded body. Raises InvalidParameters (400, 413, 415)."""
    if request.mimetype != "application/json":
        raise InvalidParameters("Content-Type: send the body as application/json.", status=415)
    try:
        # werkzeug stops reading at MAX_CONTENT_LENGTH, also where the body comes in chunks.
        body = request.get_data(cache=False)
    except OSError as error:
        raise InvalidParameters(
            f"The body cannot be read to its end: {error}. Check Content-Length and the chunks."
        ) from error
    return strict_json.decode(body)


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
