"""Flower's event thread, fed from the stored events instead of from what happens to be live."""

from __future__ import annotations

import logging
import threading
import time
from functools import partial
from typing import Any

from celery.events import EventReceiver
from flower.events import Events
from kombu import serialization

from bridge.flower.feed import EventFeed, Position, StoredEvent
from bridge.transport.broker import BrokerConnection
from bridge.transport.headers import decode_message

logger = logging.getLogger("nats")

#: A backlog goes to Flower's loop in batches of this size; it answers requests between them.
_BATCH_SIZE = 100
#: Batches on their way at any time.
_MAX_WAITING = 4
_RETRY_SECONDS = 1.0


class StoredEvents(Events):
    """Flower's memory of tasks and workers, refilled when Flower or NATS was away.

    Heartbeats come live, all else from the event stream. Where Flower restored what it had saved
    itself (``--persistent``), only what happens from now on.
    """

    def __init__(self, *args: Any, max_tasks_in_memory: int, **kwargs: Any) -> None:
        super().__init__(*args, max_tasks_in_memory=max_tasks_in_memory, **kwargs)
        self._position = Position()
        self._limit = 0 if self.state.tasks else max_tasks_in_memory
        #: events, and whether they are of before this Flower
        self._batch: list[tuple[dict[str, Any], bool]] = []
        self._room = threading.BoundedSemaphore(_MAX_WAITING)

    def run(self) -> None:
        """Capture events for ever; the body of the thread."""
        while True:
            try:
                with self.capp.connection_for_read() as connection:
                    _Receiver(self, connection).capture()
            # Whatever it was, Flower without this thread would show old figures for ever.
            except Exception as error:
                logger.warning(
                    "Flower gets no events (%s), trying again in %.0f s", error, _RETRY_SECONDS
                )
                logger.debug("why Flower gets no events", exc_info=True)
                time.sleep(_RETRY_SECONDS)

    def follow(self, broker: BrokerConnection, receiver: EventReceiver) -> EventFeed:
        """Begin to read stored events where the last connection ended."""
        take = partial(self._take, receiver)
        return EventFeed(broker.js, broker.names, self._position, self._limit, take)

    def _take(self, receiver: EventReceiver, stored: StoredEvent) -> None:
        is_past = stored.seq <= self._position.past_seq
        try:
            self._batch += [(event, is_past) for event in _events(receiver, stored)]
        # Anybody may publish events; one that is none must not stop the others.
        except Exception as error:
            logger.warning("event %d is not readable: %r", stored.seq, error)
        if len(self._batch) >= _BATCH_SIZE or not stored.num_pending:
            self._hand_over()

    def on_event(self, event: dict[str, Any]) -> None:
        """Take one live event."""
        self._batch.append((event, False))
        self._hand_over()

    def _hand_over(self) -> None:
        batch, self._batch = self._batch, []
        self._room.acquire()
        self.io_loop.add_callback(self._apply, batch)

    def _apply(self, batch: list[tuple[dict[str, Any], bool]]) -> None:
        """Runs in Flower's loop, as all that touches its state."""
        self._room.release()
        state, metrics = self.state, self.state.metrics
        for event, is_past in batch:
            # Prometheus would take a day's events for those of this moment.
            state.metrics = _NO_METRICS if is_past else metrics
            try:
                state.event(event)
            except Exception as error:
                logger.warning("event %r is not one of Celery's: %r", event, error)
        state.metrics = metrics


class _NoMetrics:
    """Stands in for Flower's metrics while events of the past are told."""

    def observe_task(self, *_: Any) -> None:
        """Measure nothing."""

    def observe_worker(self, *_: Any) -> None:
        """Measure nothing."""


_NO_METRICS = _NoMetrics()


class _Receiver(EventReceiver):
    """Celery's receiver for heartbeats; beside it the feed, on the same connection."""

    def __init__(self, events: StoredEvents, connection: Any) -> None:
        handlers = {"*": events.on_event}
        super().__init__(connection, handlers, routing_key="worker.heartbeat", app=events.capp)
        self._events = events
        self._feed: EventFeed | None = None

    def on_consume_ready(
        self, connection: Any, channel: Any, consumers: Any, **kwargs: Any
    ) -> None:
        self._feed = self._events.follow(connection.connection, self)
        super().on_consume_ready(connection, channel, consumers, **kwargs)

    def on_iteration(self) -> None:
        assert self._feed is not None
        self._feed.check()


def _events(receiver: EventReceiver, stored: StoredEvent) -> list[dict[str, Any]]:
    """Return the events in one message, as Celery's receiver would hand them over."""
    _, properties = decode_message(stored.message.headers)
    body = serialization.loads(
        stored.message.payload,
        properties.get("content_type"),
        properties.get("content_encoding"),
        accept=serialization.prepare_accept_content(receiver.accept),
    )
    return [
        receiver.event_from_message(event, now=lambda: stored.stored_epoch)[1]
        for event in (body if isinstance(body, list) else [body])
    ]
