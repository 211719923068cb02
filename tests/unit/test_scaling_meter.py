"""Rates and means out of counts that jump, vanish and start again."""

from __future__ import annotations

import pytest

from bridge.records import ActiveTask, QueueState, Snapshot, TaskFigures, WorkerState
from bridge.scaling import Meter, Observation, Reading, from_snapshot


def queue(waiting: int, in_flight: int = 0, name: str = "q") -> QueueState:
    return QueueState(
        name=name, waiting=waiting, in_flight=in_flight, scheduled=0, oldest_waiting_seconds=None
    )


def reading(
    at: float,
    *,
    waiting: int = 0,
    in_flight: int = 0,
    finished: dict[str, int] | None = None,
    succeeded: int = 0,
    duration: float = 0.0,
    running: float | None = None,
    busy: int = 0,
) -> Reading:
    return Reading(
        at_seconds=at,
        queues=(queue(waiting, in_flight),),
        ready_workers=1,
        busy=busy,
        running_seconds=running,
        finished=finished or {"w1": 0},
        succeeded=succeeded,
        duration_seconds=duration,
    )


def measured(*readings: Reading) -> Observation:
    """Return what the meter says after the last of them."""
    meter = Meter()
    return [meter.observe(each) for each in readings][-1]


def test_arrivals_are_what_ended_and_what_stayed() -> None:
    """Ten a second are seen as ten a second, whether they are finished or pile up."""
    readings = [
        reading(at, waiting=4 * at, in_flight=at, finished={"w1": 5 * at}) for at in range(6)
    ]

    seen = measured(*readings)

    assert seen.arrival_rate == pytest.approx(10)
    assert seen.completion_rate == pytest.approx(5)
    assert seen.waiting == 25


def test_worker_that_starts_again_counts_on() -> None:
    """A worker's new count after a restart adds to what it did before."""
    counts = [100, 110, 5, 10]
    seen = measured(*(reading(at, finished={"w1": n}) for at, n in enumerate(counts)))
    assert seen.completion_rate == pytest.approx(20 / 3)


def test_worker_that_appears_brings_no_completions() -> None:
    """What a worker had finished before it was first seen is not taken for throughput."""
    seen = measured(reading(0, finished={"w1": 5}), reading(1, finished={"w1": 5, "w2": 90_000}))
    assert seen.completion_rate == 0


def test_step_is_seen_within_two_seconds() -> None:
    """A jump in the load does not have to fill the whole window first."""
    quiet = [reading(at) for at in range(10)]
    jump = [reading(10, waiting=100), reading(11, waiting=200)]
    assert measured(*quiet, *jump).arrival_rate == pytest.approx(100)


def test_gap_forgets_rates() -> None:
    """After a minute without readings nothing is made up for it."""
    seen = measured(reading(0), reading(60, waiting=600, finished={"w1": 6000}))
    assert seen.arrival_rate == 0
    assert seen.completion_rate == 0


def test_clock_set_back_starts_anew() -> None:
    """Readings that lie in the future by a corrected clock are not measured against."""
    readings = [reading(at, finished={"w1": int(at)}) for at in (1000, 1001)]
    readings += [reading(at, finished={"w1": 1001 + 7 * int(at)}) for at in (5, 6, 7)]
    assert measured(*readings).completion_rate == pytest.approx(7)


def test_mean_service_time_is_recent() -> None:
    """The mean is that of the last half minute, not of all time."""
    old = [reading(at, succeeded=1000, duration=1000.0) for at in range(31)]
    new = reading(31, succeeded=1010, duration=1000.0 + 10 * 0.2)
    assert measured(*old, new).service_seconds == pytest.approx(0.2)


def test_first_service_time_is_the_mean_of_all_time() -> None:
    """A controller that starts anew knows at once how long tasks usually take."""
    assert measured(reading(0, succeeded=50, duration=10.0)).service_seconds == pytest.approx(0.2)
    assert measured(reading(0)).service_seconds is None


def test_running_tasks_tell_that_tasks_got_longer() -> None:
    """The middle running task counts as soon as it is clearly older than the mean."""
    before = reading(0, succeeded=50, duration=10.0)
    after = reading(9, succeeded=50, duration=10.0, running=9.0, busy=3)
    assert measured(before, after).service_seconds == pytest.approx(9.0)


def test_late_event_makes_no_long_task() -> None:
    """A task whose end is told a second late does not count as one of a second."""
    before = reading(0, succeeded=50, duration=10.0)
    after = reading(1, succeeded=50, duration=10.0, running=1.0, busy=1)
    assert measured(before, after).service_seconds == pytest.approx(0.2)


def test_stall_is_waiting_without_any_movement() -> None:
    """Time counts as stalled while tasks wait and none runs or ends."""
    assert measured(*(reading(at, waiting=3) for at in range(8))).stalled_seconds == 7
    assert measured(*(reading(at, waiting=3, busy=1) for at in range(8))).stalled_seconds == 0
    assert measured(*(reading(at) for at in range(8))).stalled_seconds == 0


def worker(worker_id: str, state: str = "running", worker_type: str = "general") -> WorkerState:
    return WorkerState(
        worker_id=worker_id,
        state=state,
        worker_type=worker_type,
        queues=["celery"],
        tasks_processed=10,
    )


def snapshot(*workers: WorkerState) -> Snapshot:
    """Return a snapshot with two queues and two tasks that run, one of each worker type."""
    return Snapshot(
        taken_epoch=1000.0,
        controller_started_epoch=0.0,
        worker_type="general",
        max_concurrent_per_worker=5,
        target_workers=1,
        workers=list(workers),
        queues=[queue(7, 2, "celery"), queue(999, 0, "nobody's")],
        active=[
            ActiveTask(task_id="1", task_type="t", worker_id="w1", started_epoch=990.0),
            ActiveTask(task_id="2", task_type="t", worker_id="other", started_epoch=900.0),
        ],
        figures=TaskFigures(tasks_succeeded=20, average_duration_seconds=0.5),
    )


def test_reading_holds_the_fleet_alone() -> None:
    """Queues that the fleet does not serve and workers of others do not count."""
    found = from_snapshot(
        snapshot(worker("w1"), worker("w2", "starting"), worker("other", worker_type="external"))
    )
    assert found is not None
    assert found.ready_workers == 1
    assert found.busy == 1
    assert found.running_seconds == 10.0
    assert found.finished == {"w1": 10}
    assert found.waiting == 7 + 1
    assert found.backlog == 9
    assert found.duration_seconds == 10.0


def test_no_running_worker_is_no_reading() -> None:
    """While no worker says which queues it serves, nothing is known."""
    assert from_snapshot(snapshot(worker("w1", "starting"))) is None
