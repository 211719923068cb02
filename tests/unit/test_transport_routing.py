"""Which queue a message goes to, and when."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.names import Names
from bridge.transport import delay
from bridge.transport.exchange import Binding, key_matches
from bridge.transport.message import level_of
from bridge.transport.pull import Delivery
from bridge.wire import Message

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
words = st.sampled_from(["a", "b", "task", "", "x-y", "*?"])
keys = st.lists(words, min_size=1, max_size=5).map(".".join)
patterns = st.lists(words | st.sampled_from(["*", "#"]), min_size=1, max_size=5).map(".".join)


def reference_topic_match(pattern: str, key: str) -> bool:
    """AMQP 0-9-1's rule, by a regular expression over words that all end in a dot."""
    expression = "".join(
        {"*": r"[^.]*\.", "#": r"(?:[^.]*\.)*"}.get(word, re.escape(word) + r"\.")
        for word in pattern.split(".")
    )
    return re.fullmatch(expression, key + ".") is not None


@given(patterns, keys)
def test_topic_keys_match_as_amqp_says(pattern: str, key: str) -> None:
    """`*` is exactly one word, `#` is any number of them, also none."""
    assert key_matches("topic", pattern, key) == reference_topic_match(pattern, key)


@pytest.mark.parametrize(
    ("pattern", "key", "expected"),
    [
        ("#", "a.b.c", True),
        ("task.#", "task", True),
        ("task.#", "task.sent.x", True),
        ("task.*", "task", False),
        ("#.end", "a.b.end", True),
        ("a.#.z", "a.z", True),
        ("a.#.z", "a.b.c", False),
    ],
)
def test_topic_examples(pattern: str, key: str, expected: bool) -> None:
    """The cases Celery's event receivers rely on, written out."""
    assert key_matches("topic", pattern, key) is expected


@given(keys, keys)
def test_direct_and_fanout_keys(binding_key: str, routing_key: str) -> None:
    """A direct exchange compares keys, a fanout exchange ignores them."""
    assert key_matches("direct", binding_key, routing_key) == (binding_key == routing_key)
    assert key_matches("fanout", binding_key, routing_key)


def _nats_matches(subject: str, filter_subject: str) -> bool:
    tokens, wanted = subject.split("."), filter_subject.split(".")
    for index, token in enumerate(wanted):
        if token == ">":
            return len(tokens) > index
        if index >= len(tokens) or token not in ("*", tokens[index]):
            return False
    return len(tokens) == len(wanted)


@given(patterns, keys)
def test_subscriptions_miss_nothing_a_topic_binding_wants(pattern: str, key: str) -> None:
    """Every message that a topic binding matches comes on exactly one of its subjects."""
    names = Names()
    subject = names.exchange_subject("logs", key)
    filters = names.binding_subjects("logs", "topic", pattern)

    hits = sum(_nats_matches(subject, one) for one in filters)

    if key_matches("topic", pattern, key):
        assert hits == 1
    assert names.routing_key_of(subject) == key


def test_bindings_of_different_names_have_different_keys() -> None:
    """Dots in names cannot make two bindings share one key of the bucket."""
    first = Binding("a.b", "direct", "c", "d")
    second = Binding("a", "direct", "b.c", "d")

    assert first.bucket_key != second.bucket_key


def test_bindings_of_lasting_queues_are_stored_as_ever() -> None:
    """Whether a queue expires is told of those that do, and missing means that it does not."""
    lasting = Binding("x", "direct", "q", "k")

    stored = msgspec.json.encode(lasting)

    assert b"expires" not in stored
    assert msgspec.json.decode(stored, type=Binding) == lasting
    assert msgspec.json.decode(stored, type=Binding).expires is False


@pytest.mark.parametrize("headers", [None, {}, {"eta": None}])
def test_a_message_without_eta_goes_at_once(headers: dict[str, None] | None) -> None:
    """Most messages are due when they are sent."""
    assert delay.due_time(headers, NOW) is None


@pytest.mark.parametrize(
    "eta",
    [
        "2026-11-24T12:00:30+00:00",
        "2026-11-24T12:00:30",
        "2026-11-24T13:00:30+01:00",
        datetime(2026, 11, 24, 12, 0, 30, tzinfo=UTC),
        datetime(2026, 11, 24, 7, 0, 30, tzinfo=timezone(-timedelta(hours=5))),
    ],
)
def test_eta_is_read_in_its_zone(eta: str | datetime) -> None:
    """Without a zone it is UTC, Celery's own rule."""
    assert delay.due_time({"eta": eta}, NOW) == NOW + timedelta(seconds=30)


@pytest.mark.parametrize("seconds", [-3600, 0, 0.999])
def test_what_is_due_soon_waits_in_the_worker(seconds: float) -> None:
    """The server's schedules are too coarse for less than a second."""
    eta = (NOW + timedelta(seconds=seconds)).isoformat()

    assert delay.due_time({"eta": eta}, NOW) is None


def test_schedule_headers_name_moment_and_target() -> None:
    """The server gets UTC with milliseconds, whatever zone the sender used."""
    due = datetime(2026, 11, 24, 13, 0, 30, 123456, tzinfo=timezone(timedelta(hours=1)))

    assert delay.schedule_headers(due, "cq.q.5") == {
        "Nats-Schedule": "@at 2026-11-24T12:00:30.123Z",
        "Nats-Schedule-Target": "cq.q.5",
    }


def test_nonces_differ() -> None:
    """Two schedules of one task id must not replace each other."""
    assert delay.nonce() != delay.nonce()


@pytest.mark.parametrize(("priority", "level"), [(None, 0), (0, 0), (9, 9), (255, 9), (-1, 0)])
def test_priorities_are_kept_within_their_range(priority: int | None, level: int) -> None:
    """AMQP knows priorities to 255; beyond 9 they are all the highest."""
    assert level_of(priority) == level


@pytest.mark.parametrize(
    "reply",
    [
        "$JS.ACK.CELERY_default.q-5.3.17.4.1700000000000000000.42",
        "$JS.ACK.hub.hash.CELERY_default.q-5.3.17.4.1700000000000000000.42",
        "$JS.ACK.hub.hash.CELERY_default.q-5.3.17.4.1700000000000000000.42.token",
    ],
)
def test_deliveries_tell_their_count_and_backlog(reply: str) -> None:
    """Both forms of JetStream's reply subject are read, with and without a domain."""
    delivery = Delivery(Message("cq.q.5", 1, reply, b"", b""))

    assert delivery.num_delivered == 3
    assert delivery.stream_seq == 17
    assert delivery.num_pending == 42
    assert delivery.ack_subject == reply
