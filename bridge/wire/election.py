"""Requests to JetStream that outlast what passes in a cluster.

In a cluster every stream and every consumer has a leader, and so has the whole. When the node that
leads dies, the others elect another within 4 to 9 s; until then nobody listens on its subjects, or
nobody answers. A message on the condition that another is the last of its subject is refused while
any is on its way to the copies, and one whose Nats-Msg-Id is on its way as well. What was refused
so has not happened and can be sent again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec

from bridge.errors import NatsConnectionError, NatsTimeout
from bridge.wire.answers import answered, has_no_responders
from bridge.wire.connection import SILENCE_SECONDS, Connection, Outgoing
from bridge.wire.protocol import Message

#: A request that may be repeated is, when no answer came for this long.
_ROUND_SECONDS = 1.0
_PAUSE_SECONDS = 0.1
#: Copies take a round trip, or as long as an election where too few nodes are left.
_SHORTEST_PAUSE_SECONDS = 0.005
#: JetStream's error for "the cluster has no leader"
_NO_META_LEADER = 10008
#: ... and for what meets a message on its way: "wrong last sequence" (of its subject), "duplicate
#: message id is in process"
_IN_FLIGHT = (10164, 10158)
_PASSING = (_NO_META_LEADER, *_IN_FLIGHT)
#: what every answer is looked through for before it is decoded
_MARKS = tuple(b'"err_code":%d' % code for code in _PASSING)
_NO_LEADER = (
    "the NATS cluster has no leader for this just now: try again in a few seconds; if that does "
    "not help, see that JetStream is on there, and that more than half of its servers run and hold "
    "the stream"
)
_COPIES_BEHIND = (
    "another message of this subject or id has been on its way to the copies for too long: try "
    "again, and see that more than half of the NATS cluster's servers run"
)


class _Error(msgspec.Struct, frozen=True):
    err_code: int = 0


class _Refusal(msgspec.Struct, frozen=True):
    error: _Error | None = None


_decode_refusal = msgspec.json.Decoder(_Refusal).decode


def ask(
    connection: Connection, requests: Sequence[Outgoing], timeout: float, *, repeatable: bool
) -> list[Message]:
    """Return the replies to all requests, in order, within `timeout` seconds.

    In a cluster, what an election or copies on their way held up is sent again; what nobody
    answered as well, where it is `repeatable`. Raises NatsTimeout when an answer did not come (the
    request may have been done), NatsConnectionError when there is no leader or the connection
    broke.
    """
    if not connection.is_clustered:
        return connection.request_many(requests, timeout)
    deadline = time.monotonic() + timeout
    patience = _ROUND_SECONDS if repeatable else timeout
    replies = connection.ask_many(requests, min(timeout, patience))
    short_pause = _SHORTEST_PAUSE_SECONDS
    while True:
        hindrances = {number: _hindrance(reply) for number, reply in enumerate(replies)}
        again = [
            number
            for number, reply in enumerate(replies)
            if hindrances[number] or (repeatable and reply is None)
        ]
        is_led = all(hindrances[number] in _IN_FLIGHT for number in again)
        pause = min(short_pause, _PAUSE_SECONDS) if is_led else _PAUSE_SECONDS
        short_pause *= 2
        if not again or time.monotonic() + pause >= deadline:
            break
        # What comes meanwhile for others is read by the next request.
        time.sleep(pause)
        if None in replies:  # which tells nothing of the server itself
            connection.check_peer(SILENCE_SECONDS)
        left = min(deadline - time.monotonic(), patience)
        answers = connection.ask_many([requests[number] for number in again], left)
        for number, answer in zip(again, answers, strict=True):
            replies[number] = answer
    if _NO_META_LEADER in hindrances.values():
        raise NatsConnectionError(_NO_LEADER)
    if any(hindrances.values()):
        raise NatsTimeout(_COPIES_BEHIND)
    return [answered(reply) for reply in replies]


def _hindrance(reply: Message | None) -> int:
    """Return the error number of what passes by itself, so that nothing was done; else 0."""
    if reply is None:
        return 0
    if has_no_responders(reply):
        return _NO_META_LEADER
    if reply.headers or not any(mark in reply.payload for mark in _MARKS):
        return 0
    try:
        error = _decode_refusal(reply.payload).error
    except msgspec.MsgspecError:
        return 0
    return error.err_code if error is not None and error.err_code in _PASSING else 0
