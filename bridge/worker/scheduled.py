"""`celery inspect scheduled` also shows what waits in the server (ADR 0002).

Celery looks into the worker's timer. With us nearly all of it waits in the server until it is due
and belongs to no worker yet, so each worker tells of the queues it consumes.
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

logger = logging.getLogger("nats")

#: A reply is one message, and nobody reads a longer one.
_LIMIT = 1000
#: What Celery's timer gives a task.
_TIMER_PRIORITY = 6


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
