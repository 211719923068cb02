"""What cannot be done is set aside with its reason, so that it never blocks a queue."""

from __future__ import annotations

import logging
from collections.abc import Callable

from bridge.envelope import now
from bridge.errors import NatsConnectionError
from bridge.names import Names
from bridge.transport.message import Message
from bridge.transport.pull import Delivery
from bridge.wire import Bucket, JetStream

logger = logging.getLogger("nats")

REASON_HEADER = "Dead-Reason"
QUEUE_HEADER = "Dead-Queue"
TIME_HEADER = "Dead-At"
#: The server's own headers describe the first message, not its copy.
_SERVER_PREFIX = "Nats-"
_REASON_CHARACTERS = 500


class DeadLetters:
    """The stream of dead letters, and how often a message came before it got there."""

    def __init__(self, js: JetStream, names: Names, max_deliveries: int) -> None:
        #: told of every task set aside and the reason
        self.on_dead: Callable[[Message, str], None] | None = None
        self._js = js
        self._names = names
        self._max_deliveries = max_deliveries
        self._bucket = Bucket(js, names.bucket("deliveries"))

    def is_poison(self, delivery: Delivery) -> bool:
        """Count one more delivery of a message that came before; True when it is one too many.

        JetStream's own count does not serve: it also counts what was given back at once because
        no slot was free, and that says nothing about the task.
        """
        if delivery.num_delivered == 1 or not self._max_deliveries:
            return False
        key = str(delivery.stream_seq)
        earlier = int(self._bucket.get(key) or 1)
        if earlier >= self._max_deliveries:
            return True
        self._bucket.put(key, str(earlier + 1).encode())
        return False

    def poison_reason(self) -> str:
        return f"delivered {self._max_deliveries} times and never finished"

    def set_aside(self, queue: str, delivery: Delivery, reason: str, task: Message | None) -> None:
        """Store a copy with its reason; the caller then ends the message itself.

        `task` is None where the message is none. Raises JetStreamError, NatsConnectionError: then
        nothing may be ended.
        """
        message = delivery.message
        text = " ".join(reason.split())[:_REASON_CHARACTERS].encode("ascii", "replace").decode()
        fields = {
            name: value
            for name, value in message.headers.items()
            if not name.startswith(_SERVER_PREFIX)
        }
        fields |= {REASON_HEADER: text, QUEUE_HEADER: queue, TIME_HEADER: now()}
        self._js.publish(self._names.dead_subject(queue), message.payload, fields)
        task_id = "unknown" if task is None else task.headers.get("id", "unknown")
        logger.error("set aside a message of queue %s: %s (task %s)", queue, text, task_id)
        if task is None or "task" not in task.headers or self.on_dead is None:
            return
        try:
            self.on_dead(task, text)
        except NatsConnectionError:
            raise  # it comes again, and is told of then
        # A result backend's own. Said again for each delivery, it would block the queue.
        except Exception as error:
            logger.error("who waits for task %s was not told of its end: %r", task_id, error)
