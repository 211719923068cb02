"""A kombu consumer that keeps what it gets, for tests."""

from __future__ import annotations

import time
from typing import Any

from kombu import Connection, Consumer, Producer, Queue
from kombu.message import Message

RECEIVE_SECONDS = 10.0
#: How long nothing must come for "nothing comes": many times what a message takes here.
QUIET_SECONDS = 0.3


def send(connection: Connection, queue: Queue, *bodies: Any, **options: Any) -> None:
    """Publish each body to a durable queue."""
    with connection.channel() as channel:
        producer = Producer(channel)
        for body in bodies:
            producer.publish(body, routing_key=queue.name, declare=[queue], **options)


class Inbox:
    """Consumes `queues` on a channel of its own; nothing is acknowledged by itself.

    `prefetch` 0 is no limit.
    """

    def __init__(
        self, connection: Connection, *queues: Queue, prefetch: int = 0, no_ack: bool = False
    ) -> None:
        self.connection = connection
        self.channel = connection.channel()
        self.messages: list[Message] = []
        self.consumer = Consumer(
            self.channel, queues, on_message=self.messages.append, no_ack=no_ack
        )
        self.consumer.qos(prefetch_count=prefetch)
        self.consumer.consume()

    @property
    def bodies(self) -> list[Any]:
        return [message.payload for message in self.messages]

    def wait(self, count: int) -> list[Message]:
        """Return all messages once there are `count`, or fail."""
        deadline = time.monotonic() + RECEIVE_SECONDS
        while len(self.messages) < count:
            left = deadline - time.monotonic()
            assert left > 0, f"{len(self.messages)} of {count} messages came: {self.bodies}"
            try:
                self.connection.drain_events(timeout=left)
            except TimeoutError:
                continue
        return self.messages

    def take(self, count: int = 1) -> list[Message]:
        """Wait for `count` messages and remove them from this inbox."""
        self.wait(count)
        taken, self.messages[:count] = self.messages[:count], []
        return taken

    def assert_quiet(self) -> None:
        """Fail when any more message comes."""
        before = len(self.messages)
        deadline = time.monotonic() + QUIET_SECONDS
        while (left := deadline - time.monotonic()) > 0:
            try:
                self.connection.drain_events(timeout=left)
            except TimeoutError:
                break
        assert len(self.messages) == before, f"unexpected: {self.bodies[before:]}"

    def close(self) -> None:
        self.channel.close()
