"""The response envelope, to the letter."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from bridge import envelope
from bridge.errors import ErrorCode

TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def opened(body: bytes) -> dict[str, Any]:
    """The envelope without its time, which must have the one allowed form and be now."""
    fields: dict[str, Any] = json.loads(body)
    stamp = fields.pop("timestamp")
    assert TIMESTAMP.fullmatch(stamp)
    assert abs(datetime.fromisoformat(stamp) - datetime.now(UTC)) < timedelta(minutes=1)
    return fields


def test_success_has_exactly_four_fields() -> None:
    """status, message, data, timestamp, in this order."""
    body = envelope.success("Done", {"task_id": "x"})

    assert list(json.loads(body)) == ["status", "message", "data", "timestamp"]
    assert opened(body) == {"status": "success", "message": "Done", "data": {"task_id": "x"}}


def test_failure_names_its_code_and_always_has_data() -> None:
    """status, error_code, message, data, timestamp; data is null where there is none."""
    body = envelope.failure(ErrorCode.INVALID_TASK_DATA, "No such field")

    assert list(json.loads(body)) == ["status", "error_code", "message", "data", "timestamp"]
    assert opened(body) == {
        "status": "error",
        "error_code": "INVALID_TASK_DATA",
        "message": "No such field",
        "data": None,
    }


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "2026-01-02T03:04:05.000Z"),
        (datetime(2026, 1, 2, 3, 4, 5, 678_999, tzinfo=UTC), "2026-01-02T03:04:05.678Z"),
        (
            datetime(2026, 1, 2, 1, tzinfo=timezone(timedelta(hours=2))),
            "2026-01-01T23:00:00.000Z",
        ),
    ],
)
def test_times_are_utc_with_milliseconds(moment: datetime, text: str) -> None:
    """Any zone is turned into UTC, with milliseconds and Z."""
    assert envelope.isoformat(moment) == text
    assert envelope.from_epoch(moment.timestamp()) == text
