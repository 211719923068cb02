"""Puts together what the controller knows into the snapshot that the API answers from. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Final, NamedTuple

import msgspec

from bridge.envelope import from_epoch
from bridge.fleet import MemberState, ProcessState
from bridge.records import WORKER_TTL_SECONDS, ActiveTask, WorkerRecord, WorkerState
from bridge.stats.figures import Figures, WorkerFigures

#: A worker of somebody else that fell silent is shown as lost for this long.
_LOST_SHOWN_SECONDS: Final = 600.0

#: Worker type of a process that somebody else started.
EXTERNAL_WORKER_TYPE: Final = "external"

_MEMBER_STATES: Final = {
    ProcessState.STOPPING: "stopping",
    ProcessState.CRASHED: "lost",
    ProcessState.LOST: "lost",
}


class FleetView(msgspec.Struct, kw_only=True, frozen=True, dict=True):
    """What the snapshot needs to know of the controllers' own worker processes, on all hosts."""

    worker_type: str
    #: tasks at once in each worker, at most
    concurrency: int
    target: int
    members: Sequence[MemberState]

    @cached_property
    def _ids(self) -> dict[str, str]:
        short = {member.hostname: member.hostname.partition("@")[0] for member in self.members}
        # One that moved to another host may still be on its way out on the first.
        count = Counter(short.values())
        return {name: each if count[each] == 1 else name for name, each in short.items()}

    def worker_id(self, hostname: str) -> str:
        """Return Celery's hostname without the host where that is one of the fleet's own."""
        return self._ids.get(hostname, hostname)


def active_tasks(figures: Figures, fleet: FleetView) -> list[ActiveTask]:
    """Return the tasks that run now, oldest first."""
    tasks = sorted(figures.active.values(), key=lambda task: task.started_epoch)
    return [
        msgspec.structs.replace(task, worker_id=fleet.worker_id(task.worker_id)) for task in tasks
    ]


class _Known(NamedTuple):
    """All there is to know about one worker."""

    hostname: str
    member: MemberState | None
    record: WorkerRecord | None
    figures: WorkerFigures | None


def worker_states(
    fleet: FleetView,
    records: Mapping[str, WorkerRecord],
    figures: Figures,
    now_epoch: float,
) -> list[WorkerState]:
    """Return every known worker: the controller's own and those that announced themselves."""
    members = {member.hostname: member for member in fleet.members}
    heard = {name for name, worker in figures.workers.items() if _shown(worker, now_epoch)}
    busy = Counter(task.worker_id for task in figures.active.values())
    known = [
        _Known(name, members.get(name), records.get(name), figures.workers.get(name))
        for name in sorted(members.keys() | records.keys() | heard)
    ]
    return [
        _worker_state(worker, fleet, busy[worker.hostname], now_epoch)
        for worker in known
        if worker.member is None or worker.member.state is not ProcessState.STOPPED
    ]


def _shown(worker: WorkerFigures, now_epoch: float) -> bool:
    # One that said good-bye is gone; one that fell silent is worth a look.
    silent_seconds = now_epoch - worker.last_seen_epoch
    return worker.online or (not worker.left and silent_seconds < _LOST_SHOWN_SECONDS)


def _worker_state(
    known: _Known, fleet: FleetView, active_count: int, now_epoch: float
) -> WorkerState:
    hostname, member, record, figures = known
    state = _state(known, now_epoch)
    started = record.started_epoch if record else member.started_epoch if member else None
    return WorkerState(
        worker_id=fleet.worker_id(hostname),
        state=state,
        worker_type=fleet.worker_type if member else EXTERNAL_WORKER_TYPE,
        pid=member.pid if member else record.pid if record else None,
        pool=record.pool if record else None,
        max_concurrent=fleet.concurrency if member else record.concurrency if record else 0,
        concurrency=member.slots if member else record.concurrency if record else 0,
        active_tasks=active_count,
        tasks_processed=figures.tasks_processed if figures else 0,
        tasks_failed=figures.tasks_failed if figures else 0,
        queues=record.queues if record else [],
        nats_connected=state in {"running", "stopping"} and figures is not None and figures.online,
        last_heartbeat_at=from_epoch(figures.last_seen_epoch) if figures else None,
        started_at=None if started is None else from_epoch(started),
        restarts=member.restarts if member else 0,
        last_error=member.last_error if member else None,
    )


def _state(known: _Known, now_epoch: float) -> str:
    _, member, record, figures = known
    heard_epoch = figures.last_seen_epoch if figures is not None and figures.online else None
    if member is None:
        return "lost" if heard_epoch is None and record is None else "running"
    if member.state in _MEMBER_STATES:
        return _MEMBER_STATES[member.state]
    started = member.started_epoch or now_epoch
    if record is not None and record.pid == member.pid:
        return "running"
    if heard_epoch is not None and heard_epoch > started:
        return "running"
    return "starting" if now_epoch - started < WORKER_TTL_SECONDS else "lost"
