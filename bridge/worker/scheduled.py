"""What waits in the server until it is due, for Celery's commands that look for it (ADR 0002).

`celery inspect scheduled` looks into the worker's timer. With us nearly all waits in the server
and belongs to no worker yet, so each worker tells of the queues it consumes. `celery migrate` looks
into the queues: `celery nats enqueue-scheduled` moves it there.
"""

from __future__ import annotations

import contextlib
import logging
from typing import Any

from celery.worker.control import inspect_command
from celery.worker.control import scheduled as in_timer
from celery.worker.request import Request
from kombu.exceptions import ContentDisallowed, DecodeError

from bridge.transport.broker import BrokerConnection
from bridge.transport.message import Message, RawMessage
from bridge.wire import Connection, JetStream
from bridge.wire import Message as WireMessage
from bridge.wire.connection import Outgoing
from bridge.wire.jetstream import WRONG_LAST_SEQUENCE, PubAck

logger = logging.getLogger("nats")

#: A reply is one message, and nobody reads a longer one.
_LIMIT = 1000
#: What Celery's timer gives a task.
_TIMER_PRIORITY = 6
_LONG_DUE = "@at 1970-01-01T00:00:00Z"
#: What the server adds to a message that is read.
_PLACE = {
    *("Nats-Stream", "Nats-Subject", "Nats-Sequence", "Nats-Time-Stamp"),
    *("Nats-Num-Pending", "Nats-Last-Sequence"),
}


def install() -> None:
    """Take the place of Celery's command, also in a worker that another program embeds."""
    inspect_command(alias="dump_schedule")(scheduled)


def scheduled(state: Any, **__: Any) -> list[dict[str, Any]]:
    """List ETA and countdown tasks: this worker's own, and its queues' that are not due yet."""
    consumer = state.consumer
    broker = consumer.connection.connection
    if not isinstance(broker, BrokerConnection):
        return list(in_timer(state))
    found = []
    # A connection of its own: under gevent the worker's is being read by another greenlet.
    with contextlib.closing(Connection(broker.wire.options)) as wire:
        wire.connect()
        js = JetStream(wire, broker.js.timeout)
        for queue in consumer.task_consumer.queues:
            subjects = broker.names.queue_schedules(queue.name)
            messages, _ = js.page(broker.names.task_stream, subjects, 1, _LIMIT)
            found += [_described(message, queue.name, consumer) for message in messages]
    tasks = sorted((task for task in found if task), key=lambda task: str(task["eta"]))
    return [*in_timer(state), *tasks[:_LIMIT]]


def _described(wire: WireMessage, queue: str, consumer: Any) -> dict[str, Any] | None:
    try:
        message = Message(RawMessage(queue, wire, None, 0, ""), channel=None)
        request = Request(message, app=consumer.app, hostname=consumer.hostname)
    except (KeyError, ValueError, ContentDisallowed, DecodeError) as error:
        # Anybody may send what no worker can run; it is set aside when it is due.
        logger.warning("something scheduled on queue %s is no task: %r", queue, error)
        return None
    return {
        "eta": request.eta.isoformat() if request.eta else None,
        "priority": _TIMER_PRIORITY,
        "request": request.info(),
    }


def enqueue(broker: BrokerConnection, queue: str) -> int:
    """Put what is due later into its queue at once, with its `eta`; return how many there were.

    The server moves it, on its next look at what is due: nothing is lost or there twice.
    """
    stream, subjects = broker.names.task_stream, broker.names.queue_schedules(queue)
    count = 0
    first: int | None = 1
    while first is not None:
        messages, first = broker.js.page(stream, subjects, first)
        # Later pages bring ours again.
        later = [one for one in messages if one.headers["Nats-Schedule"] != _LONG_DUE]
        for answer in broker.js.publish_many(map(_due_now, later)):
            if isinstance(answer, PubAck):
                count += 1
            elif answer.err_code != WRONG_LAST_SEQUENCE:  # fell due or was cancelled meanwhile
                raise answer
    return count


def _due_now(message: WireMessage) -> Outgoing:
    headers = {name: text for name, text in message.headers.items() if name not in _PLACE}
    if "Nats-Msg-Id" in headers:
        # The server would take this one for a repetition.
        headers.setdefault("Celery-id", headers.pop("Nats-Msg-Id"))
    headers["Nats-Schedule"] = _LONG_DUE
    headers["Nats-Expected-Last-Subject-Sequence"] = message.headers["Nats-Sequence"]
    return message.headers["Nats-Subject"], message.payload, headers
