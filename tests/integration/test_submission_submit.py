"""Submissions on a real server: stored when answered, once per key, never later."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from bridge.errors import InvalidParameters, InvalidTaskData, NatsConnectionError
from bridge.submission.request import Submission
from bridge.transport.headers import decode_message
from tests.support.nats import NatsServer
from tests.support.submission import QUEUE, Room


@pytest.fixture
def room(nats_server: NatsServer) -> Iterator[Room]:
    with Room(nats_server.url) as room:
        yield room


def _submission(message: str = "hello", **fields: object) -> Submission:
    return Submission(task_type="test", task_data={"message": message}, **fields)  # type: ignore[arg-type]


def test_answer_means_stored(room: Room) -> None:
    """When the answer is there, the task is on its queue's subject and can be looked up."""
    accepted = room.submitter.submit(_submission(priority="high", timeout=10))

    message = room.last(room.names.task_subject(QUEUE, accepted.priority))
    assert message is not None
    headers, _ = decode_message(message.headers)
    assert (accepted.task_id, "test", [15.0, 10]) == (
        headers["id"],
        headers["task"],
        headers["timelimit"],
    )
    assert json.loads(message.payload)[:2] == [[], {"message": "hello"}]
    view = room.lookup.get(accepted.task_id)
    assert ("QUEUED", QUEUE, accepted.priority) == (view.state, view.queue, view.priority)


@pytest.mark.parametrize("by", ["countdown", "eta"])
def test_later_task_waits_in_the_server(room: Room, by: str) -> None:
    """A task that is due later is a schedule in the server and not on its queue."""
    due = datetime.now(UTC) + timedelta(hours=1)
    fields = {"countdown": 3600.0} if by == "countdown" else {"eta": due}

    accepted = room.submitter.submit(_submission(**fields))

    subject = room.names.task_subject(QUEUE, accepted.priority)
    assert room.last(subject) is None
    assert room.queued() == 1
    assert "SCHEDULED" == accepted.state == room.lookup.get(accepted.task_id).state


def test_short_countdown_is_left_to_the_worker(room: Room) -> None:
    """A task due in less than a second goes out at once and carries its eta."""
    accepted = room.submitter.submit(_submission(countdown=0.5))

    message = room.last(room.names.task_subject(QUEUE, accepted.priority))
    assert message is not None
    headers, _ = decode_message(message.headers)
    left = datetime.fromisoformat(headers["eta"]) - datetime.now(UTC)
    assert timedelta(seconds=-5) < left < timedelta(seconds=0.5)


def test_record_of_a_task_due_late_outlives_the_usual_time(room: Room) -> None:
    """The record of a task due in ten days is kept beyond the seven days of others."""
    accepted = room.submitter.submit(_submission(countdown=10 * 86_400.0))

    bucket = room.bucket("tasks")
    message = room.js.get_last(bucket.stream, bucket.subject(accepted.task_id))
    assert message is not None
    assert int(message.headers["Nats-TTL"]) >= 17 * 86_400


def test_task_that_expires_before_it_starts_is_refused(room: Room) -> None:
    """An expiry before the eta can only be a mistake."""
    with pytest.raises(InvalidTaskData, match="expires"):
        room.submitter.submit(_submission(countdown=60.0, expires=30.0))

    assert room.queued() == 0


def test_same_key_and_body_is_one_task(room: Room, nats_server: NatsServer) -> None:
    """The key finds its task again, also after the server was killed and restarted."""
    first = room.submitter.submit(_submission(), "key-1")
    nats_server.kill()
    nats_server.start()
    room.reconnect()

    second = room.submitter.submit(_submission(), "key-1")

    assert (first.task_id, False, True) == (second.task_id, first.duplicate, second.duplicate)
    assert room.queued() == 1


def test_same_key_tells_the_state_of_its_task(room: Room) -> None:
    """A repeated request learns that its task has ended meanwhile."""
    first = room.submitter.submit(_submission(), "key-1")
    room.store_result(first.task_id, status="SUCCESS", result=1)

    assert room.submitter.submit(_submission(), "key-1").state == "SUCCESS"


