"""Which of Celery's tests are run, what is known of them, and how they are split.

A key is a file, or a file and a test without its class and parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

_REDIS_CHANNELS = "Counts the subscriptions in Redis (PUBSUB CHANNELS)."

#: Tests that say nothing about a NATS broker or result backend. They are not run.
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

#: The part that CI runs, on NATS alone.
CORE = ("canvas", "inspect", "tasks")

_ERRBACKS_OF_A_BODY = (
    "test_mutable_errback_called_by_chord_from_group_fail_multiple_on_body_failure"
)

#: Tests of the core that CI leaves out.
NOT_IN_CI = {
    "test_canvas.py::test_disabling_flag_allow_error_cb_on_chord_header": (
        "Takes 150 s, in which it sees fourteen times that nothing comes for ten seconds."
    ),
    f"test_canvas.py::{_ERRBACKS_OF_A_BODY}": (
        "Gives 42 error callbacks one second, of which they take half: fails on a busy machine, "
        "on Redis too."
    ),
    "test_tasks.py::test_revoked_by_headers_complex_canvas": (
        "Has a limit of 20 s and takes 20: it fails at first and passes when it is repeated, on "
        "Redis too."
    ),
}

#: Tests that are not run on other pools.
PREFORK_ONLY = {
    "test_tasks.py::test_class_based_task_retried": (
        "Registers its task after the worker has started: it fails on any broker, and on threads "
        "the worker takes it for running for ever."
    ),
}

#: Tests that fail on any broker.
FAIL_ANYWHERE = {
    "test_mem_leak_in_exception_handling.py::test_mem_leak_unhandled_exceptions": "Runs no worker; "
    "allows a tenth of what its own process had grown by before, which is next to nothing.",
    "test_worker.py::test_pidbox_reset_after_repeated_control_errors": "Passes alone. Where an "
    "earlier test left its process marked as a task, it may not wait for results.",
}

#: What the tests take that wait long, on any broker.
_SECONDS = {
    "test_canvas.py::test_disabling_flag_allow_error_cb_on_chord_header": 150,
    "test_canvas.py::test_enabling_flag_allow_error_cb_on_chord_header": 87,
    "test_canvas.py::test_flag_allow_error_cb_on_chord_header_on_upgraded_chord": 69,
    "test_canvas.py::test_error_propagates_from_chord": 61,
    "test_worker.py::test_pidbox_reset_after_repeated_control_errors": 45,
    "test_tasks.py::test_retry": 31,
    "test_canvas.py::test_nested_chord_header_link_error": 23,
    "test_tasks.py::test_revoked_by_headers_complex_canvas": 45,
    "test_tasks.py::test_expired": 17,
    "test_tasks.py::test_timeout": 11,
    "test_tasks.py::test_revoke_keeps_state_of_task_started_elsewhere": 11,
    "test_canvas.py::test_chain_error_handler_with_eta": 11,
}
_USUAL_SECONDS = 2.2


def key_of(test: str) -> str:
    """Return ``file::test`` of a test's whole name (``file::Class::test[parameters]``)."""
    file, *_, name = test.partition("[")[0].split("::")
    return f"{file}::{name}"


def left_out(pool: str, *, ci: bool) -> dict[str, str]:
    """Return the files and tests that are not run, and why."""
    return {
        **EXCLUDED,
        **(NOT_IN_CI if ci else {}),
        **({} if pool == "prefork" else PREFORK_ONLY),
    }


def wanted(tests: Sequence[str], pool: str, *, ci: bool) -> list[str]:
    """Return the tests that are run, of all that were collected, those of inspect first.

    They ask what the worker holds, and a test of canvas leaves a retry there that is due three
    minutes later, longer than a shard takes.
    """
    unwanted = left_out(pool, ci=ci)
    kept = [test for test in tests if key_of(test) not in unwanted]
    return sorted(kept, key=lambda test: not test.startswith("test_inspect.py"))


def split(tests: Sequence[str], shards: int) -> list[list[str]]:
    """Return the tests in as many lists, which take about as long as each other.

    The same tests give the same lists, and each list keeps the order of the whole.
    """
    costs = {test: _SECONDS.get(key_of(test), _USUAL_SECONDS) for test in tests}
    loads = [0.0] * shards
    shard_of = {}
    for test in sorted(tests, key=lambda test: -costs[test]):
        shard = loads.index(min(loads))
        shard_of[test] = shard
        loads[shard] += costs[test]
    lists = [[test for test in tests if shard_of[test] == shard] for shard in range(shards)]
    return [shard for shard in lists if shard]
