"""A worker connects again: what runs goes on and runs once, what had not begun waits for nobody."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from celery import Celery
from kombu import Connection as KombuConnection

from bridge.names import MAX_PRIORITY
from tests.support.celery_worker import CeleryWorker
from tests.support.nats import NatsServer
from tests.support.proxy import Proxy
from tests.support.recovery import (
    CONCURRENCY,
    IN_FLIGHT,
    PATIENCE_SECONDS,
    Notebook,
    consumer_counts,
    worker_on,
)
from tests.support.waiting import wait_until

#: Short, so that a delivery that nobody keeps comes back while its task still runs ...
SHORT_ACK_WAIT = 3.0
LONG_AFTER_SECONDS = 5.0
#: ... and so long that nothing here may wait for it.
LONG_ACK_WAIT = {"ACK_WAIT_SECONDS": "60"}
#: A reconnect included, if need be.
AT_ONCE_SECONDS = 3.0
#: A killed server forgets what it delivered in the last moment.
SERVER_WRITES_SECONDS = 0.3
EARLY_ACKS = ("--", "task_acks_late=false")
LOST = "Connection to broker lost"
CONNECTED = "Connected to nats://"


@pytest.fixture
def proxy(nats_server: NatsServer) -> Iterator[Proxy]:
    with Proxy(nats_server.port) as proxy:
        yield proxy


def cut(proxy: Proxy, _: NatsServer) -> None:
    assert proxy.reset() > 0


def kill(_: Proxy, server: NatsServer) -> None:
    server.kill()
    server.start()


@pytest.mark.parametrize(
    ("pool", "break_off", "ack_wait"),
    [
        ("prefork", cut, SHORT_ACK_WAIT),
        ("threads", cut, SHORT_ACK_WAIT),
        ("gevent", cut, SHORT_ACK_WAIT),
        # A server takes its time to come back, and so does a worker that has missed it.
        ("prefork", kill, 3 * SHORT_ACK_WAIT),
    ],
)
def test_running_task_runs_once(
    nats_server: NatsServer,
    app: Celery,
    proxy: Proxy,
    tmp_path: Path,
    pool: str,
    break_off: Callable[[Proxy, NatsServer], None],
    ack_wait: float,
) -> None:
    """It takes longer than ack_wait; another connection keeps and acknowledges it."""
    notebook = Notebook(app, tmp_path / "ran")
    environ = {"ACK_WAIT_SECONDS": str(ack_wait)}
    with worker_on(proxy.url, tmp_path, pool=pool, environ=environ) as worker:
        result = notebook.send("long", ack_wait + LONG_AFTER_SECONDS)
        notebook.wait_for("start long")
        time.sleep(SERVER_WRITES_SECONDS)

        break_off(proxy, nats_server)

        assert result.get(timeout=20) == f"long by {worker.hostname}"
        wait_until(lambda: consumer_counts(nats_server.url, "foreign") == (0, 0))
        assert notebook.lines == ["start long", "end long"]
        assert LOST in worker.output
        assert "Couldn't ack" not in worker.output
        worker.stop()


def test_blocked_worker_keeps_its_task(
    nats_server: NatsServer, app: Celery, proxy: Proxy, tmp_path: Path
) -> None:
    """A solo worker connects again after its task only; meanwhile no idle one gets it too."""
    notebook = Notebook(app, tmp_path / "ran")
    environ = {"ACK_WAIT_SECONDS": str(3 * SHORT_ACK_WAIT)}
    with worker_on(proxy.url, tmp_path, pool="solo", environ=environ) as blocked:
        result = notebook.send("long", 3 * SHORT_ACK_WAIT + LONG_AFTER_SECONDS)
        notebook.wait_for("start long")
        with worker_on(nats_server.url, tmp_path, name="idle", environ=environ) as idle:
            kill(proxy, nats_server)

            assert result.get(timeout=25) == f"long by {blocked.hostname}"
            wait_until(lambda: consumer_counts(nats_server.url, "foreign") == (0, 0))
            assert notebook.lines == ["start long", "end long"]
            assert LOST in blocked.output
            idle.stop()
        blocked.stop()


def test_early_acknowledgements_are_not_lost(
    nats_server: NatsServer, app: Celery, proxy: Proxy, tmp_path: Path
) -> None:
    """What was begun and acknowledged is not run again, whenever the connection breaks."""
    notebook = Notebook(app, tmp_path / "ran")
    with worker_on(
        proxy.url, tmp_path, arguments=EARLY_ACKS, environ={"ACK_WAIT_SECONDS": "5"}
    ) as worker:
        notebook.send_many(400, 0.01)
        for number in (50, 100, 150, 200, 250, 300):
            notebook.wait_for(f"end t{number}")
            proxy.reset()

        notebook.assert_none_lost(again_at_most=0)
        wait_until(lambda: consumer_counts(nats_server.url, "foreign") == (0, 0))
        assert LOST in worker.output
        worker.stop()


class Full:
    """A worker with a task in each of its slots, that run until `release`, and two more behind."""

    def __init__(self, app: Celery, worker: CeleryWorker, directory: Path) -> None:
        self.notebook = Notebook(app, directory / "ran")
        self._until = directory / "until"
        self.held = [
            app.send_task("foreign.hold", (str(self.notebook.file), str(self._until)))
            for _ in range(CONCURRENCY)
        ]
        wait_until(lambda: self.notebook.lines == ["start hold"] * CONCURRENCY)
        # Of the highest priority, so that the worker could have them back as fast as can be.
        self.behind = [
            app.send_task("foreign.record", (str(self.notebook.file), word), priority=MAX_PRIORITY)
            for word in ("w1", "w2")
        ]
        for result in self.behind:
            worker.wait_for_log(f"[{result.id}] received")
        time.sleep(SERVER_WRITES_SECONDS)

    def release(self) -> None:
        self._until.touch()

    def assert_ran_once(self) -> None:
        for result in (*self.held, *self.behind):
            result.get(timeout=PATIENCE_SECONDS)
        starts = Counter(line for line in self.notebook.lines if line.startswith("start"))
        assert starts == {"start hold": CONCURRENCY, "start w1": 1, "start w2": 1}


def reconnect(worker: CeleryWorker, break_off: Callable[[], object]) -> None:
    """Break the connections of a worker and wait until it has others."""
    before = worker.output.count(CONNECTED)
    break_off()
    wait_until(lambda: worker.output.count(CONNECTED) > before)


@pytest.mark.parametrize("break_off", [cut, kill])
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_what_had_not_begun_begins_as_soon_as_there_is_room(
    nats_server: NatsServer,
    app: Celery,
    proxy: Proxy,
    tmp_path: Path,
    pool: str,
    break_off: Callable[[Proxy, NatsServer], None],
) -> None:
    """It does not wait for ack_wait, and does not run twice."""
    with worker_on(proxy.url, tmp_path, pool=pool, environ=LONG_ACK_WAIT) as worker:
        full = Full(app, worker, tmp_path)

        reconnect(worker, lambda: break_off(proxy, nats_server))
        full.release()
        released = time.monotonic()
        full.assert_ran_once()

        assert time.monotonic() - released < AT_ONCE_SECONDS
        wait_until(lambda: consumer_counts(nats_server.url, "foreign") == (0, 0))
        worker.stop()


def test_what_had_not_begun_goes_to_an_idle_worker(
    nats_server: NatsServer, app: Celery, proxy: Proxy, tmp_path: Path
) -> None:
    """Of two workers the one with room takes it while the other's tasks still run."""
    with worker_on(proxy.url, tmp_path, name="full", environ=LONG_ACK_WAIT) as first:
        full = Full(app, first, tmp_path)
        with worker_on(nats_server.url, tmp_path, name="idle", environ=LONG_ACK_WAIT) as second:
            # The full one has no room for it; afterwards the idle one waits for more.
            app.send_task("foreign.add", (1, 1)).get(timeout=PATIENCE_SECONDS)
            reconnect(first, proxy.reset)
            connected = time.monotonic()
            ran = [result.get(timeout=PATIENCE_SECONDS) for result in full.behind]

            assert time.monotonic() - connected < AT_ONCE_SECONDS
            assert ran == [f"{word} by {second.hostname}" for word in ("w1", "w2")]
            full.release()
            full.assert_ran_once()
            first.stop()
            second.stop()