def test_same_key_with_another_body_is_a_conflict(room: Room) -> None:
    """A key that is used for something else is refused with 409."""
    room.submitter.submit(_submission(), "key-1")

    with pytest.raises(InvalidParameters, match="another request") as refused:
        room.submitter.submit(_submission("other"), "key-1")

    assert refused.value.status == 409
    assert room.queued() == 1


def test_concurrent_requests_with_one_key_store_one_task(room: Room) -> None:
    """Many requests with one key at the same time all get the one task."""
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: room.submitter.submit(_submission(), "k"), range(24)))

    assert len({answer.task_id for answer in answers}) == 1
    assert sum(not answer.duplicate for answer in answers) == 1
    assert room.queued() == 1


def test_key_whose_task_was_never_stored_stores_it_now(room: Room) -> None:
    """A request that died between key and task is completed by its repetition."""
    first = room.submitter.submit(_submission(), "key-1")
    room.js.api(f"STREAM.PURGE.{room.names.task_stream}")
    room.bucket("tasks").delete(first.task_id)
    # The server remembers message ids for two minutes; a later repetition meets it like this.
    room.js.api(f"STREAM.DELETE.{room.names.task_stream}")
    room.js.ensure_topology(room.names)

    second = room.submitter.submit(_submission(), "key-1")

    assert (first.task_id, True) == (second.task_id, second.duplicate)
    assert room.queued() == 1


@pytest.mark.parametrize("key", ["", "x" * 256, "a\nb", "ä"])
def test_unusable_key_is_refused(room: Room, key: str) -> None:
    """A key that is empty, too long or not printable ASCII is a client's mistake."""
    with pytest.raises(InvalidParameters, match="Idempotency-Key"):
        room.submitter.submit(_submission(), key)


def test_many_at_once_are_all_stored(room: Room) -> None:
    """Requests that share a write each get their own task."""
    with ThreadPoolExecutor(16) as threads:
        answers = list(
            threads.map(lambda n: room.submitter.submit(_submission(str(n))), range(200))
        )

    assert 200 == len({answer.task_id for answer in answers}) == room.queued()


def test_too_large_task_fails_alone(room: Room, nats_server: NatsServer) -> None:
    """A task above the server's limit is 413 and takes down none that were sent with it."""
    limit = room.connection.server_info["max_payload"]
    texts = ["x" * limit if n % 4 == 0 else "small" for n in range(16)]

    def submit(text: str) -> int:
        try:
            room.submitter.submit(_submission(text))
        except InvalidTaskData as error:
            return error.status
        return 200

    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(submit, texts))

    assert [413 if len(text) > 10 else 200 for text in texts] == answers
    assert room.queued() == 12


def test_dead_server_is_told_at_once_and_nothing_comes_later(
    room: Room, nats_server: NatsServer
) -> None:
    """Without a server the answer comes within two seconds, and nothing is stored afterwards."""
    room.submitter.submit(_submission())
    nats_server.kill()

    started = time.monotonic()
    with pytest.raises(NatsConnectionError):
        room.submitter.submit(_submission())
    assert time.monotonic() - started < 2

    nats_server.start()
    room.reconnect()
    room.submitter.submit(_submission())
    assert room.queued() == 2


def test_silent_server_is_told_in_time_to_all(room: Room, nats_server: NatsServer) -> None:
    """While the server hangs, everyone is answered in two seconds, also who waits for a turn."""
    room.submitter.submit(_submission())

    def submit(_: int) -> float:
        started = time.monotonic()
        with pytest.raises(NatsConnectionError):
            room.submitter.submit(_submission())
        return time.monotonic() - started

    with nats_server.frozen(), ThreadPoolExecutor(8) as threads:
        slowest = max(threads.map(submit, range(8)))

    assert slowest < 2
    assert room.submitter.submit(_submission()).state == "QUEUED"


def test_server_that_comes_back_serves_the_next_request(
    room: Room, nats_server: NatsServer
) -> None:
    """Idle connections that a restart has cut are not used again."""
    room.submitter.submit(_submission())
    nats_server.restart()

    assert room.submitter.submit(_submission()).state == "QUEUED"
