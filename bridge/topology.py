"""Streams and buckets of one virtual host, as data. Pure; `bridge.wire.jetstream` creates them."""

from __future__ import annotations

from typing import Any

from bridge.names import (
    EVENT_EXCHANGE,
    Names,
    bucket_change_subject,
    bucket_stream,
    bucket_subject,
)

_SECOND = 1_000_000_000
_DAY_SECONDS = 86_400.0

#: Buckets and how long a value lives unless its writer says otherwise (seconds; 0 = for ever).
#: `idempotency` is 48 h: the promise is 24 h, the rest is margin for clocks.
BUCKET_TTL_SECONDS: dict[str, float] = {
    "results": 0,
    "tasks": 0,
    "idempotency": 2 * _DAY_SECONDS,
    "revoked": 7 * _DAY_SECONDS,
    "workers": 0,
    "status": 0,
    "bindings": 0,
    "deliveries": _DAY_SECONDS,
    "chords": 0,
}

#: How long the record of an accepted task is kept after it is due. Each one carries its own time:
#: a bucket's limit would also cut those of tasks that are due later than that.
TASK_RECORD_SECONDS = 7 * _DAY_SECONDS


def task_stream(names: Names, replicas: int = 1) -> dict[str, Any]:
    """The work-queue stream of all stored queues (ADR 0002)."""
    return {
        "name": names.task_stream,
        "subjects": names.task_stream_subjects,
        "retention": "workqueue",
        "storage": "file",
        "num_replicas": replicas,
        "allow_direct": True,
        "allow_msg_ttl": True,
        "allow_msg_schedules": True,
        "duplicate_window": 120 * _SECOND,
        # Ten for each queue. Unless told, the server takes no more than 1000 (seen with 2.15).
        "max_consumers": 1_000_000,
    }


def event_stream(names: Names, replicas: int = 1) -> dict[str, Any]:
    """Keeps a copy of Celery's events; the publisher does not wait for it."""
    return {
        "name": names.event_stream,
        "subjects": [names.exchange_subjects(EVENT_EXCHANGE)],
        "retention": "limits",
        "discard": "old",
        "storage": "file",
        "num_replicas": replicas,
        "max_age": int(_DAY_SECONDS) * _SECOND,
        "max_bytes": 256 * 1024 * 1024,
        "allow_direct": True,
        "no_ack": True,
    }


def dead_stream(names: Names, replicas: int = 1) -> dict[str, Any]:
    """Messages that cannot be done, with the reason in their headers."""
    return {
        "name": names.dead_stream,
        "subjects": [names.dead_subjects],
        "retention": "limits",
        "discard": "old",
        "storage": "file",
        "num_replicas": replicas,
        "max_age": int(30 * _DAY_SECONDS) * _SECOND,
        "allow_direct": True,
    }


def counter_stream(names: Names, replicas: int = 1) -> dict[str, Any]:
    """Counters of chords (ADR-49 of NATS). One that nobody has touched for a week is dropped."""
    return {
        "name": names.counter_stream,
        "subjects": [names.chord_counter("*")],
        "retention": "limits",
        "discard": "old",
        "storage": "file",
        "num_replicas": replicas,
        "max_age": int(7 * _DAY_SECONDS) * _SECOND,
        "max_msgs_per_subject": 1,
        "allow_msg_counter": True,
    }


def bucket(names: Names, name: str, replicas: int = 1) -> dict[str, Any]:
    """A KV bucket as the NATS clients lay it out (ADR-8), with direct get and TTLs."""
    bucket_name = names.bucket(name)
    return {
        "name": bucket_stream(bucket_name),
        "subjects": [bucket_subject(bucket_name, ">")],
        "retention": "limits",
        "discard": "new",
        "storage": "file",
        "num_replicas": replicas,
        "max_msgs_per_subject": 1,
        "max_age": int(BUCKET_TTL_SECONDS[name] * _SECOND),
        "allow_direct": True,
        "allow_msg_ttl": True,
        "allow_rollup_hdrs": True,
        "deny_delete": True,
        "republish": {
            "src": bucket_subject(bucket_name, ">"),
            "dest": bucket_change_subject(bucket_name, ">"),
        },
        "duplicate_window": min(int(BUCKET_TTL_SECONDS[name]) or 120, 120) * _SECOND,
    }


def results_bucket(names: Names, replicas: int = 1) -> dict[str, Any]:
    """Bucket `results`: what expires leaves a marker as long as the task's record is kept.

    Without it a task whose result is gone could not be told from one that still waits.
    """
    marker_ttl = int(TASK_RECORD_SECONDS) * _SECOND
    return {**bucket(names, "results", replicas), "subject_delete_marker_ttl": marker_ttl}


def streams(names: Names, replicas: int = 1) -> list[dict[str, Any]]:
    """Every stream of a virtual host."""
    buckets = [bucket(names, name, replicas) for name in BUCKET_TTL_SECONDS if name != "results"]
    return [
        task_stream(names, replicas),
        event_stream(names, replicas),
        dead_stream(names, replicas),
        results_bucket(names, replicas),
        counter_stream(names, replicas),
        *buckets,
    ]
