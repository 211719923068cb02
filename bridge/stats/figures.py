"""Celery's events folded into figures. Pure: no clock, no connection.

A message of the event stream is applied once: the state holds the sequence of the last one and
is stored as a whole, so counts survive any restart exactly. What is counted are executions: a
task that ran twice, because its worker died, counts twice.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final

import msgspec

from bridge.records import WORKER_TTL_SECONDS, ActiveTask, TaskFigures
from bridge.stats.window import Window

#: Names of tasks that were received and not yet started; more than any sane prefetch.
_MAX_RECEIVED: Final = 20_000
#: A worker that was silent this long is forgotten with its counts.
_FORGET_SECONDS: Final = 86_400.0
_MINUTE_SECONDS: Final = 60.0


class Event(msgspec.Struct, frozen=True):
    """The fields of a Celery event that matter here; all others are skipped in decoding."""

    type: str
    hostname: str = ""
    uuid: str = ""
    name: str | None = None
    #: seconds a succeeded task ran
    runtime: float | None = None


#: One event, or a list where Celery's dispatcher sent several as one message.
decode_events = msgspec.json.Decoder(Event | list[Event]).decode


class WorkerFigures(msgspec.Struct):
    """What one worker did and when it was last heard of."""

    last_seen_epoch: float
    #: neither left nor silent
    online: bool = True
    #: said good-bye
    left: bool = False
    tasks_processed: int = 0
    tasks_failed: int = 0


class Totals(msgspec.Struct):
    """Counts since the first start."""

    succeeded: int = 0
    failed: int = 0
    retried: int = 0
    revoked: int = 0
    #: sum over the succeeded tasks
    duration_seconds: float = 0.0


class Figures(msgspec.Struct):
    """The state of the fold."""

    #: when the event stream was created: tells a new one from a longer one
    stream_created: str = ""
    last_seq: int = 0
    totals: Totals = msgspec.field(default_factory=Totals)
    window: Window = msgspec.field(default_factory=Window)
    #: task id -> task that runs now
    active: dict[str, ActiveTask] = {}
    #: task id -> its name, of tasks received and not started
    received: dict[str, str] = {}
    #: Celery hostname -> its figures
    workers: dict[str, WorkerFigures] = {}

    def begin(self, stream_created: str) -> None:
        """Tell which stream the coming messages are from; another one starts at sequence 1."""
        if stream_created != self.stream_created:
            self.stream_created = stream_created
            self.last_seq = 0

    def apply(self, seq: int, arrived_epoch: float, events: list[Event]) -> None:
        """Fold the events of stream message `seq`; one that was applied before does nothing.

        `arrived_epoch` is the server's clock, the only one that all events share.
        """
        if seq <= self.last_seq:
            return
        self.last_seq = seq
        for event in events:
            handle = _HANDLERS.get(event.type)
            if handle is not None:
                handle(self, event, arrived_epoch)

    def expire(
        self, now_epoch: float, observing_since_epoch: float, alive: Collection[str] = ()
    ) -> None:
        """Drop what is over: tasks of silent workers, old slots, forgotten workers.

        Silence counts only while somebody listened, from `observing_since_epoch` on. A worker
        that said good-bye is silent while it finishes its tasks: of those in `alive` (Celery
        hostnames) it is known that their process is still there.
        """
        self.window.expire(now_epoch)
        busy = {task.worker_id for task in self.active.values()}
        for hostname, worker in list(self.workers.items()):
            silent = now_epoch - max(worker.last_seen_epoch, observing_since_epoch)
            if silent > WORKER_TTL_SECONDS and worker.online:
                self._gone(hostname)
            elif silent > WORKER_TTL_SECONDS and hostname in busy and hostname not in alive:
                self._drop_active(hostname)
            if silent > _FORGET_SECONDS:
                del self.workers[hostname]
        while len(self.received) > _MAX_RECEIVED:
            del self.received[next(iter(self.received))]

    def task_figures(self, now_epoch: float) -> TaskFigures:
        """Return the key figures: counts and mean since the first start, the rest recent."""
        totals = self.totals
        processed = totals.succeeded + totals.failed
        p50, p95 = self.window.percentiles(0.5, 0.95)
        return TaskFigures(
            tasks_processed=processed,
            tasks_succeeded=totals.succeeded,
            tasks_failed=totals.failed,
            tasks_retried=totals.retried,
            tasks_revoked=totals.revoked,
            throughput_per_minute=float(self.window.finished_since(now_epoch - _MINUTE_SECONDS)),
            success_rate=totals.succeeded / processed if processed else None,
            average_duration_seconds=(
                totals.duration_seconds / totals.succeeded if totals.succeeded else None
            ),
            p50_duration_seconds=p50,
            p95_duration_seconds=p95,
        )

    # -- one method for each kind of event ---------------------------------------------

    def _seen(self, event: Event, at: float) -> WorkerFigures:
        worker = self.workers.setdefault(event.hostname, WorkerFigures(last_seen_epoch=at))
        worker.last_seen_epoch = at
        # One that said good-bye may still be finishing its tasks: it does not come back by that.
        worker.online = not worker.left
        return worker

    def _returned(self, event: Event, at: float) -> None:
        self.workers.setdefault(event.hostname, WorkerFigures(last_seen_epoch=at)).left = False
        self._seen(event, at)

    def _gone(self, hostname: str) -> None:
        self.workers[hostname].online = False
        self._drop_active(hostname)

    def _drop_active(self, hostname: str) -> None:
        self.active = {i: task for i, task in self.active.items() if task.worker_id != hostname}

    def _heartbeat(self, event: Event, at: float) -> None:
        self._returned(event, at)

    def _online(self, event: Event, at: float) -> None:
        # A worker that comes up runs nothing: what it ran before died with its predecessor.
        self._drop_active(event.hostname)
        self._returned(event, at)

    def _offline(self, event: Event, at: float) -> None:
        worker = self._seen(event, at)
        worker.online, worker.left = False, True

    def _received(self, event: Event, at: float) -> None:
        self._seen(event, at)
        if event.name:
            self.received[event.uuid] = event.name

    def _started(self, event: Event, at: float) -> None:
        self._seen(event, at)
        self.active[event.uuid] = ActiveTask(
            task_id=event.uuid,
            task_type=self.received.pop(event.uuid, ""),
            worker_id=event.hostname,
            started_epoch=at,
        )

    def _ended(self, event: Event, at: float) -> WorkerFigures:
        self.active.pop(event.uuid, None)
        self.received.pop(event.uuid, None)
        return self._seen(event, at)

    def _succeeded(self, event: Event, at: float) -> None:
        self._ended(event, at).tasks_processed += 1
        self.totals.succeeded += 1
        self.totals.duration_seconds += event.runtime or 0.0
        self.window.add(at, event.runtime)

    def _failed(self, event: Event, at: float) -> None:
        worker = self._ended(event, at)
        worker.tasks_processed += 1
        worker.tasks_failed += 1
        self.totals.failed += 1
        self.window.add(at, None)

    def _retried(self, event: Event, at: float) -> None:
        self._ended(event, at)
        self.totals.retried += 1

    def _revoked(self, event: Event, at: float) -> None:
        self._ended(event, at)
        self.totals.revoked += 1

    def _rejected(self, event: Event, at: float) -> None:
        self._ended(event, at)


_HANDLERS: Final[dict[str, Callable[[Figures, Event, float], None]]] = {
    "worker-online": Figures._online,
    "worker-heartbeat": Figures._heartbeat,
    "worker-offline": Figures._offline,
    "task-received": Figures._received,
    "task-started": Figures._started,
    "task-succeeded": Figures._succeeded,
    "task-failed": Figures._failed,
    "task-retried": Figures._retried,
    "task-revoked": Figures._revoked,
    "task-rejected": Figures._rejected,
}
