"""Our task messages are those that Celery itself would send."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from celery import Celery
from hypothesis import given
from hypothesis import strategies as st

from bridge.submission.message import build
from bridge.transport.headers import decode_message

_APP = Celery("contract", set_as_current=False)
_ID = "41f5b1c6-8a55-4b2f-9f4e-7f0f4e1d6b8a"
_TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _TEXT
    | st.text("x", min_size=1020, max_size=1030),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=8,
)
_MOMENTS = st.none() | st.integers(1_800_000_000_000_000, 1_900_000_000_000_000).map(
    lambda microseconds: datetime.fromtimestamp(microseconds / 1e6, UTC)
)


@given(
    kwargs=st.dictionaries(_TEXT, _VALUES, max_size=4),
    priority=st.integers(0, 9),
    eta=_MOMENTS,
    expires=_MOMENTS,
    timeout=st.none() | st.floats(0.5, 10_000) | st.integers(1, 600),
    ignore_result=st.booleans(),
)
def test_message_is_what_celery_sends(
    kwargs: dict[str, Any],
    priority: int,
    eta: datetime | None,
    expires: datetime | None,
    timeout: float | None,
    ignore_result: bool,
) -> None:
    """Read back through the codec, headers and body equal those of `as_task_v2`."""
    hard = None if timeout is None else timeout + max(5.0, timeout / 10)
    theirs = _APP.amqp.as_task_v2(
        _ID,
        "some.task",
        kwargs=kwargs,
        eta=eta,
        expires=expires,
        time_limit=hard,
        soft_time_limit=timeout,
        ignore_result=ignore_result,
    )

    ours = build(
        task_id=_ID,
        name="some.task",
        kwargs=kwargs,
        priority=priority,
        eta=eta,
        expires=expires,
        timeout_seconds=timeout,
        ignore_result=ignore_result,
    )

    headers, properties = decode_message(ours.headers)
    assert theirs.headers == headers
    assert json.loads(json.dumps(theirs.body)) == json.loads(ours.payload)
    assert {**theirs.properties, "priority": priority} == {
        name: properties[name] for name in ("correlation_id", "reply_to", "priority")
    }
    assert tuple(
        properties[name] for name in ("content_type", "content_encoding", "delivery_mode")
    ) == ("application/json", "utf-8", 2)
