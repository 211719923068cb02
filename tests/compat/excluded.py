"""Tests that say nothing about a NATS broker or result backend, each with the reason.

A key is a file, or a file and a test without its parameters.
"""

from __future__ import annotations

_REDIS_CHANNELS = "Counts the subscriptions in Redis (PUBSUB CHANNELS)."

EXCLUDED = {
    "test_backend.py": "Azure block storage.",
    "test_backend_leak_in_fixture_teardown.py": "Sockets of Celery's Redis backend.",
    "test_cache_backend.py": "Memcached.",
    "test_connection_recovery.py": "A half-open connection of kombu's Redis transport, told by its "
    "insides; the same faults on NATS are in tests/integration/test_transport_faults.py.",
    "test_redis_backend.py": "Celery's Redis backend: its channels, its keys, its Lua scripts.",
    "test_canvas.py::test_chord_on_error": "Reads the header's outcomes out of Redis's own key.",
    "test_canvas.py::test_redis_subscribed_channels_leak": _REDIS_CHANNELS,
    "test_tasks.py::test_ignoring_result_no_subscriptions": _REDIS_CHANNELS,
    "test_tasks.py::test_asyncresult_forget_cancels_subscription": _REDIS_CHANNELS,
    "test_tasks.py::test_asyncresult_get_cancels_subscription": _REDIS_CHANNELS,
}


def reason_for(test: str) -> str | None:
    """Return why a test (``file::Class::test[parameters]``) is left out, None where it is not."""
    file, *_, name = test.split("::")
    return EXCLUDED.get(file) or EXCLUDED.get(f"{file}::{name.partition('[')[0]}")
