"""JetStream over a `Connection`: publish with acknowledgement, the API, direct get."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from bridge import topology
from bridge.errors import BridgeError, ErrorCode, NatsTimeout
from bridge.names import Names
from bridge.wire.answers import answered
from bridge.wire.connection import Connection, Outgoing
from bridge.wire.election import ask
from bridge.wire.protocol import Message
from bridge.wire.refusals import MAXIMUM_CONSUMERS, STREAM_NOT_FOUND, with_advice

#: Settings of a stream that must be as we say; an operator may tune all others.
_REQUIRED = (
    "subjects",
    "retention",
    "allow_direct",
    "allow_msg_ttl",
    "allow_msg_schedules",
    "allow_rollup_hdrs",
    "republish",
)
#: JetStream's error for a failed expected-last-sequence check (nats-facts: CAS)
WRONG_LAST_SEQUENCE = 10071
NO_MESSAGE_FOUND = 404
#: Calls that do the same when they are made twice, with the same answer.
_REPEATABLE = (
    *("INFO", "STREAM.CREATE", "STREAM.UPDATE", "STREAM.INFO"),
    *("CONSUMER.CREATE", "CONSUMER.INFO"),
)
_END_OF_BATCH = 204
#: Well below what a server holds for a client before it cuts it as too slow (64 MB).
_PAGE_BYTES = 8 * 1024 * 1024
_PAGE_MESSAGES = 1000


class ApiError(msgspec.Struct, frozen=True):
    """The error part of an API answer or a PubAck."""

    code: int = 500
    err_code: int = 0
    description: str = ""


class PubAck(msgspec.Struct, frozen=True):
    """JetStream has stored a message (or knew its Nats-Msg-Id already: `duplicate`).

    `val` is the total, a decimal number, where the message counted (ADR-49 of NATS).
    """

    stream: str
    seq: int
    duplicate: bool = False
    val: str = ""


class _Answer(msgspec.Struct, frozen=True):
    error: ApiError | None = None
    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    val: str = ""


class JetStreamError(BridgeError):
    """JetStream refused a request. `err_code` is the server's own error number."""

    code = ErrorCode.TASK_SUBMISSION_ERROR

    def __init__(self, error: ApiError, subject: str) -> None:
        said = with_advice(error.description, error.err_code)
        super().__init__(f"JetStream refused {subject}: {said}")
        self.api_code = error.code
        self.err_code = error.err_code
        self.description = error.description


class Stored(msgspec.Struct, frozen=True):
    """A message as the stream API shows it."""

    seq: int
    data: bytes = b""
    hdrs: bytes = b""


class _StoredAnswer(msgspec.Struct, frozen=True):
    message: Stored | None = None
    error: ApiError | None = None


_decode_answer = msgspec.json.Decoder(_Answer).decode


