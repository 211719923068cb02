"""Requests to JetStream that outlast an election.

In a cluster every stream and every consumer has a leader, and so has the whole. When the node that
leads dies, the others elect another within 4 to 9 s; until then nobody listens on its subjects, or
nobody answers. What was refused so has not happened and can be sent again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec

from bridge.errors import NatsConnectionError
from bridge.wire.connection import Connection, Outgoing, answered, has_no_responders
from bridge.wire.protocol import Message

#: A request that may be repeated is, when no answer came for this long.
_ROUND_SECONDS = 1.0
_PAUSE_SECONDS = 0.1
#: JetStream's error for "the cluster has no leader"
_NO_META_LEADER = 10008
_NO_LEADER = (
    "the NATS cluster has no leader for this just now: try again in a few seconds; if that does "
    "not help, see that JetStream is on there, and that more than half of its servers run and hold "
    "the stream"
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

    In a cluster that elects, what nobody has got is sent again; what nobody answered as well,
    where it is `repeatable`. Raises NatsTimeout when an answer did not come (the request may have
    been done), NatsConnectionError when there is no leader or the connection broke.
    """
    if not connection.is_clustered:
        return connection.request_many(requests, timeout)
    deadline = time.monotonic() + timeout
    patience = _ROUND_SECONDS if repeatable else timeout
    replies = connection.ask_many(requests, min(timeout, patience))
    while True:
        again = [
            number
            for number, reply in enumerate(replies)
            if (repeatable if reply is None else _is_leaderless(reply))
        ]
        if not again or time.monotonic() + _PAUSE_SECONDS >= deadline:
            break
        # What comes meanwhile for others is read by the next request.
        time.sleep(_PAUSE_SECONDS)
        left = min(deadline - time.monotonic(), patience)
        answers = connection.ask_many([requests[number] for number in again], left)
        for number, answer in zip(again, answers, strict=True):
            replies[number] = answer
    if any(reply is not None and _is_leaderless(reply) for reply in replies):
        raise NatsConnectionError(_NO_LEADER)
    return [answered(reply) for reply in replies]


def _is_leaderless(reply: Message) -> bool:
    """True where the request has reached no leader, so that nothing was done."""
    if has_no_responders(reply):
        return True
    # Looked for first: every PubAck and every stored message passes here.
    if b'"err_code":10008' not in reply.payload or reply.headers:
        return False
    try:
        error = _decode_refusal(reply.payload).error
    except msgspec.MsgspecError:
        return False
    return error is not None and error.err_code == _NO_META_LEADER
