"""What a client asks for when it submits a task, and what it is told. Pure."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, Final, Literal

import msgspec

from bridge.errors import InvalidTaskData
from bridge.names import MAX_PRIORITY

PRIORITY_WORDS: Final = {"low": 0, "normal": 3, "high": 6, "critical": MAX_PRIORITY}
#: A year: longer waits are more likely a wrong unit than a wish.
MAX_DELAY_SECONDS: Final = 366 * 86_400.0
MAX_TIMEOUT_SECONDS: Final = 7 * 86_400.0

_Moment = Annotated[datetime, msgspec.Meta(tz=True)]
_DelaySeconds = Annotated[float, msgspec.Meta(ge=0, le=MAX_DELAY_SECONDS)]


class Submission(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """One task to run."""

    task_type: Annotated[
        str,
        msgspec.Meta(min_length=1, max_length=255, description="One of GET /api/v1/tasks/types."),
    ]
    task_data: Annotated[
        dict[str, Any],
        msgspec.Meta(description="Arguments of the task by name, as its JSON Schema has them."),
    ] = {}
    priority: Annotated[
        Annotated[int, msgspec.Meta(ge=0, le=MAX_PRIORITY)]
        | Literal["low", "normal", "high", "critical"],
        msgspec.Meta(
            description="0 to 9, higher is sooner; "
            + ", ".join(f"{word} is {number}" for word, number in PRIORITY_WORDS.items())
        ),
    ] = PRIORITY_WORDS["normal"]
    timeout: Annotated[
        Annotated[float, msgspec.Meta(gt=0, le=MAX_TIMEOUT_SECONDS)] | None,
        msgspec.Meta(
            description="Seconds the task may run: a soft limit there, the hard one shortly after."
        ),
    ] = None
    countdown: Annotated[
        _DelaySeconds | None, msgspec.Meta(description="Run this many seconds from now.")
    ] = None
    eta: Annotated[
        _Moment | None,
        msgspec.Meta(
            description="Run at this time (RFC 3339 with an offset) instead of countdown."
        ),
    ] = None
    expires: Annotated[
        Annotated[float, msgspec.Meta(gt=0, le=MAX_DELAY_SECONDS)] | _Moment | None,
        msgspec.Meta(
            description="Not started by then (seconds from now, or a time): the task is revoked."
        ),
    ] = None

    @property
    def priority_number(self) -> int:
        """Priority as 0 to 9."""
        return PRIORITY_WORDS[self.priority] if isinstance(self.priority, str) else self.priority


class Accepted(msgspec.Struct, kw_only=True, frozen=True):
    """Answer to a submission: the task is stored."""

    task_id: str
    task_type: str
    state: str
    queue: str
    priority: int
    #: True when the same Idempotency-Key had already submitted this task.
    duplicate: bool = False


_AT_PATH = re.compile(r" - at `\$\.?(.*)`$")
_UNKNOWN_FIELD = re.compile(r"^Object contains unknown field `(.*)`")
_MISSING_FIELD = re.compile(r"^Object missing required field `(.*)`")


def parse(document: Any) -> Submission:
    """Return the submission that a decoded JSON document describes.

    Raises:
        InvalidTaskData: a field is unknown, missing, of the wrong type or out of its range;
            the message names it.
    """
    try:
        submission = msgspec.convert(document, Submission)
    except msgspec.ValidationError as error:
        raise InvalidTaskData(field_message(str(error))) from error
    if submission.eta is not None and submission.countdown is not None:
        raise InvalidTaskData("eta, countdown: give one of the two, not both.")
    return submission


def field_message(text: str) -> str:
    """Return msgspec's message with the field's name in front, as a client knows it."""
    path = ""
    if match := _AT_PATH.search(text):
        path, text = match[1], text[: match.start()]
    if match := _UNKNOWN_FIELD.match(text):
        return f"{_join(path, match[1])}: unknown field. Remove it."
    if match := _MISSING_FIELD.match(text):
        return f"{_join(path, match[1])}: required field is missing."
    return f"{path or 'body'}: {text[:1].lower()}{text[1:]}."


def _join(path: str, field: str) -> str:
    return f"{path}.{field}" if path else field
