"""What a client asks for when it submits a task, and what it is told. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final, Literal

import msgspec

from bridge.errors import InvalidTaskData
from bridge.names import MAX_PRIORITY
from bridge.submission.fields import read_fields

PRIORITY_WORDS: Final = {"low": 0, "normal": 3, "high": 6, "critical": MAX_PRIORITY}
#: A year: longer waits are more likely a wrong unit than a wish.
MAX_DELAY_SECONDS: Final = 366 * 86_400.0
MAX_TIMEOUT_SECONDS: Final = 7 * 86_400.0

_Moment = Annotated[datetime, msgspec.Meta(tz=True)]


class Submission(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """One task to run. The descriptions also end the sentence "Send ..." of a refusal."""

    task_type: Annotated[
        str,
        msgspec.Meta(
            min_length=1,
            max_length=255,
            description="The name of a task, one of GET /api/v1/tasks/types.",
        ),
    ]
    task_data: Annotated[
        dict[str, Any],
        msgspec.Meta(
            description="An object: the arguments of the task by name, as its JSON Schema in "
            "GET /api/v1/tasks/types has them."
        ),
    ] = {}
    priority: Annotated[
        Annotated[int, msgspec.Meta(ge=0, le=MAX_PRIORITY)]
        | Literal["low", "normal", "high", "critical"],
        msgspec.Meta(
            description=f"0 to {MAX_PRIORITY}, higher is sooner, or a word for one of them: "
            + ", ".join(f"{word} ({number})" for word, number in PRIORITY_WORDS.items())
            + "."
        ),
    ] = PRIORITY_WORDS["normal"]
    timeout: Annotated[
        Annotated[float, msgspec.Meta(gt=0, le=MAX_TIMEOUT_SECONDS)] | None,
        msgspec.Meta(
            description="The seconds that the task may run, above 0 to "
            f"{MAX_TIMEOUT_SECONDS:.0f}: a soft limit there, the hard one shortly after."
        ),
    ] = None
    countdown: Annotated[
        Annotated[float, msgspec.Meta(ge=0, le=MAX_DELAY_SECONDS)] | None,
        msgspec.Meta(
            description="The seconds from now until the task may start, 0 to "
            f"{MAX_DELAY_SECONDS:.0f}."
        ),
    ] = None
    eta: Annotated[
        _Moment | None,
        msgspec.Meta(
            description="The time from which the task may start, instead of countdown: RFC 3339 "
            "with an offset, like 2030-01-31T12:00:00Z."
        ),
    ] = None
    expires: Annotated[
        Annotated[float, msgspec.Meta(gt=0, le=MAX_DELAY_SECONDS)] | _Moment | None,
        msgspec.Meta(
            description="The time by which the task is revoked unless it has started: seconds "
            f"from now, above 0 to {MAX_DELAY_SECONDS:.0f}, or RFC 3339 with an offset."
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


def parse(document: Any) -> Submission:
    """Return the submission that a decoded JSON document describes.

    Raises:
        InvalidTaskData: a field is unknown, missing, of the wrong type or out of its range;
            the message names it and what it may be.
    """
    submission = read_fields(document, Submission, InvalidTaskData)
    if submission.eta is not None and submission.countdown is not None:
        raise InvalidTaskData("eta, countdown: give one of the two, not both.")
    return submission
