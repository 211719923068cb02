"""What the controller reads of NATS twice a second: events, queues, worker records."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any, Final

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg

from bridge.logs import get_logger
from bridge.names import EVENT_EXCHANGE, Names, bucket_stream, bucket_subject, unescape
from bridge.records import QueueState, WorkerRecord
from bridge.stats.client import direct_get, header, is_marker, request
from bridge.stats.figures import Figures, decode_events

_EVENT_BATCH: Final = 1000
#: So that a backlog of events cannot keep the snapshot waiting for long.
_MAX_BATCHES: Final = 20

log = get_logger("bridge.stats")
_decode_worker = msgspec.json.Decoder(WorkerRecord).decode


async def read_events(client: Client, names: Names, figures: Figures) -> bool:
    """Apply the stored events that are new to `figures`; True when none is left."""
    info = await request(client, f"$JS.API.STREAM.INFO.{names.event_stream}")
    figures.begin(info["created"])
    last_seq = info["state"]["last_seq"]
    for _ in range(_MAX_BATCHES):
        if figures.last_seq >= last_seq:
            return True
        messages = await direct_get(
            client,
            names.event_stream,
            {
                "seq": figures.last_seq + 1,
                "batch": _EVENT_BATCH,
                "next_by_subj": names.exchange_subjects(EVENT_EXCHANGE),
            },
        )
        if not messages:
            return True
        for message in messages:
            _apply(figures, message)
    return False


def _apply(figures: Figures, message: Msg) -> None:
    seq = int(header(message, "Nats-Sequence"))
    try:
        events = decode_events(message.data)
    except msgspec.MsgspecError as error:
        # Anybody may publish events; one that is none must not stop the others.
        log.warning("event not readable", subject=message.subject, seq=seq, reason=str(error))
        events = []
    arrived = _epoch(header(message, "Nats-Time-Stamp"))
    figures.apply(seq, arrived, events if isinstance(events, list) else [events])


def _epoch(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp).timestamp()


async def read_workers(client: Client, names: Names) -> dict[str, WorkerRecord]:
    """Return what live workers announced, by Celery hostname."""
    bucket = names.bucket("workers")
    query = {"multi_last": [bucket_subject(bucket, ">")]}
    records = {}
    for message in await direct_get(client, bucket_stream(bucket), query):
        if is_marker(message):
            continue
        try:
            record = _decode_worker(message.data)
        except msgspec.MsgspecError as error:
            log.warning("worker record not readable", key=message.subject, reason=str(error))
            continue
        records[record.hostname] = record
    return records


async def read_queues(client: Client, names: Names) -> list[QueueState]:
    """Return the depth of every queue that ever had a consumer, by name."""
    by_queue: dict[str, list[dict[str, Any]]] = {}
    for consumer in await _consumers(client, names.task_stream):
        queue, _, _ = consumer["name"].rpartition("-")
        by_queue.setdefault(unescape(queue), []).append(consumer)
    return [
        QueueState(
            name=queue,
            waiting=sum(consumer["num_pending"] for consumer in consumers),
            in_flight=sum(consumer["num_ack_pending"] for consumer in consumers),
            scheduled=await _scheduled(client, names, queue),
            oldest_waiting_seconds=await _oldest_waiting(client, names, consumers),
        )
        for queue, consumers in sorted(by_queue.items())
    ]


async def _consumers(client: Client, stream: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while True:
        page = await request(client, f"$JS.API.CONSUMER.LIST.{stream}", {"offset": len(found)})
        found += page.get("consumers") or []
        if len(found) >= page["total"] or not page.get("consumers"):
            return found


async def _scheduled(client: Client, names: Names, queue: str) -> int:
    """Count without reading: the server tells how many follow the first."""
    query = {"seq": 1, "batch": 1, "next_by_subj": names.queue_schedules(queue)}
    first = await direct_get(client, names.task_stream, query)
    return 1 + int(header(first[0], "Nats-Num-Pending")) if first else 0


async def _oldest_waiting(
    client: Client, names: Names, consumers: list[dict[str, Any]]
) -> float | None:
    """Return the age (seconds) of the oldest message that no worker has got yet."""
    stored = []
    for consumer in consumers:
        if not consumer["num_pending"]:
            continue
        query = {
            "seq": consumer["delivered"]["stream_seq"] + 1,
            "batch": 1,
            "next_by_subj": consumer["config"]["filter_subject"],
        }
        first = await direct_get(client, names.task_stream, query)
        stored += [_epoch(header(message, "Nats-Time-Stamp")) for message in first]
    return max(0.0, time.time() - min(stored)) if stored else None
