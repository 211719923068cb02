"""Events folded into figures."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.records import WORKER_TTL_SECONDS, ActiveTask
from bridge.stats.figures import Event, Figures, decode_events

NOW = 1_800_000_000.0
WORKER = "general-worker-1@host"


def fold(*events: Event, figures: Figures | None = None) -> Figures:
    """Apply events, one message each, one second apart."""
    figures = figures or Figures()
    for event in events:
        seq = figures.last_seq + 1
        figures.apply(seq, NOW + seq, [event])
    return figures


def task(kind: str, uuid: str = "t1", **fields: Any) -> Event:
    return Event(type=f"task-{kind}", hostname=WORKER, uuid=uuid, **fields)


def test_task_life_is_counted_and_timed() -> None:
    """A succeeded task counts once, with its duration, for all and for its worker."""
    figures = fold(task("received", name="noop"), task("started"), task("succeeded", runtime=2.0))

    shown = figures.task_figures(NOW + 10)
    assert (shown.tasks_processed, shown.tasks_succeeded, shown.tasks_failed) == (1, 1, 0)
    assert shown.average_duration_seconds == 2.0
    assert shown.p50_duration_seconds == pytest.approx(2.0, rel=0.03)
    assert shown.throughput_per_minute == 1.0
    assert figures.workers[WORKER].tasks_processed == 1
    assert figures.active == {}
    assert figures.received == {}


def test_running_task_is_active_under_its_name() -> None:
    """What was started and has not ended is shown with the name it was received under."""
    figures = fold(task("received", name="sleep"), task("started"))

    assert figures.active == {
        "t1": ActiveTask(task_id="t1", task_type="sleep", worker_id=WORKER, started_epoch=NOW + 2)
    }


@pytest.mark.parametrize("ending", ["failed", "retried", "revoked", "rejected", "succeeded"])
def test_every_ending_ends_the_activity(ending: str) -> None:
    """No way for a task to end leaves it active."""
    assert fold(task("started"), task(ending)).active == {}


def test_outcomes_are_counted_apart() -> None:
    """Failures are processed tasks; retries and revocations are neither success nor failure."""
    figures = fold(task("failed"), task("retried"), task("revoked"), task("succeeded", runtime=1.0))

    shown = figures.task_figures(NOW + 10)
    assert shown.tasks_processed == 2
    assert (shown.tasks_failed, shown.tasks_retried, shown.tasks_revoked) == (1, 1, 1)
    assert shown.success_rate == 0.5


def test_nothing_done_has_no_rate() -> None:
    """Before the first task there is no success rate and no duration, rather than 0."""
    shown = Figures().task_figures(NOW)

    assert shown.success_rate is None
    assert shown.average_duration_seconds is None
    assert shown.p95_duration_seconds is None


def test_message_read_twice_counts_once() -> None:
    """A message at or below the last sequence changes nothing."""
    figures = Figures()
    figures.apply(7, NOW, [task("failed")])
    figures.apply(7, NOW, [task("failed")])
    figures.apply(6, NOW, [task("failed")])

    assert figures.totals.failed == 1


def test_new_stream_starts_over_but_keeps_the_counts() -> None:
    """After the event stream was made anew its first message is not taken for an old one."""
    figures = Figures()
    figures.begin("2026-01-01")
    figures.apply(900, NOW, [task("failed")])

    figures.begin("2026-01-02")
    figures.apply(1, NOW, [task("failed")])

    assert figures.totals.failed == 2


def test_restarted_worker_runs_nothing_yet() -> None:
    """What a crashed worker had started is not active once it is back."""
    figures = fold(task("started"), Event(type="worker-online", hostname=WORKER))

    assert figures.active == {}


def test_silent_worker_loses_its_tasks() -> None:
    """Tasks of a worker without heartbeat are dropped after the worker's time to live."""
    figures = fold(task("started"))

    figures.expire(NOW + WORKER_TTL_SECONDS, observing_since_epoch=0)
    assert list(figures.active) == ["t1"]
    figures.expire(NOW + WORKER_TTL_SECONDS + 2, observing_since_epoch=0)

    assert figures.active == {}
    assert not figures.workers[WORKER].online


def test_silence_nobody_listened_to_is_no_silence() -> None:
    """After an outage of NATS a worker gets its full time to be heard again."""
    figures = fold(task("started"))
    after = NOW + 10 * WORKER_TTL_SECONDS

    figures.expire(after, observing_since_epoch=after - 1)

    assert list(figures.active) == ["t1"]
    assert figures.workers[WORKER].online


def test_event_groups_and_foreign_fields_are_read() -> None:
    """One event and a list of them decode alike; unknown fields are skipped."""
    one = decode_events(b'{"type": "task-sent", "uuid": "a", "args": "()", "clock": 3}')
    many = decode_events(b'[{"type": "task-failed", "uuid": "a", "exception": "x"}]')

    assert one == Event(type="task-sent", uuid="a")
    assert many == [Event(type="task-failed", uuid="a")]


_EVENTS = st.builds(
    Event,
    type=st.sampled_from(
        [f"task-{kind}" for kind in ("received", "started", "succeeded", "failed", "retried")]
        + ["worker-online", "worker-heartbeat", "worker-offline", "custom"]
    ),
    hostname=st.sampled_from(["a@x", "b@x"]),
    uuid=st.sampled_from(["1", "2", "3"]),
    name=st.none() | st.just("noop"),
    runtime=st.none() | st.floats(0, 100),
)


@given(st.lists(_EVENTS, max_size=40), st.integers(0, 40))
def test_a_restart_at_any_point_changes_nothing(events: list[Event], cut: int) -> None:
    """Figures that were stored and read back go on exactly as those that were not."""
    through = fold(*events)

    before = fold(*events[:cut])
    stored = msgspec.json.decode(msgspec.json.encode(before), type=Figures)
    resumed = fold(*events[cut:], figures=stored)

    assert msgspec.to_builtins(resumed) == msgspec.to_builtins(through)


def test_a_worker_that_says_goodbye_finishes_its_tasks() -> None:
    """It does not come back by their events; they run on as long as its process does."""
    figures = fold(
        Event(type="worker-online", hostname=WORKER),
        task("started", uuid="short"),
        task("started", uuid="long"),
        Event(type="worker-offline", hostname=WORKER),
        task("succeeded", uuid="short", runtime=1.0),
    )
    later = NOW + 10 + WORKER_TTL_SECONDS

    figures.expire(later, NOW, alive={WORKER})
    running = set(figures.active)
    figures.expire(later, NOW)

    assert (figures.workers[WORKER].online, figures.workers[WORKER].left) == (False, True)
    assert running == {"long"}
    assert figures.active == {}
    assert (
        fold(Event(type="worker-heartbeat", hostname=WORKER), figures=figures)
        .workers[WORKER]
        .online
    )