def test_kept_deliveries_of_a_killed_worker_come_back(
    nats_server: NatsServer, app: Celery, proxy: Proxy, tmp_path: Path
) -> None:
    """What a worker holds across connections it holds no longer than it lives."""
    environ = {"ACK_WAIT_SECONDS": str(SHORT_ACK_WAIT)}
    with worker_on(proxy.url, tmp_path, name="doomed", environ=environ) as doomed:
        full = Full(app, doomed, tmp_path)
        reconnect(doomed, proxy.reset)
        with worker_on(nats_server.url, tmp_path, name="other", environ=environ) as other:
            doomed.kill()
            killed = time.monotonic()
            full.release()
            for result in full.held:
                assert result.get(timeout=PATIENCE_SECONDS) == f"hold by {other.hostname}"

            assert time.monotonic() - killed < SHORT_ACK_WAIT + AT_ONCE_SECONDS
            other.stop()


def test_warm_shutdown_after_a_reconnect(
    nats_server: NatsServer, app: Celery, proxy: Proxy, tmp_path: Path
) -> None:
    """What runs ends and is acknowledged, the rest goes back at once, and the worker ends."""
    with worker_on(proxy.url, tmp_path, name="first", environ=LONG_ACK_WAIT) as first:
        full = Full(app, first, tmp_path)
        reconnect(first, proxy.reset)

        first.terminate()
        first.wait_for_log("Warm shutdown")
        full.release()

        assert first.wait(timeout=10) == os.EX_OK
    with worker_on(nats_server.url, tmp_path, name="second", environ=LONG_ACK_WAIT) as second:
        full.assert_ran_once()
        second.stop()


