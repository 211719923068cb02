"""The lease of `bridge.beat`: its runs are fenced, and the log tells who has it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import cast

import pytest
from celery import Celery

from bridge import beat
from bridge.beat import NatsScheduler
from bridge.names import Names
from bridge.wire import Bucket, Connection, ConnectOptions, JetStream
from tests.support.celery_client import close_app, make_app
from tests.support.nats import NatsServer
from tests.support.waiting import wait_until

STATUS = Names().bucket("status")
StartScheduler = Callable[[], NatsScheduler]


@pytest.fixture
def beat_app(nats_server: NatsServer) -> Iterator[Celery]:
    """An app with a task every two seconds."""
    app = make_app(
        nats_server.url,
        beat_schedule={"often": {"task": "tick", "schedule": 2.0}},
        result_expires=0,
    )
    yield app
    close_app(app)


@pytest.fixture
def start(beat_app: Celery) -> Iterator[StartScheduler]:
    """Makes the scheduler of one more beat."""
    started: list[NatsScheduler] = []

    def make() -> NatsScheduler:
        started.append(NatsScheduler(beat_app))
        return started[-1]

    yield make
    for scheduler in started:
        scheduler.close()


@pytest.fixture
def js(nats_server: NatsServer) -> Iterator[JetStream]:
    connection = Connection(ConnectOptions.from_url(nats_server.url))
    connection.connect()
    js = JetStream(connection)
    js.ensure_topology(Names())
    yield js
    connection.close()


def end_lease(js: JetStream) -> None:
    """Do what the server does when nobody has renewed the lease in time."""
    Bucket(js, STATUS).delete("beat.client.lease")


def tick_until_sent(scheduler: NatsScheduler, js: JetStream) -> None:
    number = last_task(js)
    wait_until(lambda: scheduler.tick() is not None and last_task(js) > number)


def last_run(scheduler: NatsScheduler) -> datetime:
    return cast("datetime", scheduler.schedule["often"].last_run_at)


def last_task(js: JetStream) -> int:
    """How many tasks were sent so far."""
    return int(js.api(f"STREAM.INFO.{Names().task_stream}")["state"]["last_seq"])


def test_a_leader_that_was_suspended_sends_nothing_twice(
    start: StartScheduler,
    js: JetStream,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What another beat has sent meanwhile stays sent, though no clock tells of the pause."""
    monkeypatch.setattr(beat, "_now", lambda: 0.0)
    suspended, other = start(), start()
    tick_until_sent(suspended, js)
    end_lease(js)
    tick_until_sent(other, js)
    number = last_task(js)

    with caplog.at_level(logging.WARNING, "celery.beat"):
        wait_until(lambda: suspended.tick() and caplog.records)

    assert last_task(js) == number
    assert "often is left to the beat that took over" in caplog.text
    # It stands by, and knows what the other has sent once it leads again.
    assert last_run(suspended) != last_run(other)
    end_lease(js)
    suspended.tick()
    assert last_run(suspended) == last_run(other)


def test_a_leader_asks_for_its_lease_after_a_pause(
    start: StartScheduler,
    js: JetStream,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The time counts in which the machine was suspended and the monotonic clock stood still."""
    real, paused = time.clock_gettime, {time.CLOCK_MONOTONIC: 0.0, time.CLOCK_BOOTTIME: 0.0}
    monkeypatch.setattr(time, "clock_gettime", lambda clock: real(clock) + paused[clock])
    suspended, other = start(), start()
    suspended.tick()
    end_lease(js)
    other.tick()
    paused[time.CLOCK_BOOTTIME] = 60.0

    with caplog.at_level(logging.WARNING, "celery.beat"):
        suspended.tick()

    assert "the lease is another's now" in caplog.text


def test_runs_that_somebody_removed_are_stored_anew(start: StartScheduler, js: JetStream) -> None:
    """A deletion leaves a marker, over which the first runs are written."""
    runs = "beat.client.runs"
    Bucket(js, STATUS).put(runs, b"{}")
    Bucket(js, STATUS).delete(runs)

    scheduler = start()
    tick_until_sent(scheduler, js)

    assert Bucket(js, STATUS).get(runs)


def test_the_log_tells_who_leads_and_who_stands_by(
    start: StartScheduler, js: JetStream, caplog: pytest.LogCaptureFixture
) -> None:
    """Each change is told once: to stand by, to take over, to lose the lease."""
    first, second = start(), start()

    def told(scheduler: NatsScheduler) -> list[str]:
        caplog.clear()
        with caplog.at_level(logging.INFO, "celery.beat"):
            for _ in range(3):
                scheduler.tick()
        return [r.message for r in caplog.records if r.message.startswith("beat: ")]

    [leads] = told(first)
    [stands_by] = told(second)
    assert "this one sends now" in leads
    assert "stands by, the lease of app client is held by" in stands_by
    assert str(os.getpid()) in stands_by

    end_lease(js)
    [leads] = told(second)
    assert "this one sends now" in leads
    first._renew_at = 0.0
    [lost] = told(first)
    assert "the lease is another's now" in lost
    assert told(second) == []
