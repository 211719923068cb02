"""What one look at the fleet tells the autoscaler. Pure.

Counts only grow, and rates are left to `bridge.scaling.meter`: so a look that is missed costs
nothing but time.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping

import msgspec

from bridge.records import QueueState, Snapshot, WorkerState


class Reading(msgspec.Struct, kw_only=True, frozen=True):
    """The fleet and its queues at one moment."""

    #: seconds on a clock that all readings share
    at_seconds: float
    #: the queues that the fleet's workers serve
    queues: tuple[QueueState, ...]
    #: workers that take tasks now
    ready_workers: int
    #: tasks that run now
    busy: int
    #: how long the middle one of them has run; None while none runs
    running_seconds: float | None
    #: worker id -> tasks it finished; a worker may appear, vanish and start again from 0
    finished: Mapping[str, int]
    #: tasks succeeded and the seconds they took together, over all time
    succeeded: int
    duration_seconds: float

    @property
    def backlog(self) -> int:
        """Tasks in the queues and in the hands of workers, started or not."""
        return sum(queue.waiting + queue.in_flight for queue in self.queues)

    @property
    def waiting(self) -> int:
        """Tasks that have not been started: in the queues, and fetched in advance by workers."""
        queued = sum(queue.waiting for queue in self.queues)
        in_flight = sum(queue.in_flight for queue in self.queues)
        return queued + max(0, in_flight - self.busy)

    @property
    def oldest_waiting_seconds(self) -> float | None:
        ages = [queue.oldest_waiting_seconds for queue in self.queues]
        return max((age for age in ages if age is not None), default=None)


def from_snapshot(snapshot: Snapshot) -> Reading | None:
    """Return what a snapshot tells of the fleet's own workers, whatever their host.

    None when no worker of the fleet runs: then nobody says which queues are meant.
    """
    running = [worker for worker in snapshot.workers if _takes_tasks(worker, snapshot.worker_type)]
    if not running:
        return None
    served = {queue for worker in running for queue in worker.queues}
    own = {w.worker_id for w in snapshot.workers if w.worker_type == snapshot.worker_type}
    started = [task.started_epoch for task in snapshot.active if task.worker_id in own]
    figures = snapshot.figures
    mean_seconds = figures.average_duration_seconds or 0.0
    return Reading(
        at_seconds=snapshot.taken_epoch,
        queues=tuple(queue for queue in snapshot.queues if queue.name in served),
        ready_workers=len(running),
        busy=len(started),
        running_seconds=(
            max(0.0, snapshot.taken_epoch - statistics.median_high(started)) if started else None
        ),
        finished={worker.worker_id: worker.tasks_processed for worker in running},
        succeeded=figures.tasks_succeeded,
        duration_seconds=mean_seconds * figures.tasks_succeeded,
    )


def _takes_tasks(worker: WorkerState, worker_type: str) -> bool:
    return worker.worker_type == worker_type and worker.state == "running" and bool(worker.queues)
