"""Flower's broker tab and ``/api/queues/length`` for `nats://`."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import msgspec

from bridge.names import Names
from bridge.records import WorkerRecord
from bridge.transport import Transport
from bridge.transport.broker import BrokerConnection
from bridge.transport.stored import CONSUMER_NOT_FOUND
from bridge.wire import Bucket, JetStream, JetStreamError

logger = logging.getLogger("nats")

_decode_worker = msgspec.json.Decoder(WorkerRecord).decode


class NatsBroker:
    """Reads queues the way Flower's own broker classes do.

    `application` is Flower's: it knows the Celery app, and runs what blocks in its threads.
    """

    def __init__(self, application: Any) -> None:
        self._application = application

    async def queues(self, names: Iterable[str]) -> list[dict[str, Any]]:
        """Return what waits, what is unacknowledged and the consumers of each queue.

        Raises tornado's HTTPError 503 when NATS does not answer.
        """
        queues: list[dict[str, Any]] = await self._application.blocking_runner.run(
            *("broker.queues", "NATS", self._read, list(names)),
            connection_errors=(*Transport.connection_errors, JetStreamError),
        )
        return queues

    def _read(self, names: list[str]) -> list[dict[str, Any]]:
        with self._application.capp.connection_for_read() as connection:
            # Once: whoever looks at the page can try again.
            connection.ensure_connection(max_retries=1)
            broker: BrokerConnection = connection.connection
            served = _served_queues(broker.js, broker.names)
            return [_queue(broker, name, served.count(name)) for name in names]


def _queue(broker: BrokerConnection, name: str, consumers: int) -> dict[str, Any]:
    try:
        infos = broker.stored_queues.infos(name)
    except JetStreamError as error:
        if error.err_code != CONSUMER_NOT_FOUND:
            raise
        infos = []  # no worker has asked for this queue yet
    ready = sum(info["num_pending"] for info in infos)
    unacknowledged = sum(info["num_ack_pending"] for info in infos)
    return {
        "name": name,
        "messages": ready + unacknowledged,
        "messages_ready": ready,
        "messages_unacknowledged": unacknowledged,
        "consumers": consumers,
    }


def _served_queues(js: JetStream, names: Names) -> list[str]:
    """Return the queues of every live worker, each as often as there are workers on it."""
    queues: list[str] = []
    for key, value in Bucket(js, names.bucket("workers")).items().items():
        try:
            queues += _decode_worker(value).queues
        except msgspec.MsgspecError as error:
            logger.warning("worker record %s is not readable: %s", key, error)
    return queues
