"""Whether a command to the fleet is done, and what keeps it from being so."""

from __future__ import annotations

from typing import Any

from bridge.controller.progress import changes, progress, size_of
from bridge.records import Snapshot, WorkerState


def worker(number: int, state: str = "running", **fields: Any) -> WorkerState:
    defaults: dict[str, Any] = {"worker_type": "general", "concurrency": 5, "pid": number}
    return WorkerState(worker_id=f"general-worker-{number}", state=state, **{**defaults, **fields})


def snapshot(*workers: WorkerState) -> Snapshot:
    return Snapshot(
        taken_epoch=0.0,
        controller_started_epoch=0.0,
        worker_type="general",
        max_concurrent_per_worker=5,
        target_workers=len(workers),
        workers=list(workers),
    )


def wanted(*numbers: int) -> set[str]:
    return {f"general-worker-{number}" for number in numbers}


def test_done_when_exactly_the_wanted_ones_run_in_their_size() -> None:
    """Workers of others do not count; a pool of another size does where one was asked for."""
    foreign = WorkerState(worker_id="x@y", state="running", worker_type="external")
    seen = snapshot(worker(1), worker(2), foreign)

    assert progress(seen, wanted(1, 2), 5).done
    assert not progress(seen, wanted(1, 2), 4).done
    assert progress(seen, wanted(1, 2), None).done
    assert not progress(seen, wanted(1), None).done
    assert not progress(seen, wanted(1, 2, 3), None).done
    assert not progress(snapshot(worker(1, "starting")), wanted(1), None).done


def test_a_worker_that_crashes_is_named_with_its_reason() -> None:
    """WORKER_START_ERROR, sooner than the deadline once waiting is of no use."""
    crashed = worker(2, "lost", restarts=2, last_error="ended with exit status 1\nno module shop")
    left = progress(snapshot(worker(1), crashed), wanted(1, 2), None)

    error = left.failure(30)

    assert left.hopeless
    assert error.code == "WORKER_START_ERROR"
    assert "general-worker-2 did not start: ended with exit status 1; no module shop" in str(error)


def test_a_worker_that_still_works_is_named_with_its_tasks() -> None:
    """WORKER_STOP_ERROR: it goes later by itself."""
    left = progress(snapshot(worker(1), worker(2, "stopping", active_tasks=3)), wanted(1), None)

    error = left.failure(30)

    assert not left.hopeless
    assert error.code == "WORKER_STOP_ERROR"
    assert "general-worker-2 (3 tasks)" in str(error)


def test_a_pool_of_the_wrong_size_is_named() -> None:
    """SCALING_ERROR with the size it has."""
    error = progress(snapshot(worker(1, concurrency=2)), wanted(1), 4).failure(30)

    assert (error.code, "general-worker-1 (2)" in str(error)) == ("SCALING_ERROR", True)


def test_changes_tell_what_became_of_each_worker() -> None:
    """Started, stopped, restarted and kept ones are told apart."""
    before = snapshot(worker(1), worker(2), worker(3))
    after = snapshot(worker(1), worker(2, pid=99), worker(4))

    told = {each.worker_id[-1]: (each.change, each.state) for each in changes(before, after)}

    assert told == {
        "1": ("kept", "running"),
        "2": ("restarted", "running"),
        "3": ("stopped", "stopped"),
        "4": ("started", "running"),
    }


def test_size_counts_what_runs() -> None:
    """The size is that of the running workers, and of their smallest pool."""
    seen = snapshot(worker(1), worker(2, concurrency=3), worker(3, "lost", concurrency=1))

    assert (size_of(seen).worker_count, size_of(seen).concurrency) == (2, 3)
