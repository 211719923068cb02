"""How a real worker stops, and what it must not do while it runs: loop, hang, leak."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path

import pytest
from celery import Celery, chain, chord
from celery.exceptions import ChordError, WorkerLostError

from tests.support.nats import NatsServer
from tests.support.recovery import PATIENCE_SECONDS, Notebook, consumer_counts, worker_on
from tests.support.slow_app import Unreachable
from tests.support.waiting import wait_until

SLOW_APP = "tests.support.slow_app"
#: Nothing here may wait for it.
LONG_ACK_WAIT = {"ACK_WAIT_SECONDS": "60"}


@pytest.mark.parametrize(("soft", "short_starts"), [("0", 2), ("1.5", 1)], ids=["cold", "soft"])
def test_cold_and_soft_shutdown(
    nats_server: NatsServer, app: Celery, tmp_path: Path, soft: str, short_starts: int
) -> None:
    """SIGQUIT gives back at once what runs; after a soft time limit, where there is one."""
    notebook, release = Notebook(app, tmp_path / "ran"), tmp_path / "release"
    environ = {**LONG_ACK_WAIT, "SLOW_APP_SOFT_SHUTDOWN": soft}
    with worker_on(nats_server.url, tmp_path, name="first", app=SLOW_APP, environ=environ) as first:
        held = app.send_task("foreign.hold", (str(notebook.file), str(release)))
        short = notebook.send("short", 0.5)
        notebook.wait_for("start hold")
        notebook.wait_for("start short")
        waiting = [notebook.send(word) for word in ("w1", "w2")]
        for result in waiting:
            first.wait_for_log(f"[{result.id}] received")

        os.kill(first.pid, signal.SIGQUIT)
        first.wait()
    release.touch()
    stopped = time.monotonic()
    with worker_on(nats_server.url, tmp_path, name="second", environ=LONG_ACK_WAIT) as second:
        for result in (held, short, *waiting):
            result.get(timeout=PATIENCE_SECONDS)
        assert time.monotonic() - stopped < 20
        second.stop()

    starts = Counter(line for line in notebook.lines if line.startswith("start"))
    assert starts == {"start hold": 2, "start short": short_starts, "start w1": 1, "start w2": 1}


def test_poison_task_ends_and_takes_nobody_with_it(
    nats_server: NatsServer, app: Celery, tmp_path: Path
) -> None:
    """It kills its process each time: the third time it is FAILURE, and the worker goes on."""
    notebook = Notebook(app, tmp_path / "ran")
    with worker_on(
        nats_server.url, tmp_path, app=SLOW_APP, environ={"MAX_DELIVERIES": "3"}
    ) as worker:
        poison = app.send_task("slow.die", (str(notebook.file),))

        with pytest.raises(WorkerLostError, match="delivered 3 times"):
            poison.get(timeout=PATIENCE_SECONDS)

        assert notebook.lines == ["start die"] * 3
        assert notebook.send("afterwards").get(timeout=20) == f"afterwards by {worker.hostname}"
        worker.stop()


def test_what_waits_for_a_poison_task_is_told(
    nats_server: NatsServer, app: Celery, tmp_path: Path
) -> None:
    """Its chord, what follows it in a chain and its errback, as of any task that failed."""
    notebook = Notebook(app, tmp_path / "ran")
    die = app.signature("slow.die", (str(notebook.file),))
    add = app.signature("foreign.add", (1, 2))
    total = app.signature("foreign.total")
    errback = app.signature("foreign.record", (str(notebook.file), "errback"), immutable=True)
    with worker_on(
        nats_server.url, tmp_path, app=SLOW_APP, environ={"MAX_DELIVERIES": "2"}
    ) as worker:
        in_chord = chord([add, die], app=app)(total)
        in_chain = chain(die.set(link_error=[errback]), total, app=app)()

        with pytest.raises(ChordError, match="delivered 2 times"):
            # Without its parents, of which the poison is one
            app.AsyncResult(in_chord.id).get(timeout=PATIENCE_SECONDS)
        with pytest.raises(WorkerLostError, match="delivered 2 times"):
            app.AsyncResult(in_chain.id).get(timeout=PATIENCE_SECONDS)
        notebook.wait_for("end errback")
        worker.stop()


def test_poison_task_whose_end_cannot_be_told(
    nats_server: NatsServer, app: Celery, tmp_path: Path
) -> None:
    """The result backend, not NATS, fails: one dead letter, one line of log, and work goes on."""
    notebook = Notebook(app, tmp_path / "ran")
    environ = {"MAX_DELIVERIES": "1", "CELERY_RESULT_BACKEND": f"{SLOW_APP}:Unreachable"}
    with worker_on(nats_server.url, tmp_path, app=SLOW_APP, environ=environ) as worker:
        poison = app.send_task("slow.die", (str(notebook.file),))
        worker.wait_for_log("set aside a message")
        notebook.send("afterwards")
        notebook.wait_for("end afterwards")
        wait_until(lambda: consumer_counts(nats_server.url, "foreign") == (0, 0))

        [told] = [line for line in worker.output.splitlines() if "was not told" in line]
        assert poison.id in told
        assert Unreachable.REASON in told
        assert worker.output.count("set aside a message") == 1
        assert worker.output.count("Connected to nats://") == 1
        worker.stop()


def test_fork_with_live_threads(nats_server: NatsServer, app: Celery, tmp_path: Path) -> None:
    """Each task has a new process, forked while the keeper's thread runs, and sends another."""
    notebook = Notebook(app, tmp_path / "ran")
    words = [f"t{number}" for number in range(20)]
    with worker_on(
        nats_server.url, tmp_path, app=SLOW_APP, arguments=("--max-tasks-per-child", "1")
    ) as worker:
        for word in words:
            app.send_task("slow.relay", (str(notebook.file), word))

        wait_until(lambda: len(notebook.lines) == 2 * len(words))
        worker.stop()

    assert Counter(notebook.lines) == {f"{edge} {w}": 1 for edge in ("start", "end") for w in words}


