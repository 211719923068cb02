"""Many publishes, one wait: what kombu's `Producer.batch()` gathers for JetStream."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kombu.exceptions import BatchPublishError

from bridge.errors import NatsConnectionError, TaskSubmissionError
from bridge.wire import JetStreamError, PayloadTooLarge
from bridge.wire.connection import Outgoing

if TYPE_CHECKING:
    from celery.result import AsyncResult

    from bridge.transport.channel import Channel

logger = logging.getLogger("nats")

#: What is sent before its PubAcks are awaited. All of it must be stored within the connection's
#: `timeout`, on a slow disk too, and all of it is in doubt when the connection breaks; a window
#: four times as large saves 2 of 24 µs a message.
_WINDOW_MESSAGES = 256
_WINDOW_BYTES = 1024 * 1024
#: ``NATS/1.0``, its line's end and the empty line; colon, space and line's end of each header
_HEAD_BYTES, _FIELD_BYTES = 12, 4
#: An error names this many tasks in its text; its attributes name all.
_NAMED = 3


class BatchNotStored(TaskSubmissionError, BatchPublishError):
    """Some messages of a batch are not in the stream, or may not be; all others are stored.

    `refused` (surely not stored) and `in_doubt` (sent, and the connection broke or time was up
    before the PubAck) map task ids to reasons. A message that is no task is called by its
    ``message_id``, else by its number in the batch. `results` has the AsyncResult of every call
    where `bridge.bulk.apply_many` raises this.
    """

    def __init__(
        self,
        refused: Mapping[str, str],
        in_doubt: Mapping[str, str],
        results: Sequence[AsyncResult] = (),
    ) -> None:
        self.refused = dict(refused)
        self.in_doubt = dict(in_doubt)
        self.results = list(results)
        told = []
        if refused:
            told.append(f"{len(refused)} not stored ({_named(refused)}): send them again")
        if in_doubt:
            told.append(
                f"{len(in_doubt)} may be stored or not ({_named(in_doubt)}): send them again with "
                "their task_id where running twice does no harm"
            )
        super().__init__("; ".join(told))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.refused, self.in_doubt, self.results)


def _named(reasons: Mapping[str, str]) -> str:
    first = list(reasons.items())[:_NAMED]
    told = ", ".join(f"{name}: {reason}" for name, reason in first)
    return told if len(reasons) <= _NAMED else f"{told}, ..."


class PublishBatch:
    """Gathers messages for durable queues and stores them a window at a time.

    Made by kombu when the first message of a `Producer.batch()` is published, and ended by it.
    """

    def __init__(self, channel: Channel, max_size: int) -> None:
        """`max_size` is kombu's limit for the messages that wait here."""
        self.channel = channel
        #: the messages of the last `publish`, one for each durable queue it goes to
        self.last: list[Outgoing] = []
        self._window_messages = min(max_size, _WINDOW_MESSAGES)
        self._waiting: list[tuple[str, Outgoing]] = []
        self._waiting_bytes = 0
        self._count = 0

    def publish(
        self,
        message: tuple[str | bytes, Mapping[str, Any], Mapping[str, Any]],
        exchange: str = "",
        routing_key: str = "",
        **_: Any,
    ) -> None:
        """Take what `Channel.basic_publish` takes, and store it at the latest in `flush`.

        What goes to transient queues is sent at once: nothing is awaited for it. Raises
        PayloadTooLarge for this message, which is then not in the batch, and BatchNotStored for
        those of a window that is full, or for all that wait when the connection breaks.
        """
        headers, properties = message[1:]
        self._count += 1
        name = str(headers.get("id") or properties.get("message_id") or f"message {self._count}")
        try:
            durable, transient = self.channel.outgoing(message, exchange, routing_key)
            sizes = [self._checked_size(outgoing) for outgoing in durable]
            if transient is not None:
                self.channel.broker.wire.publish(*transient)
        except NatsConnectionError as error:
            # kombu would connect again and know nothing of what waits here.
            names = [*(waiting for waiting, _ in self._emptied()), name]
            raise BatchNotStored(dict.fromkeys(names, f"not sent, for {error}"), {}) from error
        self.last = durable
        for outgoing, size in zip(durable, sizes, strict=True):
            self._take(name, outgoing, size)

    def add(self, task_id: str, outgoing: Outgoing) -> None:
        """Take one message that is encoded and addressed. Raises as `publish`."""
        self._take(task_id, outgoing, self._checked_size(outgoing))

    def _checked_size(self, outgoing: Outgoing) -> int:
        _, payload, fields = outgoing
        fields = fields or {}
        # Exact, for header values are ASCII (bridge.transport.headers).
        size = len(payload) + _HEAD_BYTES + _FIELD_BYTES * len(fields)
        size += sum(map(len, fields)) + sum(map(len, fields.values()))
        limit = int(self.channel.broker.wire.server_info["max_payload"])
        if size > limit:
            raise PayloadTooLarge(size, limit)
        return size

    def _take(self, name: str, outgoing: Outgoing, size: int) -> None:
        self._waiting.append((name, outgoing))
        self._waiting_bytes += size
        if len(self._waiting) >= self._window_messages or self._waiting_bytes >= _WINDOW_BYTES:
            self.flush()

    def flush(self) -> None:
        """Return when everything that waits is stored. Raises BatchNotStored."""
        waiting = self._emptied()
        if not waiting:
            return
        try:
            answers = self.channel.broker.js.publish_many(outgoing for _, outgoing in waiting)
        except NatsConnectionError as error:
            raise BatchNotStored({}, {name: str(error) for name, _ in waiting}) from error
        refused = {
            name: answer.description
            for (name, _), answer in zip(waiting, answers, strict=True)
            if isinstance(answer, JetStreamError)
        }
        if refused:
            raise BatchNotStored(refused, {})

    def _emptied(self) -> list[tuple[str, Outgoing]]:
        waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        return waiting

    def discard(self) -> None:
        """Drop what waits, as kombu does where the block of a batch raises."""
        waiting = self._emptied()
        if waiting:
            logger.warning(
                "%d messages of a batch were not sent, because its block raised (%s)",
                len(waiting),
                _first_and_last(name for name, _ in waiting),
            )

    def close(self) -> None:
        """Nothing: the channel is the producer's."""


def _first_and_last(names: Iterable[str]) -> str:
    first, *rest = names
    return f"{first} to {rest[-1]}" if rest else first
