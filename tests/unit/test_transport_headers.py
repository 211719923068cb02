"""The header codec: what Celery puts in comes out, and a sender may leave the defaults out."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery
from hypothesis import given
from hypothesis import strategies as st

from bridge.transport.headers import (
    DELIVERY_COUNT,
    TASK_DEFAULTS,
    decode_message,
    decode_value,
    encode_message,
    encode_value,
)

app = Celery("headers", set_as_current=False)

#: Any text UTF-8 can carry, and often one that a careless codec would take for JSON.
texts = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(
    ["", " ", "null", "true", "12", "-", "1.5", "NaN", "-Infinity", '"x"', "[1", "{}", "a\r\nb: c"]
)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
header_names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
    lambda name: name not in {*TASK_DEFAULTS, "task", "id", "root_id", DELIVERY_COUNT}
)


@given(json_values)
def test_any_json_value_survives(value: Any) -> None:
    """A header value comes back equal and of the same type, whatever JSON value it was."""
    decoded = decode_value(encode_value(value))

    assert decoded == value
    assert type(decoded) is type(value)


@given(texts)
def test_encoded_text_is_a_legal_header(text: str) -> None:
    """No text can end its header line, begin another or lose blanks at its ends."""
    encoded = encode_value(text)

    assert encoded.isascii()
    assert encoded.isprintable()
    assert encoded == encoded.strip()
    assert encoded


def test_plain_words_travel_as_they_are() -> None:
    """A person who reads the stream sees a task's name and not its JSON form."""
    assert encode_value("tasks.add") == "tasks.add"
    assert encode_value("gen1@host") == "gen1@host"


def test_text_that_looks_like_json_is_quoted() -> None:
    """A task id of digits does not come back as a number."""
    assert encode_value("123") == '"123"'
    assert decode_value("123abc") == "123abc"


@given(
    st.dictionaries(header_names, json_values, max_size=6),
    st.binary() | st.text(st.characters(exclude_categories=["Cs"])),
    st.fixed_dictionaries(
        {"content_type": st.just("application/json"), "content_encoding": st.just("utf-8")},
        optional={
            "correlation_id": texts,
            "reply_to": texts,
            "priority": st.integers(0, 9),
            "delivery_mode": st.sampled_from([1, 2]),
            "expiration": st.integers(0, 10**9).map(str),
        },
    ),
)
def test_any_message_survives(
    headers: dict[str, Any], body: str | bytes, properties: dict[str, Any]
) -> None:
    """Application headers of any name, AMQP properties and body come back as they were."""
    fields, payload = encode_message(body, headers=headers, properties=properties)
    decoded_headers, decoded_properties = decode_message(fields)

    assert decoded_headers == headers
    assert decoded_properties == {"delivery_mode": 2, **properties}
    assert payload == (body if isinstance(body, bytes) else body.encode())


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "countdown": st.integers(0, 10**6),
            "expires": st.integers(1, 10**6) | st.just(datetime(2030, 1, 1, tzinfo=UTC)),
            "group_id": texts,
            "group_index": st.integers(0, 1000),
            "retries": st.integers(0, 1000),
            "time_limit": st.integers(1, 10**6),
            "soft_time_limit": st.integers(1, 10**6),
            "root_id": texts,
            "parent_id": texts,
            "shadow": texts,
            "ignore_result": st.booleans(),
            "argsrepr": texts,
            "origin": texts,
            "replaced_task_nesting": st.integers(0, 10),
            "headers": st.dictionaries(header_names, json_values, max_size=3),
        },
    ),
    st.lists(json_values, max_size=3),
)
def test_every_celery_task_message_survives(options: dict[str, Any], args: list[Any]) -> None:
    """A worker sees exactly the headers that Celery's own task message protocol 2 made."""
    message = app.amqp.as_task_v2("123", "tasks.add", args=args, kwargs={}, **options)

    fields, _ = encode_message(b"", headers=message.headers, properties=message.properties)
    decoded, properties = decode_message(fields)

    expected = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in message.headers.items()
    }
    assert decoded == expected
    given = {name: value for name, value in message.properties.items() if value is not None}
    assert properties == {"delivery_mode": 2, **given}


def test_a_plain_task_needs_few_headers() -> None:
    """What equals protocol 2's defaults costs nothing on the wire."""
    message = app.amqp.as_task_v2("the-id", "tasks.add", args=(1, 2), kwargs={})

    fields, _ = encode_message(b"", headers=message.headers, properties=message.properties)

    celery_fields = {name for name in fields if name.startswith("Celery-")}
    assert celery_fields == {
        "Celery-task",
        "Celery-id",
        "Celery-argsrepr",
        "Celery-kwargsrepr",
        "Celery-origin",
    }
    assert fields["Celery-task"] == "tasks.add"


def test_a_bare_task_name_makes_a_complete_task() -> None:
    """A sender that knows only the task's name and id gets all of protocol 2's defaults."""
    headers, _ = decode_message({"Celery-task": "tasks.add", "Celery-id": "abc"})

    assert headers == {**TASK_DEFAULTS, "task": "tasks.add", "id": "abc", "root_id": "abc"}


def test_defaults_are_not_shared_between_messages() -> None:
    """Celery writes into headers; what it writes must not appear in the next message."""
    first, _ = decode_message({"Celery-task": "a"})
    first["stamps"]["written"] = 1
    first["timelimit"][0] = 5

    second, _ = decode_message({"Celery-task": "a"})

    assert second["stamps"] == {}
    assert second["timelimit"] == [None, None]


def test_messages_that_are_no_tasks_get_no_task_headers() -> None:
    """An event or a control message keeps its own few headers."""
    headers, properties = decode_message({"Celery-hostname": "w1@host", "Nats-Msg-Id": "7"})

    assert headers == {"hostname": "w1@host"}
    assert properties == {"delivery_mode": 2}


def test_unknown_properties_are_dropped_as_amqp_drops_them() -> None:
    """Celery's retry passes properties of a message along that no broker takes."""
    fields, _ = encode_message(b"", headers=None, properties={"delivery_tag": 7, "priority": 3})

    assert fields == {"Priority": "3"}


def test_the_count_of_deliveries_is_never_sent_on() -> None:
    """A retried task starts with a count of its own."""
    fields, _ = encode_message(b"", headers={DELIVERY_COUNT: 4, "task": "t"}, properties={})

    assert fields == {"Celery-task": "t"}


def test_a_body_is_encoded_as_it_says() -> None:
    """The declared encoding is the one the bytes have."""
    _, payload = encode_message("ä", headers={}, properties={"content_encoding": "latin-1"})

    assert payload == b"\xe4"


def test_a_header_json_cannot_hold_is_refused() -> None:
    """The sender learns of it; nothing unreadable gets into the stream."""
    with pytest.raises(TypeError):
        encode_message(b"", headers={"x": object()}, properties={})


def test_dates_survive_as_kombu_writes_them() -> None:
    """kombu's JSON keeps the type of a date, and so do header values."""
    moment = datetime(2026, 11, 24, 12, 30, tzinfo=UTC) + timedelta(microseconds=5)

    assert decode_value(encode_value(moment)) == moment
