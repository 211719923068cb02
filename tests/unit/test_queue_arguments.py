"""Queue arguments between AMQP and JetStream."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from bridge.names import Names
from bridge.transport.arguments import AUTO_DELETE_SECONDS, QueueArguments
from bridge.transport.outgoing import addressed

milliseconds = st.none() | st.integers(1, 10**10)


@given(ttl=milliseconds, expires=milliseconds, auto_delete=st.booleans())
def test_consumers_keep_what_amqp_asked_for(
    ttl: int | None, expires: int | None, auto_delete: bool
) -> None:
    """What is read back from the server is what was declared."""
    given = {"x-message-ttl": ttl, "x-expires": expires, "x-max-priority": 9}
    arguments = QueueArguments.of(given, auto_delete=auto_delete)

    assert QueueArguments.from_consumer(arguments.consumer_config()) == arguments


def test_queue_without_arguments_leaves_consumers_alone() -> None:
    """Nothing is added where nothing was asked for."""
    arguments = QueueArguments.of(None, auto_delete=False)

    assert arguments == QueueArguments()
    assert arguments.consumer_config() == {}


def test_auto_delete_queue_ends_with_what_it_holds() -> None:
    """After its own time with its messages, after a day without them where it names no time."""
    assert QueueArguments.of({"x-expires": 5000}, auto_delete=True) == (5.0, 5.0)
    assert QueueArguments.of({}, auto_delete=True) == (None, AUTO_DELETE_SECONDS)


def headers_of(queue_ttl: float | None, **message: object) -> dict[str, str]:
    """The NATS headers of a message in a queue with a time to live."""
    headers = {key: message[key] for key in ("task", "id", "eta") if key in message}
    _, _, fields = addressed(Names(), "q", headers, message, {}, b"", queue_ttl)
    assert fields is not None
    return dict(fields)


def test_the_shorter_time_to_live_counts() -> None:
    """The message's own or the queue's, in whole seconds."""
    assert headers_of(2.5) == {"Nats-TTL": "3"}
    assert headers_of(60.0, expiration="5000") == {"Nats-TTL": "5"}
    assert headers_of(5.0, expiration="60000") == {"Nats-TTL": "5"}
    assert headers_of(None) == {}


def test_tasks_end_with_their_queue_and_not_by_their_own_time() -> None:
    """The worker revokes an expired task, so that who waits is told; a queue's limit is final."""
    task = {"task": "a.task", "id": "1"}
    assert headers_of(None, expiration="5000", **task) == {}
    assert headers_of(5.0, expiration="1000", **task) == {"Nats-TTL": "5"}


def test_time_to_live_of_a_scheduled_task_begins_when_it_is_due() -> None:
    """The schedule itself must not expire."""
    eta = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    headers = headers_of(5.0, task="a.task", id="1", eta=eta)

    assert headers["Nats-Schedule-TTL"] == "5"
    assert "Nats-TTL" not in headers
