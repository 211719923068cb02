"""The controller's view of the workers."""

from __future__ import annotations

from typing import Any

import pytest

from bridge.fleet import MemberState, ProcessState
from bridge.records import WORKER_TTL_SECONDS, ActiveTask, WorkerRecord
from bridge.stats.figures import Figures, WorkerFigures
from bridge.stats.snapshot import FleetView, active_tasks, worker_states

NOW = 1_800_000_000.0
OWN = "general-worker-1@here"


def member(**fields: Any) -> MemberState:
    defaults: dict[str, Any] = {
        "hostname": OWN,
        "state": ProcessState.RUNNING,
        "pid": 7,
        "restarts": 0,
        "last_error": None,
        "started_epoch": NOW - 1,
    }
    return MemberState(**{**defaults, **fields})


def fleet(*members: MemberState) -> FleetView:
    return FleetView(worker_type="general", concurrency=5, target=len(members), members=members)


def record(hostname: str = OWN, pid: int = 7) -> WorkerRecord:
    return WorkerRecord(
        hostname=hostname,
        pid=pid,
        pool="prefork",
        concurrency=4,
        queues=["celery"],
        types=[],
        started_epoch=NOW - 1,
        announced_epoch=NOW,
    )


@pytest.mark.parametrize(
    ("process", "announced", "expected"),
    [
        (member(), None, "starting"),
        (member(), record(), "running"),
        (member(pid=8), record(pid=7), "starting"),
        (member(started_epoch=NOW - WORKER_TTL_SECONDS - 1), None, "lost"),
        (member(state=ProcessState.STOPPING), record(), "stopping"),
        (member(state=ProcessState.CRASHED, pid=None), record(), "lost"),
        (member(state=ProcessState.LOST, pid=None), None, "lost"),
    ],
)
def test_state_of_own_worker(
    process: MemberState, announced: WorkerRecord | None, expected: str
) -> None:
    """A worker runs once its own process, not its predecessor, has announced itself."""
    records = {} if announced is None else {OWN: announced}

    [shown] = worker_states(fleet(process), records, Figures(), NOW)

    assert (shown.worker_id, shown.state) == ("general-worker-1", expected)


def test_crashed_worker_says_why() -> None:
    """The last output of a crashed worker reaches whoever looks at the workers."""
    crashed = member(state=ProcessState.LOST, pid=None, restarts=5, last_error="no module x")

    [shown] = worker_states(fleet(crashed), {}, Figures(), NOW)

    assert (shown.restarts, shown.last_error) == (5, "no module x")


def test_foreign_worker_is_shown_under_its_full_name() -> None:
    """A worker on another host, started by somebody else, is part of the picture."""
    [shown] = worker_states(fleet(), {"celery@there": record("celery@there")}, Figures(), NOW)

    assert (shown.worker_id, shown.state, shown.worker_type) == (
        "celery@there",
        "running",
        "external",
    )


def test_worker_that_left_is_gone_and_one_that_fell_silent_is_lost() -> None:
    """A good-bye removes a foreign worker; silence shows it as lost."""
    figures = Figures(
        workers={
            "left@x": WorkerFigures(last_seen_epoch=NOW - 60, online=False, left=True),
            "silent@x": WorkerFigures(last_seen_epoch=NOW - 60, online=False),
        }
    )

    shown = worker_states(fleet(), {}, figures, NOW)

    assert [(worker.worker_id, worker.state) for worker in shown] == [("silent@x", "lost")]


def test_active_tasks_belong_to_their_worker() -> None:
    """The same id names a worker in the list of workers and in that of active tasks."""
    running = ActiveTask(task_id="t", task_type="noop", worker_id=OWN, started_epoch=NOW)
    figures = Figures(active={"t": running})
    view = fleet(member())

    [shown] = worker_states(view, {OWN: record()}, figures, NOW)
    [active] = active_tasks(figures, view)

    assert shown.active_tasks == 1
    assert active.worker_id == shown.worker_id
