"""Stores a task in NATS: one Celery message and one record of it, in one flush."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from bridge.envelope import from_epoch
from bridge.errors import InvalidTaskData, TaskSubmissionError
from bridge.names import Names
from bridge.records import TaskRecord, TaskState, TaskType
from bridge.submission import idempotency
from bridge.submission.deadline import ANSWER_SECONDS, Deadline
from bridge.submission.keys import TaskPlaces
from bridge.submission.message import build
from bridge.submission.outbox import Outbox
from bridge.submission.registry import TaskTypes
from bridge.submission.request import Accepted, Submission
from bridge.submission.stored import read
from bridge.submission.view import Known, state_of
from bridge.topology import TASK_RECORD_SECONDS
from bridge.transport.delay import MIN_DELAY_SECONDS, nonce, schedule_headers
from bridge.wire import ConnectionPool, JetStream, JetStreamError, PayloadTooLarge, PubAck
from bridge.wire.connection import Outgoing
from bridge.wire.kv import ttl_headers


class _Times:
    """The moments of one submission, in seconds since 1970."""

    def __init__(self, submission: Submission, now: float) -> None:
        self.now = now
        self.eta = _eta_epoch(submission, now)
        self.expires = _expires_epoch(submission, now)
        if self.expires is not None and self.expires <= max(now, self.eta or now):
            raise InvalidTaskData(
                "expires: the task would have expired before it could start. Give a later time."
            )

    @property
    def scheduled(self) -> bool:
        return self.eta is not None and self.eta - self.now >= MIN_DELAY_SECONDS


class Submitter:
    """Submits tasks. Safe for threads and greenlets.

    Args:
        pool: connections; their `connect_timeout` must not be above CONNECT_SECONDS.
        names: names of the virtual host.
        types: task types that can be submitted.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        names: Names,
        types: TaskTypes,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._pool = pool
        self._outbox = Outbox(pool)
        self._names = names
        self._types = types
        self._clock = clock

    def submit(
        self, submission: Submission, idempotency_key: str | None = None, client: str = ""
    ) -> Accepted:
        """Return once JetStream has stored the task. Each `client` has idempotency keys of its own.

        Raises:
            InvalidTaskData: unknown type, arguments that do not fit, a time in the past; status
                413 when the message is larger than the NATS server takes.
            InvalidParameters: the idempotency key is unusable, or (409) was used otherwise.
            ServiceUnavailable: no worker for the type.
            NatsConnectionError: NATS is not there or did not answer in time.
            TaskSubmissionError: NATS refused to store the task.
        """
        announced = self._types.lookup(submission.task_type)
        announced.check(submission.task_data)
        times = _Times(submission, self._clock())
        task_id = str(uuid.uuid4())
        if idempotency_key is None:
            outgoing = self._messages(submission, announced.task_type, times, task_id, {})
            self._store(outgoing, Deadline(ANSWER_SECONDS))
            return self._accepted(submission, announced.task_type, times, task_id)
        key = idempotency.check_key(idempotency_key)
        key = f"{client} {key}" if client else key
        return self._submit_once(submission, announced.task_type, times, task_id, key)

    def _submit_once(
        self, submission: Submission, kind: TaskType, times: _Times, task_id: str, key: str
    ) -> Accepted:
        deadline = Deadline(ANSWER_SECONDS)
        # Built first: what is too large or refused otherwise must not use up the key.
        self._messages(submission, kind, times, task_id, {})
        with self._pool.connection() as connection:
            js = JetStream(connection, deadline.remaining())
            claim = idempotency.claim(js, self._names, key, submission, task_id)
            stored = read(js, self._names, claim.task_id).known if claim.earlier else Known()
        if stored.empty:
            # New, or its first try ended between the claim and the task. JetStream drops the
            # second of two tries that run at the same time by the message id.
            once = {"Nats-Msg-Id": claim.task_id}
            outgoing = self._messages(submission, kind, times, claim.task_id, once)
            self._store(outgoing, deadline)
        accepted = self._accepted(submission, kind, times, claim.task_id)
        if not claim.earlier:
            return accepted
        state = accepted.state if stored.empty else state_of(stored, times.now)
        return msgspec.structs.replace(accepted, state=state, duplicate=True)

    def _messages(
        self,
        submission: Submission,
        kind: TaskType,
        times: _Times,
        task_id: str,
        extra_headers: dict[str, str],
    ) -> list[Outgoing]:
        """The task's message and its record, in the order they must be stored."""
        task = build(
            task_id=task_id,
            name=kind.name,
            kwargs=submission.task_data,
            priority=submission.priority_number,
            eta=_moment(times.eta),
            expires=_moment(times.expires),
            timeout_seconds=submission.timeout,
            ignore_result=kind.ignore_result,
        )
        headers = {**task.headers, **extra_headers}
        subject = self._names.task_subject(kind.queue, submission.priority_number)
        due = _moment(times.eta)
        if times.scheduled and due is not None:
            headers.update(schedule_headers(due, subject))
            subject = self._names.schedule_subject(kind.queue, task_id, nonce())
        return [(subject, task.payload, headers), self._record(submission, kind, times, task_id)]

    def _record(
        self, submission: Submission, kind: TaskType, times: _Times, task_id: str
    ) -> Outgoing:
        record = TaskRecord(
            task_id=task_id,
            task_type=kind.name,
            queue=kind.queue,
            priority=submission.priority_number,
            submitted_at=from_epoch(times.now),
            eta_epoch=times.eta,
            expires_at=None if times.expires is None else from_epoch(times.expires),
            timeout_seconds=submission.timeout,
        )
        # A task that waits for its time must not outlive its record.
        wait = max(0.0, times.eta - times.now) if times.scheduled and times.eta else 0.0
        headers = ttl_headers(TASK_RECORD_SECONDS + wait)
        subject = TaskPlaces(self._names, task_id).record_subject
        return subject, msgspec.json.encode(record), headers

    def _store(self, outgoing: list[Outgoing], deadline: Deadline) -> None:
        try:
            task, record = self._outbox.store(outgoing, deadline)
        except PayloadTooLarge as error:
            raise InvalidTaskData(
                f"task_data: {error}. Store large data elsewhere and send a reference.", status=413
            ) from error
        if isinstance(task, JetStreamError):
            if isinstance(record, PubAck):
                # Its record alone would claim that the task waits.
                self._outbox.store([(outgoing[1][0], b"", {"KV-Operation": "DEL"})], deadline)
            raise TaskSubmissionError(
                f"NATS did not store the task: {task.description}. Check the server's storage "
                "limits."
            ) from task
        if isinstance(record, JetStreamError):
            raise TaskSubmissionError(
                f"NATS stored the task but not its record: {record.description}. It may run; its "
                "state cannot be followed. Check the server's storage limits."
            ) from record

    def _accepted(
        self, submission: Submission, kind: TaskType, times: _Times, task_id: str
    ) -> Accepted:
        return Accepted(
            task_id=task_id,
            task_type=kind.name,
            state=TaskState.SCHEDULED if times.scheduled else TaskState.QUEUED,
            queue=kind.queue,
            priority=submission.priority_number,
        )


def _eta_epoch(submission: Submission, now: float) -> float | None:
    if submission.countdown is not None:
        return now + submission.countdown if submission.countdown else None
    return None if submission.eta is None else submission.eta.timestamp()


def _expires_epoch(submission: Submission, now: float) -> float | None:
    expires = submission.expires
    if isinstance(expires, datetime):
        return expires.timestamp()
    return None if expires is None else now + expires


def _moment(epoch: float | None) -> datetime | None:
    return None if epoch is None else datetime.fromtimestamp(epoch, UTC)
