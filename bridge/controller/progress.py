"""Whether a command to the fleet is done, and who keeps it from being so. Pure."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import msgspec

from bridge.errors import BridgeError, ScalingError, WorkerStartError, WorkerStopError
from bridge.records import FleetSize, Snapshot, WorkerChange, WorkerState

#: A worker that ended so often before it was up will not come up by waiting.
_HOPELESS_RESTARTS: Final = 2


def own_workers(snapshot: Snapshot) -> dict[str, WorkerState]:
    """Return the workers that controllers keep, by id."""
    kept = snapshot.worker_type
    return {each.worker_id: each for each in snapshot.workers if each.worker_type == kept}


class Progress(msgspec.Struct, kw_only=True, frozen=True):
    """What is still to be done."""

    missing: list[WorkerState | str] = []
    staying: list[WorkerState] = []
    missized: list[WorkerState] = []

    @property
    def done(self) -> bool:
        return not (self.missing or self.staying or self.missized)

    @property
    def hopeless(self) -> bool:
        """Whether waiting is of no use."""
        return any(
            isinstance(each, WorkerState)
            and each.state == "lost"
            and each.restarts >= _HOPELESS_RESTARTS
            for each in self.missing
        )

    def failure(self, seconds: float) -> BridgeError:
        """Return the error that names the worker and the reason."""
        if self.missing:
            return WorkerStartError(_not_started(self.missing, seconds))
        if self.staying:
            return WorkerStopError(_not_stopped(self.staying, seconds))
        names = ", ".join(f"{each.worker_id} ({each.concurrency})" for each in self.missized)
        return ScalingError(
            f"These pools did not reach the wanted size within {seconds:.0f} s: {names}. "
            "They are asked again; see the log for a worker that refuses."
        )


def progress(snapshot: Snapshot, wanted: Collection[str], concurrency: int | None) -> Progress:
    """Compare what there is with what shall be; `concurrency` None: any will do."""
    there = own_workers(snapshot)
    ready = [each for each in there.values() if each.worker_id in wanted]
    up = [each for each in ready if each.state == "running"]
    missing = [there.get(each, each) for each in sorted(wanted)]
    return Progress(
        missing=[each for each in missing if each not in up],
        staying=[each for each in there.values() if each.worker_id not in wanted],
        missized=[each for each in up if concurrency not in {None, each.concurrency}],
    )


def _not_started(missing: list[WorkerState | str], seconds: float) -> str:
    first, more = missing[0], len(missing) - 1
    others = f" and {more} more" if more else ""
    if isinstance(first, str):
        return f"{first}{others} is not there after {seconds:.0f} s. See the controller's log."
    reason = "; ".join((first.last_error or "it has not reported yet").splitlines())
    return (
        f"{first.worker_id}{others} did not start: {reason}. It is tried again; "
        "GET /api/v1/workers/status shows its state, the log has its output."
    )


def _not_stopped(staying: list[WorkerState], seconds: float) -> str:
    names = ", ".join(f"{each.worker_id} ({each.active_tasks} tasks)" for each in staying)
    return (
        f"Still finishing after {seconds:.0f} s: {names}. They take no new tasks and go by "
        "themselves, at the latest after DRAIN_SECONDS."
    )


def size_of(snapshot: Snapshot) -> FleetSize:
    """Return how many workers run, and the least size of their pools."""
    running = [each for each in own_workers(snapshot).values() if each.state == "running"]
    return FleetSize(
        worker_count=len(running),
        concurrency=min((each.concurrency for each in running), default=0),
    )


def changes(before: Snapshot, after: Snapshot) -> list[WorkerChange]:
    """Return what became of each worker."""
    old, new = own_workers(before), own_workers(after)
    return [
        WorkerChange(
            worker_id=worker_id,
            state=new[worker_id].state if worker_id in new else "stopped",
            change=_change(old.get(worker_id), new.get(worker_id)),
        )
        for worker_id in sorted(old.keys() | new.keys())
    ]


def _change(old: WorkerState | None, new: WorkerState | None) -> str:
    if new is None:
        return "stopped"
    if old is None:
        return "started"
    return "kept" if old.pid == new.pid else "restarted"
