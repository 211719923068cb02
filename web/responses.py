"""Answers in the envelope, and errors turned into them."""

from __future__ import annotations

import logging
import math
import uuid
from typing import Any

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from bridge.envelope import failure, success
from bridge.errors import BridgeError, ErrorCode, InvalidParameters

logger = logging.getLogger("web")

_SECURITY = [
    ("X-Content-Type-Options", "nosniff"),
    ("Cache-Control", "no-store"),
    ("Referrer-Policy", "no-referrer"),
]
_JSON_HEADERS = [
    ("Content-Type", "application/json"),
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
    *_SECURITY,
]
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def answer(message: str, data: Any) -> Response:
    """A request was done; `data` is anything msgspec encodes."""
    return Response(success(message, data), 200, _JSON_HEADERS)


def document(body: bytes) -> Response:
    """JSON as it is, outside the envelope."""
    return Response(body, 200, _JSON_HEADERS)


def page(body: bytes, content_type: str) -> Response:
    """A static file of the documentation page; it may load nothing but its own parts."""
    headers = [
        ("Content-Type", content_type),
        ("Content-Security-Policy", _PAGE_POLICY),
        *_SECURITY,
    ]
    return Response(body, 200, headers)


def refusal(error: BridgeError) -> Response:
    """The answer that tells a client of `error`."""
    response = Response(failure(error.code, str(error)), error.status, _JSON_HEADERS)
    if error.retry_after_seconds is not None:
        response.headers["Retry-After"] = str(math.ceil(error.retry_after_seconds))
    if error.status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def register_error_handlers(app: Flask) -> None:
    """Make every error an envelope: ours, Flask's own, and those nobody expected."""
    app.register_error_handler(BridgeError, refusal)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(Exception, _unexpected)


def _http_error(error: HTTPException) -> Response:
    status = error.code or 500
    if 300 <= status < 400:
        # werkzeug's redirects carry HTML; a client of this API gets the place in the message.
        status = 404
    refused = InvalidParameters(_explain(error, status), status=status)
    response = refusal(refused)
    if isinstance(error, MethodNotAllowed):
        response.headers["Allow"] = _allowed(error)
    return response


def _allowed(error: MethodNotAllowed) -> str:
    return ", ".join(sorted(error.valid_methods or ()))


def _explain(error: HTTPException, status: int) -> str:
    if status == 404:
        return f"There is nothing at {request.path}. The page /docs tells what there is."
    if isinstance(error, MethodNotAllowed):
        return f"{request.method} is not possible on {request.path}. Send {_allowed(error)}."
    return f"The request cannot be read: {error.description or error.name}"


def _unexpected(error: Exception) -> Response:
    error_id = uuid.uuid4().hex
    logger.error(
        "web.request_failed %s %s error_id=%s",
        request.method,
        request.path,
        error_id,
        exc_info=error,
    )
    body = failure(
        ErrorCode.INTERNAL_ERROR,
        f"The service failed on this request. Its log has the cause under error id {error_id}.",
    )
    return Response(body, 500, _JSON_HEADERS)
