"""Workers and servers that stop, die and come back: every task still ends, and once where it can.

Each test has a server of its own, since it is killed or would disturb others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from celery import Celery
from celery.exceptions import TaskRevokedError

from bridge.names import Names, escape
from bridge.wire import Bucket, Connection, ConnectOptions, JetStream
from tests.support.celery_worker import CeleryWorker
from tests.support.nats import NatsServer
from tests.support.recovery import consumer_counts
from tests.support.waiting import wait_until

NAMES = Names()
ACK_WAIT_SECONDS = 2.0
GET_SECONDS = 40.0

StartWorker = Callable[..., CeleryWorker]


@pytest.fixture
def start_worker(nats_server: NatsServer, tmp_path: Path) -> Iterator[StartWorker]:
    """A function that starts workers of the foreign app; they are killed in the end."""
    workers: list[CeleryWorker] = []

    def start(name: str, *arguments: str, **options: object) -> CeleryWorker:
        environ = {"ACK_WAIT_SECONDS": "60", **options.pop("environ", {})}  # type: ignore[dict-item]
        worker = CeleryWorker(
            nats_server.url,
            tmp_path,
            # Without them a worker is up a second sooner.
            *("--without-mingle", "--without-gossip", *arguments),
            name=name,
            environ=environ,
            **options,  # type: ignore[arg-type]
        )
        workers.append(worker)
        worker.start()
        return worker

    yield start
    for worker in workers:
        worker.kill()


def wait_for_line(file: Path, line: str) -> None:
    """Wait until a task has written `line`."""
    wait_until(
        lambda: file.exists() and line in file.read_text().splitlines(),
        told=lambda: f"no {line!r} in {file}",
    )


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_warm_shutdown_ends_what_runs_and_gives_back_the_rest(
    app: Celery, start_worker: StartWorker, tmp_path: Path, pool: str
) -> None:
    """What was prefetched runs elsewhere at once, while what runs ends, each once."""
    file, release = tmp_path / "ran", tmp_path / "release"
    environ = {"FOREIGN_PREFETCH_MULTIPLIER": "4"}
    first = start_worker("first", pool=pool, concurrency=1, environ=environ)
    running = app.send_task("foreign.hold", (str(file), str(release)))
    wait_for_line(file, "start hold")
    waiting = [app.send_task("foreign.record", (str(file), f"w{n}")) for n in range(8)]
    for result in waiting[:3]:
        first.wait_for_log(f"[{result.id}] received")
    second = start_worker("second", concurrency=1)

    first.terminate()
    done = [result.get(timeout=GET_SECONDS) for result in waiting]
    release.touch()
    status = first.wait()

    assert running.get(timeout=GET_SECONDS) == f"hold by {first.hostname}"
    assert done == [f"w{n} by {second.hostname}" for n in range(8)]
    assert status == 0
    words = ["hold", *(f"w{n}" for n in range(8))]
    lines = [f"{edge} {word}" for edge in ("start", "end") for word in words]
    assert sorted(file.read_text().splitlines()) == sorted(lines)


@pytest.mark.parametrize(("pool", "more"), [("solo", 0), ("gevent", 1)])
def test_worker_that_its_pool_keeps_busy_begins_no_more_once_told_to_stop(
    app: Celery,
    nats_server: NatsServer,
    start_worker: StartWorker,
    tmp_path: Path,
    pool: str,
    more: int,
) -> None:
    """It hears of it when the task has ended, and gives back what lies there.

    On gevent the next one waits for a slot already, on its way to the pool.
    """
    file, release = tmp_path / "ran", tmp_path / "release"
    running = app.send_task("foreign.hold", (str(file), str(release)))
    waiting = [app.send_task("foreign.record", (str(file), f"w{n}")) for n in range(3)]
    environ = {"FOREIGN_PREFETCH_MULTIPLIER": "4"}
    first = start_worker("first", pool=pool, concurrency=1, environ=environ)
    wait_for_line(file, "start hold")
    wait_until(lambda: consumer_counts(nats_server.url, "foreign"), (0, 4).__eq__)

    first.terminate()
    first.wait_for_log("Warm shutdown")
    release.touch()
    assert first.wait() == 0
    second = start_worker("second", concurrency=1)

    assert running.get(timeout=GET_SECONDS) == f"hold by {first.hostname}"
    done = [result.get(timeout=GET_SECONDS).split(" by ")[1] for result in waiting]
    assert done == [first.hostname] * more + [second.hostname] * (3 - more)


def test_what_ends_during_a_warm_shutdown_is_acknowledged_before_the_rest_ends(
    app: Celery, nats_server: NatsServer, start_worker: StartWorker, tmp_path: Path
) -> None:
    """Its worker shows no more signs of life for it, and may take hours for another task."""
    file, short, long = (tmp_path / name for name in ("ran", "short", "long"))
    worker = start_worker("first", concurrency=2)
    running = [app.send_task("foreign.hold", (str(file), str(until))) for until in (short, long)]
    wait_until(lambda: file.exists() and file.read_text().splitlines() == ["start hold"] * 2)

    worker.terminate()
    worker.wait_for_log("Warm shutdown")
    short.touch()
    wait_until(lambda: consumer_counts(nats_server.url, "foreign"), (0, 1).__eq__)
    long.touch()

    assert worker.wait() == 0
    assert [r.get(timeout=GET_SECONDS) for r in running] == [f"hold by {worker.hostname}"] * 2


def test_worker_without_prefetch_leaves_the_rest_to_others(
    app: Celery, start_worker: StartWorker, tmp_path: Path
) -> None:
    """It takes what it can begin at once, as on Redis, and the next as soon as that has ended.

    Also where the acknowledgement, on another thread and before the task, says nothing of its end.
    """
    file, release = tmp_path / "ran", tmp_path / "release"
    first = start_worker(
        "first",
        "--disable-prefetch",
        concurrency=1,
        environ={"FOREIGN_PREFETCH_MULTIPLIER": "4"},
    )
    held = app.send_task("foreign.hold", (str(file), str(release)))
    wait_for_line(file, "start hold")
    others = [
        app.send_task("foreign.record", (str(file), f"w{n}", 0.1), priority=n % 3) for n in range(6)
    ]
    second = start_worker(
        "second",
        "--disable-prefetch",
        pool="gevent",
        concurrency=1,
        environ={"FOREIGN_ACKS_LATE": "0"},
    )
    started = time.monotonic()

    done = [result.get(timeout=GET_SECONDS) for result in others]
    assert time.monotonic() - started < 3
    second.stop()
    release.touch()

    assert done == [f"w{n} by {second.hostname}" for n in range(6)]
    assert held.get(timeout=GET_SECONDS) == f"hold by {first.hostname}"
    assert app.send_task("foreign.add", (1, 1)).get(timeout=GET_SECONDS) == 2
    assert "Ignoring disable_prefetch" not in first.output


def test_killed_worker_loses_no_task(
    app: Celery, start_worker: StartWorker, tmp_path: Path
) -> None:
    """In the middle of 200: all end, and only what it held runs a second time."""
    file = tmp_path / "ran"
    environ = {"ACK_WAIT_SECONDS": str(ACK_WAIT_SECONDS)}
    first = start_worker("first", environ=environ)
    start_worker("second", environ=environ)
    results = [app.send_task("foreign.record", (str(file), f"t{n}", 0.02)) for n in range(200)]
    wait_for_line(file, "end t60")

    first.kill()

    for result in results:
        result.get(timeout=GET_SECONDS)
    starts = [line for line in file.read_text().splitlines() if line.startswith("start")]
    assert set(starts) == {f"start t{n}" for n in range(200)}
    assert len(starts) <= 204, "more ran twice than the killed worker held"


def test_killed_pool_process_costs_nothing_but_a_retry(
    app: Celery, start_worker: StartWorker, tmp_path: Path
) -> None:
    """`reject_on_worker_lost` gives the task back, and a new process runs it."""
    file = tmp_path / "ran"
    worker = start_worker("first", concurrency=1)
    result = app.send_task("foreign.record", (str(file), "x", 1))
    wait_for_line(file, "start x")

    for child in psutil.Process(worker.pid).children():
        child.kill()

    assert result.get(timeout=GET_SECONDS) == f"x by {worker.hostname}"
    assert file.read_text().splitlines() == ["start x", "start x", "end x"]


def test_countdown_outlives_its_worker(
    app: Celery, start_worker: StartWorker, tmp_path: Path
) -> None:
    """The server keeps it; whoever is there when it is due runs it, once and not before."""
    file = tmp_path / "ran"
    first = start_worker("first")
    sent = time.monotonic()
    result = app.send_task("foreign.record", (str(file), "later"), countdown=3)
    first.kill()
    second = start_worker("second")

    assert result.get(timeout=GET_SECONDS) == f"later by {second.hostname}"

    assert time.monotonic() - sent >= 3
    assert file.read_text().splitlines() == ["start later", "end later"]


def test_task_cancelled_before_any_worker_never_runs(
    app: Celery, start_worker: StartWorker, nats_server: NatsServer, tmp_path: Path
) -> None:
    """A tombstone is read before the first task is looked at."""
    file = tmp_path / "ran"
    cancelled = app.send_task("foreign.record", (str(file), "cancelled"))
    wanted = app.send_task("foreign.record", (str(file), "wanted"))
    connection = Connection(ConnectOptions.from_url(nats_server.url))
    connection.connect()
    Bucket(JetStream(connection), NAMES.bucket("revoked")).put(escape(cancelled.id), b"{}")
    connection.close()

    start_worker("late", concurrency=1)

    with pytest.raises(TaskRevokedError):
        cancelled.get(timeout=GET_SECONDS)
    assert cancelled.state == "REVOKED"
    wanted.get(timeout=GET_SECONDS)
    assert file.read_text().splitlines() == ["start wanted", "end wanted"]


def test_worker_goes_on_after_the_server_was_killed(
    app: Celery, start_worker: StartWorker, nats_server: NatsServer, tmp_path: Path
) -> None:
    """It connects again, keeps the result of what ran meanwhile, and takes what was stored."""
    file = tmp_path / "ran"
    worker = start_worker("first", environ={"ACK_WAIT_SECONDS": str(ACK_WAIT_SECONDS)})
    early = app.send_task("foreign.add", (1, 1))
    assert early.get(timeout=GET_SECONDS) == 2
    running = app.send_task("foreign.record", (str(file), "running", 1))
    wait_for_line(file, "start running")
    later = app.send_task("foreign.add", (2, 2), countdown=2)

    nats_server.kill()
    worker.wait_for_log("Connection to broker lost")
    nats_server.start()

    assert running.get(timeout=GET_SECONDS).startswith("running by")
    assert later.get(timeout=GET_SECONDS) == 4
    assert early.get(timeout=GET_SECONDS) == 2
    assert app.send_task("foreign.add", (3, 3)).get(timeout=GET_SECONDS) == 6
    assert app.control.ping(timeout=2) == [{worker.hostname: {"ok": "pong"}}]
    worker.stop()


def test_worker_without_server_waits_for_it(
    nats_server: NatsServer, app: Celery, tmp_path: Path
) -> None:
    """Started first, it connects as soon as there is a server."""
    assert app.AsyncResult("none").state == "PENDING"
    nats_server.kill()
    worker = CeleryWorker(nats_server.url, tmp_path, name="early")
    worker.spawn()
    try:
        worker.wait_for_log("Trying again in")
        nats_server.start()
        assert app.send_task("foreign.add", (1, 1)).get(timeout=GET_SECONDS) == 2
        worker.stop()
    finally:
        worker.kill()
