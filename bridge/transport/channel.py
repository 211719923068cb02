"""An AMQP channel on NATS: the calls kombu makes, translated."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

from kombu.transport import base

from bridge.errors import NatsConnectionError
from bridge.transport.bare import MalformedMessage
from bridge.transport.batch import PublishBatch
from bridge.transport.broker import BrokerConnection
from bridge.transport.declare import DeclaringChannel
from bridge.transport.headers import encode_message
from bridge.transport.intake import Intake
from bridge.transport.keeper import ACK, NAK, TERM
from bridge.transport.message import Message, RawMessage
from bridge.transport.outgoing import addressed, ttl_seconds
from bridge.transport.pull import Delivery
from bridge.transport.transient import TransientQueue, Waiting, expiry_headers
from bridge.wire.connection import Outgoing

_channel_ids = count(1)
Properties = dict[str, Any]


class Channel(DeclaringChannel):
    """One channel: publishes, consumes and acknowledges."""

    Message = Message

    def __init__(self, connection: BrokerConnection) -> None:
        super().__init__(connection)
        self.channel_id = next(_channel_ids)
        self.closed = False
        self.events: dict[str, set[Any]] = {"basic_return": set()}
        self.intake = Intake(connection)
        #: consumer tag -> queue
        self._consumers: dict[str, str] = {}
        #: delivery tag -> a queue in memory, and what goes back to it unless it is settled
        self._lent: dict[int, tuple[TransientQueue, Waiting]] = {}
        connection.channels.append(self)

    @property
    def is_open(self) -> bool:
        return not self.closed

    def close(self) -> None:
        """Cancel the consumers and give back what is not acknowledged, as AMQP does."""
        if self.closed:
            return
        self.closed = True
        try:
            for tag in list(self._consumers):
                self.basic_cancel(tag)
            self.basic_recover(requeue=True)
        finally:
            self.connection = None
            # What one of a broken connection holds is taken over from there.
            if self.broker.connected and self in self.broker.channels:
                self.broker.channels.remove(self)

    def abandon(self) -> None:
        """Take no more from a broken connection; what is unacknowledged may still be settled."""
        self.closed = True
        self.connection = None
        self._consumers.clear()
        self._lent.clear()
        self.intake.abandon()

    def has_declared(self, entity: Any) -> bool:
        """True where kombu has declared an exchange or queue on this connection and remembers it.

        It forgets them all with the connection.
        """
        return (
            self.connection is not None
            and entity.can_cache_declaration
            and hash(entity) in self.connection.client.declared_entities
        )

    # -- publishing --------------------------------------------------------------------

    def prepare_message(
        self,
        body: str | bytes,
        priority: int | None = None,
        content_type: str | None = None,
        content_encoding: str | None = None,
        headers: Mapping[str, Any] | None = None,
        properties: Mapping[str, Any] | None = None,
    ) -> tuple[str | bytes, Mapping[str, Any], Properties]:
        """Return body, headers and properties, what `basic_publish` takes as a message."""
        return (
            body,
            headers or {},
            {
                **(properties or {}),
                "priority": priority,
                "content_type": content_type,
                "content_encoding": content_encoding,
            },
        )

    def basic_publish(
        self,
        message: tuple[str | bytes, Mapping[str, Any], Properties],
        exchange: str = "",
        routing_key: str = "",
        **_: Any,
    ) -> None:
        """Send a message to every queue it belongs to; durable ones have stored it on return.

        A message that belongs to no queue is dropped, as AMQP drops it. Raises
        bridge.wire.PayloadTooLarge, JetStreamError, NatsConnectionError.
        """
        durable, transient = self.outgoing(message, exchange, routing_key)
        for outgoing in durable:
            self.broker.js.publish(*outgoing)
        if transient is not None:
            self.broker.wire.publish(*transient)
            if exchange and self._exchange_type(exchange) == "fanout":
                # Remote control. What is published next, on whatever connection, comes after it:
                # a task that was revoked first must not arrive first.
                self.broker.wire.flush()

    def create_publish_batch(self, max_size: int) -> PublishBatch:
        """Return what kombu publishes through within `Producer.batch()`.

        Raises NatsConnectionError when the server has gone since: nothing waits yet, so kombu
        can connect again.
        """
        if not self.broker.wire.is_alive():
            raise NatsConnectionError("the connection to NATS has broken")
        return PublishBatch(self, max_size)

    def outgoing(
        self,
        message: tuple[str | bytes, Mapping[str, Any], Mapping[str, Any]],
        exchange: str = "",
        routing_key: str | None = "",
    ) -> tuple[list[Outgoing], Outgoing | None]:
        """Return a message as it goes to JetStream, once a durable queue, and to core NATS."""
        body, headers, properties = message
        routing_key = routing_key or ""
        names = self.broker.names
        if not exchange and self._is_stored(routing_key):
            fields, payload = encode_message(body, headers=headers, properties=properties)
            ttl = self.broker.stored_queues.arguments[routing_key].message_ttl
            return [addressed(names, routing_key, headers, properties, fields, payload, ttl)], None
        properties = {**properties, "exchange": exchange, "routing_key": routing_key}
        fields, payload = encode_message(body, headers=headers, properties=properties)
        queues = self.broker.bindings.queues_for(exchange, routing_key) if exchange else {}
        durable = [
            addressed(names, queue, headers, properties, fields, payload, self._message_ttl(queue))
            for queue, may_have_expired in queues.items()
            if not (may_have_expired and self.broker.expiry.is_over(queue))
        ]
        fields |= expiry_headers(ttl_seconds(properties.get("expiration")))
        return durable, (names.exchange_subject(exchange, routing_key), payload, fields)

    # -- consuming ---------------------------------------------------------------------

    def basic_qos(self, prefetch_size: int, prefetch_count: int, a_global: bool = False) -> None:
        """Allow `prefetch_count` unacknowledged messages on this channel; 0 is no limit.

        Those of queues in memory count apart from those of stored ones.
        """
        self.intake.prefetch = prefetch_count
        self._on_room()

    def _room(self) -> float:
        prefetch = self.intake.prefetch
        return max(0, prefetch - len(self._lent)) if prefetch else math.inf

    def _on_room(self) -> None:
        """Take what waits in memory for the room there is now. Any thread."""
        for name in list(self._consumers.values()):
            queue = self._transient.get(name)
            if queue is not None:
                queue.announce()
        self.broker.wake_reader()

    def flow(self, active: bool = True) -> None:
        """Raise NotImplementedError, as on Redis."""
        raise NotImplementedError("nats:// does not pause channels: cancel the consumer")

    def basic_consume(
        self,
        queue: str,
        no_ack: bool = False,
        consumer_tag: str = "",
        callback: Callable[[RawMessage], None] | None = None,
        **_: Any,
    ) -> str:
        assert callback is not None
        tag = consumer_tag or f"amq.ctag-{uuid.uuid4()}"
        self._consumers[tag] = queue
        transient = self._transient.get(queue)
        if transient is not None:
            self.broker.keeper.start()

            def take(waiting: Waiting) -> None:
                raw = self._lend(transient, waiting, tag, no_ack)
                if self.closed:  # by another thread, which has given back the others
                    self.basic_recover()
                else:
                    callback(raw)

            room = (lambda: math.inf) if no_ack else self._room
            transient.consume((self.channel_id, tag), take, room)
            return tag
        self.broker.stored_queues.declare(queue, consume=True)
        self.intake.consume(tag, queue, self._taker(queue, tag, no_ack, callback))
        return tag

    def _lend(self, queue: TransientQueue, waiting: Waiting, tag: str, no_ack: bool) -> RawMessage:
        delivery_tag = self.intake.next_tag()
        if not no_ack:
            self._lent[delivery_tag] = queue, waiting._replace(redelivered=True)
        message, redelivered = waiting.message, waiting.redelivered
        return RawMessage(queue.name, message, None, delivery_tag, tag, redelivered=redelivered)

    def _taker(
        self, queue: str, tag: str, no_ack: bool, callback: Callable[[RawMessage], None]
    ) -> Callable[[Delivery], None]:
        """Return what puts a message of a stored queue in line for `callback`."""

        def take(delivery: Delivery) -> None:
            raw = self._raw(queue, delivery, tag)

            def deliver() -> bool:
                self.intake.waiting -= 1
                if tag not in self._consumers:
                    # Cancelled while the message waited here: it is not for this consumer.
                    self.basic_reject(raw.delivery_tag, requeue=True)
                    return False
                if self._set_aside(raw, delivery):
                    return False
                if no_ack:
                    self.basic_ack(raw.delivery_tag)
                callback(raw)
                return True

            self.intake.waiting += 1
            self.broker.add_ready(delivery.priority, deliver, alone=no_ack)

        return take

    def _set_aside(self, raw: RawMessage, delivery: Delivery) -> bool:
        """True when a message cannot be done and is now a dead letter."""
        dead = self.broker.dead
        task = None
        try:
            raw.decoded()
        except (MalformedMessage, ValueError) as error:
            reason = str(error)
        else:
            if not dead.is_poison(delivery):
                return False
            reason = dead.poison_reason()
            task = self.Message(raw, self)
        dead.set_aside(raw.queue, delivery, reason, task)
        self.intake.settle(raw.delivery_tag, TERM)
        return True

    def _raw(self, queue: str, delivery: Delivery, consumer_tag: str) -> RawMessage:
        delivery_tag = self.intake.next_tag()
        self.intake.hold(delivery_tag, delivery, consumer_tag)
        return RawMessage(queue, delivery.message, delivery, delivery_tag, consumer_tag)

    def basic_cancel(self, consumer_tag: str, **_: Any) -> None:
        """Stop consuming; what was delivered stays with this channel until it is settled."""
        queue = self._consumers.pop(consumer_tag, None)
        if queue is None:
            return
        self.intake.cancel(consumer_tag)
        transient = self._transient.get(queue)
        if transient is not None:
            if transient.cancel((self.channel_id, consumer_tag)) and transient.auto_delete:
                self.queue_delete(queue, if_unused=True)
        elif queue in self._auto_delete:
            # AMQP would take waiting messages along with the last consumer. Here they are kept.
            self.queue_delete(queue, if_unused=True, if_empty=True)

    def basic_get(self, queue: str, no_ack: bool = False, **_: Any) -> RawMessage | None:
        """Take one message, the highest priority first; None where there is none."""
        transient = self._transient.get(queue)
        if transient is not None:
            waiting = transient.get()
            if waiting is None:
                self.broker.wire.flush()  # what was sent before is here then
                waiting = transient.get()
            return None if waiting is None else self._lend(transient, waiting, "", no_ack)
        delivery = self.intake.fetch_one(queue)
        if delivery is None:
            return None
        raw = self._raw(queue, delivery, "")
        if no_ack:
            self.basic_ack(raw.delivery_tag)
        return raw

    def message_to_python(self, raw_message: RawMessage) -> base.Message:
        return self.Message(raw_message, self)

    # -- acknowledging -----------------------------------------------------------------

    def basic_ack(self, delivery_tag: int, multiple: bool = False, **_: Any) -> None:
        tags = [t for t in list(self._lent) if t <= delivery_tag] if multiple else [delivery_tag]
        if any([self._lent.pop(tag, None) for tag in tags]) and self.intake.prefetch:
            self._on_room()
        self.intake.settle(delivery_tag, ACK, multiple=multiple)

    def basic_reject(self, delivery_tag: int, requeue: bool = False) -> None:
        lent = self._lent.pop(delivery_tag, None)
        if lent is None:
            self.intake.settle(delivery_tag, NAK if requeue else TERM)
            return
        if requeue:
            queue, waiting = lent
            queue.put(waiting)
        if self.intake.prefetch:
            self._on_room()

    def basic_recover(self, requeue: bool = True) -> None:
        """Give back everything unacknowledged; it comes again, here or elsewhere."""
        self.intake.give_back()
        for delivery_tag in list(self._lent):
            self.basic_reject(delivery_tag, requeue=True)
