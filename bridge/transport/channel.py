"""An AMQP channel on NATS: the calls kombu makes, translated."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

from amqp.exceptions import NotFound
from amqp.protocol import queue_declare_ok_t
from kombu.transport import base

from bridge.errors import NatsConnectionError
from bridge.names import MAX_PRIORITY
from bridge.transport.bare import MalformedMessage
from bridge.transport.batch import PublishBatch
from bridge.transport.broker import BrokerConnection
from bridge.transport.exchange import Binding
from bridge.transport.headers import encode_message
from bridge.transport.intake import ACK, NAK, TERM, Intake
from bridge.transport.message import Message, RawMessage
from bridge.transport.outgoing import addressed, ttl_seconds
from bridge.transport.pull import Delivery
from bridge.transport.transient import TransientQueue, expiry_headers, priority_of
from bridge.wire import Message as WireMessage
from bridge.wire.connection import Outgoing
from bridge.wire.jetstream import JetStreamError

#: Control traffic overtakes tasks that wait in this process.
_TRANSIENT_PRIORITY = MAX_PRIORITY + 1
_CONSUMER_NOT_FOUND = 10014

_channel_ids = count(1)
Properties = dict[str, Any]


class Channel(base.StdChannel):
    """One channel. Durable queues live in JetStream, all others in core NATS."""

    Message = Message

    def __init__(self, connection: BrokerConnection) -> None:
        self.connection = connection
        self.channel_id = next(_channel_ids)
        self.closed = False
        self.events: dict[str, set[Any]] = {"basic_return": set()}
        self._intake = Intake(connection)
        #: consumer tag -> queue
        self._consumers: dict[str, str] = {}
        self._transient: dict[str, TransientQueue] = {}
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
            for queue in list(self._transient.values()):
                queue.close()
        finally:
            if self in self.connection.channels:
                self.connection.channels.remove(self)

    # -- exchanges and queues ----------------------------------------------------------

    def exchange_declare(self, exchange: str, type: str = "direct", **_: Any) -> None:
        if exchange:
            self.connection.exchange_types[exchange] = type

    def exchange_delete(self, exchange: str, **_: Any) -> None:
        self.connection.exchange_types.pop(exchange, None)
        self.connection.bindings.remove_exchange(exchange)

    def queue_declare(
        self,
        queue: str = "",
        passive: bool = False,
        durable: bool = False,
        exclusive: bool = False,
        auto_delete: bool = False,
        **_: Any,
    ) -> queue_declare_ok_t:
        """Create a queue; return its name, waiting messages and consumers (0: not counted).

        Raises amqp's NotFound where `passive` and there is none.
        """
        queue = queue or f"amq.gen-{uuid.uuid4()}"
        if queue in self._transient:
            return queue_declare_ok_t(queue, len(self._transient[queue].messages), 0)
        if passive:
            return queue_declare_ok_t(queue, self._waiting(queue), 0)
        if durable and not auto_delete and not exclusive:
            return queue_declare_ok_t(queue, self.connection.declare_queue(queue), 0)
        self._transient[queue] = TransientQueue(
            self.connection.wire, self.connection.names, queue, auto_delete=auto_delete
        )
        return queue_declare_ok_t(queue, 0, 0)

    def _waiting(self, queue: str) -> int:
        try:
            infos = self.connection.js.api_many(self.connection.consumer_endpoints("INFO", queue))
        except JetStreamError as error:
            if error.err_code != _CONSUMER_NOT_FOUND:
                raise
            raise NotFound(f"no queue {queue!r}", (50, 10), "Queue.declare") from error
        return sum(info["num_pending"] for info in infos)

    def queue_bind(self, queue: str, exchange: str = "", routing_key: str = "", **_: Any) -> None:
        if not exchange:
            return
        exchange_type = self._exchange_type(exchange)
        if queue in self._transient:
            self._transient[queue].bind(exchange, exchange_type, routing_key)
        else:
            self.connection.bindings.add(Binding(exchange, exchange_type, queue, routing_key))

    def _exchange_type(self, exchange: str) -> str:
        known = self.connection.exchange_types.get(exchange)
        if known is None:
            bindings = self.connection.bindings.for_exchange(exchange)
            known = bindings[0].exchange_type if bindings else "direct"
        return known

    def queue_unbind(self, queue: str, exchange: str = "", routing_key: str = "", **_: Any) -> None:
        if queue in self._transient:
            self._transient[queue].unbind(exchange, routing_key)
        else:
            self.connection.bindings.remove(queue=queue, exchange=exchange, key=routing_key)

    def queue_purge(self, queue: str, **_: Any) -> int:
        """Remove the messages that wait; return how many. What is in flight goes too."""
        if queue in self._transient:
            purged = len(self._transient[queue].messages)
            self._transient[queue].messages.clear()
            return purged
        return self._purge(self.connection.names.queue_subjects(queue))

    def _purge(self, subjects: str) -> int:
        answer = self.connection.js.api(
            f"STREAM.PURGE.{self.connection.names.task_stream}", {"filter": subjects}
        )
        return int(answer["purged"])

    def queue_delete(
        self, queue: str, if_unused: bool = False, if_empty: bool = False, **_: Any
    ) -> int:
        """Remove a queue with its messages, scheduled ones too; return how many waited."""
        transient = self._transient.pop(queue, None)
        if transient is not None:
            transient.close()
            return len(transient.messages)
        connection = self.connection
        if if_empty and self._waiting(queue):
            return 0
        purged = self.queue_purge(queue)
        self._purge(connection.names.queue_schedules(queue))
        connection.bindings.remove(queue=queue)
        connection.durable_queues.discard(queue)
        for call in connection.consumer_endpoints("DELETE", queue):
            try:
                connection.js.api_many([call])
            except JetStreamError as error:
                if error.err_code != _CONSUMER_NOT_FOUND:
                    raise
        return purged

    def after_reply_message_received(self, queue: str) -> None:
        self.queue_delete(queue)

    def prepare_queue_arguments(self, arguments: Mapping[str, Any], **kwargs: Any) -> Any:
        return base.to_rabbitmq_queue_arguments(arguments, **kwargs)

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
            self.connection.js.publish(*outgoing)
        if transient is not None:
            self.connection.wire.publish(*transient)
            if exchange and self._exchange_type(exchange) == "fanout":
                # Remote control. What is published next, on whatever connection, comes after it:
                # a task that was revoked first must not arrive first.
                self.connection.wire.flush()

    def create_publish_batch(self, max_size: int) -> PublishBatch:
        """Return what kombu publishes through within `Producer.batch()`.

        Raises NatsConnectionError when the server has gone since: nothing waits yet, so kombu
        can connect again.
        """
        if not self.connection.wire.is_alive():
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
        names = self.connection.names
        if not exchange and self._is_durable(routing_key):
            fields, payload = encode_message(body, headers=headers, properties=properties)
            return [addressed(names, routing_key, headers, properties, fields, payload)], None
        properties = {**properties, "exchange": exchange, "routing_key": routing_key}
        fields, payload = encode_message(body, headers=headers, properties=properties)
        queues = self.connection.bindings.queues_for(exchange, routing_key) if exchange else set()
        durable = [
            addressed(names, queue, headers, properties, fields, payload) for queue in queues
        ]
        fields |= expiry_headers(ttl_seconds(properties.get("expiration")))
        return durable, (names.exchange_subject(exchange, routing_key), payload, fields)

    def _is_durable(self, queue: str) -> bool:
        if queue in self.connection.durable_queues:
            return True
        try:
            self._waiting(queue)
        except NotFound:
            return False
        self.connection.durable_queues.add(queue)
        return True

    # -- consuming ---------------------------------------------------------------------

    def basic_qos(self, prefetch_size: int, prefetch_count: int, a_global: bool = False) -> None:
        """Allow `prefetch_count` unacknowledged messages on this channel; 0 is no limit."""
        self._intake.prefetch = prefetch_count

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
        take = self._taker(queue, tag, no_ack, callback)
        transient = self._transient.get(queue)
        if transient is not None:
            transient.consume(lambda message: take(message, None))
            return tag
        self.connection.declare_queue(queue, consume=True)
        self._intake.consume(tag, queue, lambda delivery: take(delivery.message, delivery))
        return tag

    def _taker(
        self, queue: str, tag: str, no_ack: bool, callback: Callable[[RawMessage], None]
    ) -> Callable[[WireMessage, Delivery | None], None]:
        """Return what puts a message of a consumer in line for `callback`."""

        def take(message: WireMessage, delivery: Delivery | None) -> None:
            raw = self._raw(queue, message, delivery, tag)

            def deliver() -> None:
                if delivery is not None and tag not in self._consumers:
                    # Cancelled while the message waited here: it is not for this consumer.
                    self.basic_reject(raw.delivery_tag, requeue=True)
                    return
                if delivery is not None and self._set_aside(raw, delivery):
                    return
                if no_ack:
                    self.basic_ack(raw.delivery_tag)
                callback(raw)

            if delivery is None:
                priority = _TRANSIENT_PRIORITY + priority_of(message)
            else:
                priority = delivery.priority
            self.connection.add_ready(priority, deliver)

        return take

    def _set_aside(self, raw: RawMessage, delivery: Delivery) -> bool:
        """True when a message cannot be done and is now a dead letter."""
        dead = self.connection.dead
        try:
            headers, _, _ = raw.decoded()
        except (MalformedMessage, ValueError) as error:
            headers, reason = None, str(error)
        else:
            if not dead.is_poison(delivery):
                return False
            reason = dead.poison_reason()
        dead.set_aside(raw.queue, delivery, reason, headers)
        self._intake.settle(raw.delivery_tag, TERM)
        return True

    def _raw(
        self, queue: str, message: WireMessage, delivery: Delivery | None, consumer_tag: str
    ) -> RawMessage:
        delivery_tag = self._intake.next_tag()
        if delivery is not None:
            self._intake.hold(delivery_tag, delivery, consumer_tag)
        return RawMessage(queue, message, delivery, delivery_tag, consumer_tag)

    @property
    def is_half_free(self) -> bool:
        """True where the next messages should be asked for without delay."""
        return self._intake.is_half_free

    def refill(self) -> bool:
        """Ask the server for more; True while messages known to wait are on their way."""
        return self._intake.refill()

    def basic_cancel(self, consumer_tag: str, **_: Any) -> None:
        """Stop consuming; what was delivered stays with this channel until it is settled."""
        queue = self._consumers.pop(consumer_tag, None)
        if queue is None:
            return
        self._intake.cancel(consumer_tag)
        transient = self._transient.get(queue)
        if transient is not None:
            transient.on_message = None
            if transient.auto_delete:
                self.queue_delete(queue)

    def basic_get(self, queue: str, no_ack: bool = False, **_: Any) -> RawMessage | None:
        """Take one message, the highest priority first; None where there is none."""
        transient = self._transient.get(queue)
        if transient is not None:
            message = transient.take()
            return None if message is None else self._raw(queue, message, None, "")
        delivery = self._intake.fetch_one(queue)
        if delivery is None:
            return None
        raw = self._raw(queue, delivery.message, delivery, "")
        if no_ack:
            self.basic_ack(raw.delivery_tag)
        return raw

    def message_to_python(self, raw_message: RawMessage) -> base.Message:
        return self.Message(raw_message, self)

    # -- acknowledging -----------------------------------------------------------------

    def unacked_subjects(self) -> list[str]:
        """Return the ack subjects of everything this channel holds. Any thread."""
        return self._intake.subjects()

    def basic_ack(self, delivery_tag: int, multiple: bool = False, **_: Any) -> None:
        self._intake.settle(delivery_tag, ACK, multiple=multiple)

    def basic_reject(self, delivery_tag: int, requeue: bool = False) -> None:
        self._intake.settle(delivery_tag, NAK if requeue else TERM)

    def basic_recover(self, requeue: bool = True) -> None:
        """Give back everything unacknowledged; it comes again, here or elsewhere."""
        self._intake.give_back()
