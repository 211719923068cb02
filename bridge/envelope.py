"""The response envelope, the one shape of every answer. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from bridge.errors import ErrorCode


class Success(msgspec.Struct, kw_only=True, frozen=True):
    """A request was done."""

    status: Literal["success"] = "success"
    message: str
    data: Any
    timestamp: str


class Failure(msgspec.Struct, kw_only=True, frozen=True):
    """A request was refused or failed."""

    status: Literal["error"] = "error"
    error_code: ErrorCode
    message: str
    data: Any = None
    timestamp: str


def isoformat(moment: datetime) -> str:
    """UTC, milliseconds, ``Z``: the only form of a time in an answer."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def from_epoch(seconds: float) -> str:
    """`isoformat` of seconds since 1970."""
    return isoformat(datetime.fromtimestamp(seconds, UTC))


def now() -> str:
    return isoformat(datetime.now(UTC))


def success(message: str, data: Any) -> bytes:
    return msgspec.json.encode(Success(message=message, data=data, timestamp=now()))


def failure(code: ErrorCode, message: str, data: Any = None) -> bytes:
    return msgspec.json.encode(
        Failure(error_code=code, message=message, data=data, timestamp=now())
    )