def test_cold_shutdown_after_a_reconnect(
    nats_server: NatsServer, app: Celery, proxy: Proxy, tmp_path: Path
) -> None:
    """What runs, begun on an earlier connection, goes back at once as well."""
    with worker_on(proxy.url, tmp_path, name="first", environ=LONG_ACK_WAIT) as first:
        full = Full(app, first, tmp_path)
        reconnect(first, proxy.reset)
        received = [f"[{result.id}] received" for result in full.behind]
        wait_until(lambda: all(first.output.count(text) == 2 for text in received))

        os.kill(first.pid, signal.SIGQUIT)
        first.wait()
    full.release()
    with worker_on(nats_server.url, tmp_path, name="second", environ=LONG_ACK_WAIT) as second:
        for result in (*full.held, *full.behind):
            assert result.get(timeout=PATIENCE_SECONDS).endswith(f" by {second.hostname}")
        second.stop()


def test_cancelled_task_comes_back(
    nats_server: NatsServer, app: Celery, proxy: Proxy, tmp_path: Path
) -> None:
    """Celery can be told to kill what runs when the connection breaks: that is given back."""
    with worker_on(
        proxy.url,
        tmp_path,
        arguments=("--", "worker_cancel_long_running_tasks_on_connection_loss=true"),
        environ={"ACK_WAIT_SECONDS": "12"},
    ) as worker:
        full = Full(app, worker, tmp_path)
        reconnect(worker, proxy.reset)
        connected = time.monotonic()

        wait_until(lambda: full.notebook.lines.count("start hold") == 2 * CONCURRENCY)

        # Found at the next sign of life, three times per ack_wait.
        assert time.monotonic() - connected < 12 / 3 + AT_ONCE_SECONDS
        full.release()
        for result in (*full.held, *full.behind):
            result.get(timeout=PATIENCE_SECONDS)
        worker.stop()


def test_task_that_waits_for_its_time_in_a_worker_goes_back(
    nats_server: NatsServer, proxy: Proxy, tmp_path: Path
) -> None:
    """A NATS client may send an `eta` past the server's scheduler; a timer holds such a task."""
    with (
        worker_on(proxy.url, tmp_path, pool="threads", environ=LONG_ACK_WAIT) as worker,
        KombuConnection(nats_server.url) as connection,
    ):
        eta = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
        connection.connect()
        broker = connection.connection
        for number in range(2 * IN_FLIGHT):
            fields = {"Celery-task": "foreign.shared", "Celery-id": f"t{number}", "Celery-eta": eta}
            broker.js.publish(broker.names.task_subject("foreign"), b"", fields)
        received = [f"[t{number}] received" for number in range(2 * IN_FLIGHT)]
        wait_until(lambda: all(worker.output.count(text) == 1 for text in received))

        reconnect(worker, proxy.reset)
        connected = time.monotonic()
        wait_until(lambda: all(worker.output.count(text) == 2 for text in received))

        assert time.monotonic() - connected < AT_ONCE_SECONDS
        worker.stop()
