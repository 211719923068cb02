"""Submissions: what is wrong is refused by its name."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from bridge.errors import InvalidTaskData
from bridge.submission.request import PRIORITY_WORDS, parse


def _document(**fields: Any) -> dict[str, Any]:
    return {"task_type": "test", "task_data": {}, **fields}


@pytest.mark.parametrize(
    ("given", "number"),
    [*PRIORITY_WORDS.items(), (0, 0), (9, 9)],
)
def test_priority_words_are_numbers(given: Any, number: int) -> None:
    """The four words stand for fixed numbers, and numbers for themselves."""
    assert number == parse(_document(priority=given)).priority_number


def test_times_are_read_with_their_offset() -> None:
    """An eta with an offset is the moment it names."""
    submission = parse(_document(eta="2030-01-01T02:00:00+02:00"))

    assert datetime(2030, 1, 1, tzinfo=UTC) == submission.eta


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ({"task_data": {}}, "task_type:"),
        (_document(task_type=""), "task_type:"),
        (_document(task_type=7), "task_type:"),
        (_document(task_data=[]), "task_data:"),
        (_document(extra=1), "extra:"),
        (_document(priority=10), "priority:"),
        (_document(priority="urgent"), "priority:"),
        (_document(priority=True), "priority:"),
        (_document(priority=5.5), "priority:"),
        (_document(timeout=0), "timeout:"),
        (_document(timeout="60"), "timeout:"),
        (_document(countdown=-1), "countdown:"),
        (_document(countdown=1e12), "countdown:"),
        (_document(eta="2030-01-01T00:00:00"), "eta:"),
        (_document(eta="tomorrow"), "eta:"),
        (_document(expires=0), "expires:"),
        (_document(eta="2030-01-01T00:00:00Z", countdown=1), "eta, countdown:"),
        ([], "body:"),
    ],
)
def test_refusal_names_the_field(document: Any, told: str) -> None:
    """A wrong field is named in the message, not only its type."""
    with pytest.raises(InvalidTaskData) as refused:
        parse(document)

    assert str(refused.value).startswith(told)
