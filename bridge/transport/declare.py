"""Exchanges and queues as AMQP declares them: which are stored, which are in memory."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from typing import Any

from amqp.exceptions import InvalidCommand, NotFound
from amqp.protocol import queue_declare_ok_t
from kombu.transport import base

from bridge.transport.arguments import QueueArguments, warn_of_ignored
from bridge.transport.broker import BrokerConnection
from bridge.transport.exchange import EXCHANGE_TYPES, Binding, is_celerys_own
from bridge.transport.stored import CONSUMER_NOT_FOUND
from bridge.transport.transient import TransientQueue
from bridge.wire.jetstream import JetStreamError

#: How kombu and Celery name the auto-delete queues of remote control, events and `Broadcast`.
_MAILBOX = re.compile(r".+\.pidbox|(celeryev|bcast)\..+")


class DeclaringChannel(base.StdChannel):
    """The part of a channel that declares, binds, purges and deletes.

    Every queue is stored in JetStream, also a non-durable one, as on Redis. Core NATS subscriptions
    (ADR 0002) are only exclusive ones, and auto-delete ones that matter to nobody but who is there:
    the mailboxes of Celery, and what is bound first of all to a fanout exchange.
    """

    def __init__(self, connection: BrokerConnection) -> None:
        self.broker = connection
        #: for kombu: None once this channel is closed, by which it knows that it needs another
        self.connection: BrokerConnection | None = connection
        self._transient = connection.transient
        #: stored queues that may be deleted with their last consumer
        self._auto_delete: set[str] = set()
        #: those of them that no exchange was bound to yet
        self._unbound: set[str] = set()

    def exchange_declare(
        self, exchange: str, type: str = "direct", passive: bool = False, **_: Any
    ) -> None:
        """Note the type of an exchange; it is stored with its bindings.

        Raises amqp's NotFound where `passive`, nobody has bound a stored queue to it and nobody has
        declared it here. Raises InvalidCommand for a type that nothing here follows, as RabbitMQ
        does without the plug-in: taken for a direct exchange it would send messages astray.
        """
        if passive:
            if exchange and not self._knows_exchange(exchange):
                raise NotFound(f"no exchange {exchange!r}", (40, 10), "Exchange.declare")
            return
        if type not in EXCHANGE_TYPES:
            known = ", ".join(sorted(EXCHANGE_TYPES))
            raise InvalidCommand(
                f"exchange {exchange!r}: nats:// has no type {type!r}, only {known}",
                (40, 10),
                "Exchange.declare",
            )
        if exchange:
            self.broker.exchange_types[exchange] = type

    def _knows_exchange(self, exchange: str) -> bool:
        if exchange in self.broker.exchange_types:
            return True
        self.broker.wire.flush()  # what others have bound is known then
        return bool(self.broker.bindings.for_exchange(exchange))

    def exchange_bind(self, destination: str, source: str = "", **_: Any) -> None:
        """Raise NotImplementedError, as on Redis."""
        raise NotImplementedError(
            f"nats:// binds no exchange to another ({destination!r} to {source!r}): bind its queues"
        )

    exchange_unbind = exchange_bind

    def exchange_delete(self, exchange: str, **_: Any) -> None:
        self.broker.exchange_types.pop(exchange, None)
        self.broker.bindings.remove_exchange(exchange)

    def queue_declare(
        self,
        queue: str = "",
        passive: bool = False,
        durable: bool = False,
        exclusive: bool = False,
        auto_delete: bool = False,
        arguments: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> queue_declare_ok_t:
        """Create a queue; return its name, waiting messages and consumers.

        The consumers of a stored queue are not counted: 0.

        Raises amqp's NotFound where `passive` and there is none.
        """
        queue = queue or f"amq.gen-{uuid.uuid4()}"
        transient = self._transient.get(queue)
        if transient is not None:
            if passive:
                self.broker.wire.flush()  # what was sent before is counted
            return queue_declare_ok_t(queue, transient.message_count, transient.consumer_count)
        if passive:
            return queue_declare_ok_t(queue, self._waiting(queue), 0)
        if exclusive or (auto_delete and _MAILBOX.fullmatch(queue)):
            self._hold_in_memory(queue, auto_delete)
            return queue_declare_ok_t(queue, 0, 0)
        # At once, though it may turn out to be a broadcast's: kombu may use another channel next.
        if auto_delete and queue not in self._auto_delete:
            self._auto_delete.add(queue)
            self._unbound.add(queue)
        warn_of_ignored(queue, arguments)
        kept = QueueArguments.of(arguments, auto_delete=auto_delete)
        return queue_declare_ok_t(queue, self.broker.stored_queues.declare(queue, kept), 0)

    def _hold_in_memory(self, queue: str, auto_delete: bool) -> None:
        made = TransientQueue(self.broker, queue, auto_delete=auto_delete)
        made.bind("", "direct", queue)
        # Where two threads declare it at a time, both have the first.
        if self._transient.setdefault(queue, made) is not made:
            made.close()

    def _waiting(self, queue: str) -> int:
        infos = self._infos(queue)
        if not infos:
            raise NotFound(f"no queue {queue!r}", (50, 10), "Queue.declare")
        return sum(info["num_pending"] for info in infos)

    def _infos(self, queue: str) -> list[dict[str, Any]]:
        """Return what the server knows of a queue's consumers, nothing where there is none."""
        try:
            return self.broker.stored_queues.infos(queue)
        except JetStreamError as error:
            if error.err_code != CONSUMER_NOT_FOUND:
                raise
            return []

    def _is_stored(self, queue: str) -> bool:
        queues = self.broker.stored_queues
        return queue in queues.arguments or queues.is_there(queue)

    def _message_ttl(self, queue: str) -> float | None:
        known = self.broker.stored_queues.arguments
        return known[queue].message_ttl if self._is_stored(queue) else None

    def queue_bind(self, queue: str, exchange: str = "", routing_key: str = "", **_: Any) -> None:
        if not exchange:
            return
        exchange_type = self._exchange_type(exchange)
        if queue in self._unbound:
            if queue not in self._transient and _is_for_those_present(exchange, exchange_type):
                self.queue_delete(queue, if_unused=True, if_empty=True)
                self._hold_in_memory(queue, auto_delete=True)
            self._unbound.discard(queue)  # not before: who could not do this tries again
        if queue in self._transient:
            self._transient[queue].bind(exchange, exchange_type, routing_key)
        else:
            known = self.broker.stored_queues.arguments
            expires = self._is_stored(queue) and known[queue].expires is not None
            self.broker.bindings.add(Binding(exchange, exchange_type, queue, routing_key, expires))

    def _exchange_type(self, exchange: str) -> str:
        known = self.broker.exchange_types.get(exchange)
        if known is None:
            bindings = self.broker.bindings.for_exchange(exchange)
            known = bindings[0].exchange_type if bindings else "direct"
        return known

    def queue_unbind(self, queue: str, exchange: str = "", routing_key: str = "", **_: Any) -> None:
        if queue in self._transient:
            self._transient[queue].unbind(exchange, routing_key)
        else:
            self.broker.bindings.remove(queue=queue, exchange=exchange, key=routing_key)

    def queue_purge(self, queue: str, **_: Any) -> int:
        """Remove the messages that wait, for their time too; return how many.

        What is in flight goes as well. On other brokers what is due later lies in the queue itself
        or in a worker: a purge while no worker runs leaves nothing that could still run.
        """
        transient = self._transient.get(queue)
        if transient is not None:
            self.broker.wire.flush()
            return transient.purge()
        names = self.broker.names
        # First, lest one that falls due meanwhile appears in the queue behind the purge.
        scheduled = self._purge(names.queue_schedules(queue))
        return scheduled + self._purge(names.queue_subjects(queue))

    def _purge(self, subjects: str) -> int:
        return self.broker.js.purge((self.broker.names.task_stream, subjects))

    def queue_delete(
        self, queue: str, if_unused: bool = False, if_empty: bool = False, **_: Any
    ) -> int | None:
        """Remove a queue with its messages, scheduled ones too; return how many there were.

        Where it has messages (`if_empty`) or consumers (`if_unused`), it stays and None is
        returned: as on Redis, without the error that AMQP has for it.
        """
        transient = self._transient.get(queue)
        if transient is not None:
            waiting = transient.message_count
            if (if_unused and transient.consumer_count) or (if_empty and waiting):
                return None
            self._transient.pop(queue, None)
            transient.close()
            return waiting
        if if_empty or if_unused:
            # One that holds nothing has asked for more.
            used = any(i["num_ack_pending"] or i["num_waiting"] for i in self._infos(queue))
            if (if_unused and used) or (if_empty and self._holds_messages(queue)):
                return None
        # What comes to an empty queue in this moment stays for who declares it again.
        purged = 0 if if_empty else self.queue_purge(queue)
        self.broker.bindings.remove(queue=queue)
        self.broker.stored_queues.delete(queue)
        return purged

    def _holds_messages(self, queue: str) -> bool:
        """True where a message waits, was given back, is unacknowledged or due later.

        The stream knows at once what was stored; its consumers count a moment later.
        """
        names = self.broker.names
        places = [names.queue_subjects(queue), names.queue_schedules(queue)]
        return any(self.broker.js.get_stored(names.task_stream, places))

    def after_reply_message_received(self, queue: str) -> None:
        self.queue_delete(queue)

    def prepare_queue_arguments(self, arguments: Mapping[str, Any], **kwargs: Any) -> Any:
        return base.to_rabbitmq_queue_arguments(arguments, **kwargs)


def _is_for_those_present(exchange: str, exchange_type: str) -> bool:
    """True for broadcasts and for Celery's own exchanges."""
    return exchange_type == "fanout" or is_celerys_own(exchange)
