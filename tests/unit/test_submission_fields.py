"""Refused fields: each is named with the reason and with what may be sent instead."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from bridge.errors import InvalidTaskData
from bridge.submission.fields import read_fields
from bridge.submission.request import Submission
from web.models import ScaleRequest

_NONSENSE = (True, "", "x", "2030-01-01T00:00:00", -1, 1e300, [], {})
_FIELDS = [
    (kind, field.name)
    for kind in (Submission, ScaleRequest)
    for field in msgspec.structs.fields(kind)
]


def _refusal(document: Any, kind: type[msgspec.Struct]) -> str:
    with pytest.raises(InvalidTaskData) as refused:
        read_fields(document, kind, InvalidTaskData)
    return str(refused.value)


def _accepts(kind: type[msgspec.Struct], document: Any) -> bool:
    try:
        msgspec.convert(document, kind)
    except msgspec.ValidationError:
        return False
    return True


@pytest.mark.parametrize(("kind", "name"), _FIELDS)
def test_each_refused_value_is_told_what_is_allowed(kind: type[msgspec.Struct], name: str) -> None:
    """Whatever nonsense stands in a field: field, reason and remedy are one line."""
    base = {"task_type": "test"} if kind is Submission else {}
    refused = [each for each in _NONSENSE if not _accepts(kind, {**base, name: each})]

    assert len(refused) >= 5
    for value in refused:
        told = _refusal({**base, name: value}, kind)
        assert told.startswith(f"{name}: "), value
        assert ". Send " in told, value
        assert told.endswith("."), value


@pytest.mark.parametrize(
    ("document", "told"),
    [
        (
            {"task_type": "test", "priority": "urgent"},
            "priority: invalid enum value 'urgent'. Send 0 to 9, higher is sooner, or a word for "
            "one of them: low (0), normal (3), high (6), critical (9).",
        ),
        (
            {"task_data": {}},
            "task_type: required field is missing. Send the name of a task, one of GET "
            "/api/v1/tasks/types.",
        ),
        (
            {"task_type": "test", "a`b": 1},
            "a`b: unknown field. Remove it; known are task_type, task_data, priority, timeout, "
            "countdown, eta, expires.",
        ),
        (
            [],
            "body: expected `object`, got `array`. Send an object; its fields are task_type, "
            "task_data, priority, timeout, countdown, eta, expires.",
        ),
    ],
)
def test_refusal_tells_field_reason_and_remedy(document: Any, told: str) -> None:
    """The whole sentence, as a client reads it."""
    assert told == _refusal(document, Submission)


def test_long_unknown_name_is_shortened() -> None:
    """An answer does not carry back what a client sent by the kilobyte."""
    assert len(_refusal({"task_type": "test", "x" * 5000: 1}, Submission)) < 250