#: Prints the answers of all workers, and waits for more until it is killed.
ASKER = """
import sys
from celery import Celery
Celery("asker", broker=sys.argv[1]).control.broadcast(
    "ping", reply=True, timeout=60, limit=2, callback=lambda answer: print(answer, flush=True)
)
"""


def test_clients_that_die_waiting_for_replies_leave_nothing(tmp_path: Path) -> None:
    """Reply queues are subscriptions: no stream and no consumer is made for them or remains."""
    server = NatsServer(tmp_path / "watched", extra='http: "127.0.0.1:-1"')
    server.start()
    try:
        with worker_on(server.url, tmp_path) as worker:
            worker.wait_for_log(" ready.")
            alone = counts(server)["connections"]
            ask(server.url)
            # The worker keeps the connection it answers on; the client's takes a moment to go.
            before = wait_until(
                lambda: counts(server), lambda held: held["connections"] <= alone + 1
            )

            for _ in range(4):
                ask(server.url)

            wait_until(lambda: counts(server) == before)
            worker.stop()
    finally:
        server.kill()


def ask(url: str) -> None:
    """Have a client ask the worker, and kill it while it waits for a second answer."""
    with subprocess.Popen([sys.executable, "-c", ASKER, url], stdout=subprocess.PIPE) as asker:
        assert asker.stdout is not None
        try:
            assert b"pong" in asker.stdout.readline()
        finally:
            asker.kill()


def counts(server: NatsServer) -> dict[str, int]:
    """What a server holds for its clients."""
    [port] = re.findall(r"http monitor on 127\.0\.0\.1:(\d+)", "".join(server.log))
    totals: dict[str, int] = {}
    for page, fields in {
        "varz": ("connections", "subscriptions"),
        "jsz": ("streams", "consumers"),
    }.items():
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{page}") as answer:
            figures = json.load(answer)
        totals |= {field: figures[field] for field in fields}
    return totals
