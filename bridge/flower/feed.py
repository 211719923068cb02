"""Follows the stored events of a virtual host, each once and in order, from any position on."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from bridge.errors import NatsConnectionError
from bridge.names import EVENT_EXCHANGE, Names
from bridge.wire import Connection, JetStream, Message
from bridge.wire.jetstream import delivered

#: The server sends a sign of life this often; after three missed ones it has forgotten us.
_HEARTBEAT_SECONDS = 5.0
_SILENCE_SECONDS = 3 * _HEARTBEAT_SECONDS
#: How long the server keeps the consumer of a client that has gone.
_INACTIVE_SECONDS = 30.0


@dataclass
class Position:
    """How far the events of one stream were read; survives the connection they came over."""

    #: when the stream was created: sequences of another one mean nothing
    stream_created: str = ""
    #: sequence of the last event that was read
    last_seq: int = 0
    #: last sequence of the stream when it was first read: all up to it happened before
    past_seq: int = 0


@dataclass(frozen=True)
class StoredEvent:
    """One message of the event stream. `stored_epoch`: seconds since 1970."""

    message: Message
    seq: int
    stored_epoch: float
    #: how many more are there already
    num_pending: int


class EventFeed:
    """Hands every stored task event after `position` to `take` while somebody drains `wire`.

    `limit` bounds how many messages of the past come the first time. Raises
    NatsConnectionError, NatsTimeout, JetStreamError.
    """

    def __init__(
        self,
        js: JetStream,
        names: Names,
        position: Position,
        limit: int,
        take: Callable[[StoredEvent], None],
    ) -> None:
        self._wire: Connection = js.connection
        self._position = position
        self._take = take
        self._delivered = 0
        self._heard = time.monotonic()
        self._seek(js, names, limit)
        inbox = self._wire.new_inbox()
        self._wire.subscribe(inbox, self._on_message)
        js.api(
            f"CONSUMER.CREATE.{names.event_stream}",
            {
                "stream_name": names.event_stream,
                "config": _consumer(names, inbox, position.last_seq + 1),
            },
        )

    def check(self) -> None:
        """Raise NatsConnectionError when the server has lost the consumer."""
        if time.monotonic() - self._heard > _SILENCE_SECONDS:
            raise NatsConnectionError(
                f"no event and no sign of life from the event stream for {_SILENCE_SECONDS:.0f} s"
            )

    def _seek(self, js: JetStream, names: Names, limit: int) -> None:
        """Place the position of a stream that was not read before at its last `limit` events."""
        position, stream = self._position, names.event_stream
        info = js.api(f"STREAM.INFO.{stream}")
        if info["created"] == position.stream_created:
            return
        position.stream_created = info["created"]
        first, last = info["state"]["first_seq"], info["state"]["last_seq"]
        # How many follow falls with the sequence, so the place can be found by halving.
        start = bisect_left(
            range(first, last + 1),
            -limit,
            key=lambda seq: -_count_from(self._wire, stream, _subjects(names)[0], seq),
        )
        position.last_seq, position.past_seq = max(0, first + start - 1), last

    def _on_message(self, message: Message) -> None:
        self._heard = time.monotonic()
        if message.status is not None:
            # Flow control: the server goes on once it knows that we came this far.
            proceed = message.reply or message.headers.get("Nats-Consumer-Stalled")
            if proceed:
                self._wire.publish(proceed)
            return
        seq, number, nanoseconds, pending = map(int, delivered(message.reply)[3:])
        self._delivered += 1
        if number != self._delivered:
            raise NatsConnectionError("an event got lost on the way; reading it again")
        self._position.last_seq = seq
        self._take(StoredEvent(message, seq, nanoseconds / 1e9, pending))


def _subjects(names: Names) -> list[str]:
    """Return the subjects of what is to be had from the stream; heartbeats are not."""
    root = names.exchange_subjects(EVENT_EXCHANGE).removesuffix(">")
    return [f"{root}task.>", f"{root}worker.online", f"{root}worker.offline"]


def _consumer(names: Names, inbox: str, start: int) -> dict[str, Any]:
    return {
        "deliver_subject": inbox,
        "deliver_policy": "by_start_sequence",
        "opt_start_seq": start,
        "filter_subjects": _subjects(names),
        "ack_policy": "none",
        "flow_control": True,
        "idle_heartbeat": int(_HEARTBEAT_SECONDS * 1e9),
        "inactive_threshold": int(_INACTIVE_SECONDS * 1e9),
        "mem_storage": True,
        "num_replicas": 1,
    }


def _count_from(wire: Connection, stream: str, subject: str, seq: int) -> int:
    """Return how many messages on `subject` the stream holds from `seq` on."""
    query = {"seq": seq, "batch": 1, "next_by_subj": subject}
    first, *_ = wire.collect(
        f"$JS.API.DIRECT.GET.{stream}",
        msgspec.json.encode(query),
        lambda message: message.status is not None,
    )
    return 0 if first.status is not None else 1 + int(first.headers["Nats-Num-Pending"])