class JetStream:
    """The calls we need. `timeout` in seconds bounds every one of them."""

    def __init__(self, connection: Connection, timeout: float = 2.0) -> None:
        self.connection = connection
        self.timeout = timeout

    def publish(
        self, subject: str, payload: bytes, headers: Mapping[str, str] | None = None
    ) -> PubAck:
        """Return when the message is stored. Raises JetStreamError, NatsConnectionError."""
        [ack] = self.publish_many([(subject, payload, headers)])
        if isinstance(ack, JetStreamError):
            raise ack
        return ack

    def publish_many(self, messages: Iterable[Outgoing]) -> list[PubAck | JetStreamError]:
        """Send all in one write; return one PubAck or refusal each, in order."""
        messages = list(messages)
        replies = self._ask(messages, repeatable=False)
        return [
            _pub_ack(reply, message[0]) for reply, message in zip(replies, messages, strict=True)
        ]

    def api(self, endpoint: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Call ``$JS.API.<endpoint>``. Raises JetStreamError."""
        return self.api_many([(endpoint, body)])[0]

    def api_many(
        self, calls: Iterable[tuple[str, Mapping[str, Any] | None]]
    ) -> list[dict[str, Any]]:
        """Make all calls in one write. Raises the first JetStreamError."""
        answers: list[dict[str, Any]] = []
        for answer in self.try_many(calls):
            if isinstance(answer, JetStreamError):
                raise answer
            answers.append(answer)
        return answers

    def try_many(
        self, calls: Iterable[tuple[str, Mapping[str, Any] | None]]
    ) -> list[dict[str, Any] | JetStreamError]:
        """Make all calls in one write; return one answer or refusal each, in order."""
        calls = list(calls)
        replies = self._ask(
            [
                (f"$JS.API.{name}", msgspec.json.encode(body) if body else b"", None)
                for name, body in calls
            ],
            repeatable=all(name.startswith(_REPEATABLE) for name, _ in calls),
        )
        return [_api_answer(reply, name) for reply, (name, _) in zip(replies, calls, strict=True)]

    def get_last(self, stream: str, subject: str) -> Message | None:
        """Return the last message on a subject, deletions and expiry markers as None."""
        return self.get_last_many(stream, [subject])[0]

    def get_last_or_marker(self, stream: str, subject: str) -> Message | None:
        """Return the last message on a subject, be it the marker of an expired one."""
        [reply] = self._get_last([subject], stream)
        return None if reply.status is not None else reply

    def get_last_many(self, stream: str, subjects: Iterable[str]) -> list[Message | None]:
        """`get_last` of several subjects in one write."""
        return [None if is_gone(reply) else reply for reply in self._get_last(subjects, stream)]

    def _get_last(self, subjects: Iterable[str], stream: str) -> list[Message]:
        """Return the last messages on subjects, with status 404 where there is none.

        Any copy of the stream answers. One that does not know a message may be behind, so in a
        cluster the leader is asked whether there is any.
        """
        subjects = list(subjects)
        replies = self._direct_get(subjects, stream)
        deadline = time.monotonic() + self.timeout
        while self.connection.is_clustered:
            absent = [number for number, reply in enumerate(replies) if reply.status is not None]
            if not absent:
                break
            known = self.get_stored(stream, [subjects[number] for number in absent])
            behind = [n for n, stored in zip(absent, known, strict=True) if stored is not None]
            if not behind:
                break
            if time.monotonic() > deadline:
                raise NatsTimeout(f"the copies of {stream} are behind its leader: try again")
            again = self._direct_get([subjects[number] for number in behind], stream)
            for number, reply in zip(behind, again, strict=True):
                replies[number] = reply
        return replies

    def _direct_get(self, subjects: Iterable[str], stream: str) -> list[Message]:
        replies = self._ask(
            [(f"$JS.API.DIRECT.GET.{stream}.{subject}", b"", None) for subject in subjects],
            repeatable=True,
        )
        for reply in replies:
            if reply.status not in {None, NO_MESSAGE_FOUND}:
                raise status_error(reply, stream)
        return replies

    def get_stored(self, stream: str, subjects: Iterable[str]) -> list[Stored | None]:
        """Return the last message on each subject, maybe with wildcards, as the leader knows it."""
        requests = [
            (f"$JS.API.STREAM.MSG.GET.{stream}", msgspec.json.encode({"last_by_subj": s}), None)
            for s in subjects
        ]
        return [_stored(reply, stream) for reply in self._ask(requests, repeatable=True)]

    def _ask(self, requests: Sequence[Outgoing], *, repeatable: bool) -> list[Message]:
        return ask(self.connection, requests, self.timeout, repeatable=repeatable)

    def page(
        self, stream: str, subjects: str, first: int, limit: int = _PAGE_MESSAGES
    ) -> tuple[list[Message], int | None]:
        """Return stored messages from sequence `first` on, and where the next page begins.

        Each tells its subject and sequence in the headers Nats-Subject and Nats-Sequence.
        """
        request = {
            "next_by_subj": subjects,
            "seq": first,
            "batch": limit,
            "max_bytes": _PAGE_BYTES,
        }
        *messages, end = self.connection.collect(
            f"$JS.API.DIRECT.GET.{stream}",
            msgspec.json.encode(request),
            lambda message: message.status is not None,
            self.timeout,
        )
        if end.status == NO_MESSAGE_FOUND:
            return [], None
        if answered(end).status != _END_OF_BATCH:
            raise status_error(end, stream)
        pending, last = end.headers["Nats-Num-Pending"], end.headers["Nats-Last-Sequence"]
        return messages, int(last) + 1 if int(pending) else None

    def ends(self, streams: Iterable[str]) -> dict[str, int]:
        """Return the sequence of the message that each stream stores next."""
        streams = list(dict.fromkeys(streams))
        infos = self.api_many((f"STREAM.INFO.{stream}", None) for stream in streams)
        return {
            stream: info["state"]["last_seq"] + 1
            for stream, info in zip(streams, infos, strict=True)
        }

    def purge(self, *places: tuple[str, str], ends: Mapping[str, int] | None = None) -> int:
        """Remove what lies in places (stream, subject with wildcards) now; return how much it was.

        A server that was frozen may do it long after nobody waits for it any more. So it is told
        how far to go, and takes nothing that came since then, or since `ends` were asked for.
        """
        ends = ends or self.ends(stream for stream, _ in places)
        answers = self.api_many(
            (f"STREAM.PURGE.{stream}", {"filter": subject, "seq": ends[stream]})
            for stream, subject in places
        )
        return sum(answer["purged"] for answer in answers)

    def ensure_stream(self, config: Mapping[str, Any]) -> None:
        """Create the stream; bring an existing one to what we require of it.

        Raises JetStreamError when it exists in a form that cannot be changed.
        """
        name = config["name"]
        try:
            self._create_stream(config)
        except JetStreamError as error:
            refused = error
        else:
            return
        try:
            existing = self.api(f"STREAM.INFO.{name}")["config"]
        except JetStreamError as error:
            if error.err_code != STREAM_NOT_FOUND:
                raise
            # Not that the name is in use: the server looks at the account's limits before that.
            raise refused from None
        required = {key: config[key] for key in _REQUIRED if key in config}
        wrong = sorted(key for key, value in required.items() if existing.get(key) != value)
        if wrong:
            self._update_stream({**existing, **required}, wrong)

    def _create_stream(self, config: Mapping[str, Any]) -> None:
        endpoint = f"STREAM.CREATE.{config['name']}"
        try:
            self.api(endpoint, config)
        except JetStreamError as error:
            if error.err_code != MAXIMUM_CONSUMERS or "max_consumers" not in config:
                raise
            # An account with a limit of its own takes no stream with a higher one; without any,
            # the account's counts.
            self.api(endpoint, {**config, "max_consumers": -1})

    def _update_stream(self, config: Mapping[str, Any], wrong: list[str]) -> None:
        name = config["name"]
        try:
            self.api(f"STREAM.UPDATE.{name}", config)
        except JetStreamError as error:
            advice = (
                f"stream {name} exists with another {', '.join(wrong)}, and the server says: "
                f"{error.description}. Remove the stream (`nats stream rm {name}`) or use another "
                "virtual host"
            )
            raise JetStreamError(
                ApiError(error.api_code, error.err_code, advice), f"STREAM.UPDATE.{name}"
            ) from error

    def ensure_topology(self, names: Names, replicas: int = 1) -> None:
        """Create what is missing of a virtual host's streams and buckets."""
        configs = topology.streams(names, replicas)
        try:
            self.api_many([(f"STREAM.CREATE.{c['name']}", c) for c in configs])
        except JetStreamError:
            for config in configs:
                self.ensure_stream(config)


def _stored(reply: Message, stream: str) -> Stored | None:
    answer = msgspec.json.decode(reply.payload, type=_StoredAnswer)
    if answer.error is not None and answer.error.code != NO_MESSAGE_FOUND:
        raise JetStreamError(answer.error, stream)
    return answer.message


def _pub_ack(reply: Message, subject: str) -> PubAck | JetStreamError:
    try:
        answer = _decode_answer(reply.payload)
    except msgspec.MsgspecError as error:
        return JetStreamError(ApiError(description=f"no PubAck but {error}"), subject)
    if answer.error is not None:
        return JetStreamError(answer.error, subject)
    return PubAck(answer.stream, answer.seq, answer.duplicate, answer.val)


def _api_answer(reply: Message, name: str) -> dict[str, Any] | JetStreamError:
    try:
        answer = msgspec.json.decode(reply.payload, type=dict[str, Any])
        error = msgspec.convert(answer.get("error"), ApiError | None)
    except msgspec.MsgspecError as failure:
        return JetStreamError(ApiError(description=f"no answer but {failure}"), name)
    return answer if error is None else JetStreamError(error, name)


def status_error(message: Message, stream: str) -> JetStreamError:
    """Return the exception for a direct get that was refused, for instance as malformed."""
    return JetStreamError(ApiError(message.status or 500, 0, message.description), stream)


def delivered(ack_subject: str) -> list[str]:
    """Return what the reply subject says of a message that a consumer delivered.

    Stream, consumer, times delivered, sequence in the stream, of the consumer, nanoseconds since
    1970, messages pending.
    """
    tokens = ack_subject.split(".")
    # $JS.ACK. and these, or with domain and account hash before them and more to come behind
    # (ADR-15 of NATS).
    return tokens[2:] if len(tokens) == 9 else tokens[4:11]


def is_expired(message: Message) -> bool:
    """True for the marker that a message leaves whose time was up (ADR-43 of NATS)."""
    return message.headers.get("Nats-Marker-Reason") == "MaxAge"


def is_gone(message: Message) -> bool:
    """True for an absent message (404) and for the markers of deleted and expired ones."""
    if message.status is not None:
        return True
    headers = message.headers
    return "Nats-Marker-Reason" in headers or headers.get("KV-Operation") in {"DEL", "PURGE"}
