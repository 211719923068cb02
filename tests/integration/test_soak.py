"""Servers, workers and pool processes are hit at random under load of every kind."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
from celery import Celery, chain, chord
from celery.exceptions import TimeoutError as NotReady
from celery.result import AsyncResult

from tests.support.celery_client import close_app, make_app
from tests.support.celery_worker import CeleryWorker
from tests.support.nats import NatsServer
from tests.support.nats_cluster import REPLICAS, NatsCluster
from tests.support.waiting import wait_until

#: SOAK_SECONDS=180 SOAK_SEED=7 make soak; 0 is another seed each time.
_SOAK_SECONDS = float(os.environ.get("SOAK_SECONDS", "30"))
_SEED = int(os.environ.get("SOAK_SEED", "0"))
_PRODUCERS = 2
_WORKERS = 2
_CONCURRENCY = {"prefork": 2, "threads": 4, "gevent": 8}
#: So many tasks are under way when the first blow falls.
_TASKS_BEFORE = 20
#: From the last blow to the last result.
_PATIENCE_SECONDS = 60.0


class Servers(NamedTuple):
    """One server or a cluster, and how to reach it."""

    nodes: list[NatsServer]
    broker_url: str
    backend_url: str
    replicas: int
    #: returns when all nodes that run work together
    wait_until_whole: Callable[[], None]


@contextmanager
def one_server(directory: Path) -> Iterator[Servers]:
    server = NatsServer(directory / "nats")
    server.start()
    try:
        yield Servers([server], server.url, server.url, 1, lambda: None)
    finally:
        server.kill()


@contextmanager
def three_servers(directory: Path) -> Iterator[Servers]:
    with NatsCluster(directory / "nats") as cluster:
        nodes = list(cluster.nodes.values())
        yield Servers(nodes, cluster.broker_url(), cluster.url, REPLICAS, cluster.wait_until_whole)


class _Sent(NamedTuple):
    kind: str
    result: AsyncResult
    expected: Any


class Load:
    """Producers that send tasks of every kind, whatever happens to the server meanwhile."""

    def __init__(self, servers: Servers, directory: Path, seed: int) -> None:
        self.sent: list[_Sent] = []
        self.failures: list[BaseException] = []
        replicas = {"replicas": servers.replicas}
        self._app = make_app(
            servers.broker_url,
            servers.backend_url,
            task_default_queue="foreign",
            # A publisher waits for its server, however long that takes.
            task_publish_retry_policy={
                "max_retries": None,
                "interval_start": 0.05,
                "interval_max": 0.3,
            },
            broker_transport_options=replicas,
            result_backend_transport_options=replicas,
        )
        self._directory = directory
        self._ending = threading.Event()
        self._threads = [
            threading.Thread(
                target=self._produce, args=(random.Random(seed + number),), daemon=True
            )
            for number in range(_PRODUCERS)
        ]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Send until the end of the block, at which all has been accepted."""
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._ending.set()
            for thread in self._threads:
                thread.join(_PATIENCE_SECONDS)
        assert not any(thread.is_alive() for thread in self._threads), "a publisher hangs"

    def close(self) -> None:
        close_app(self._app)

    def _produce(self, dice: random.Random) -> None:
        kinds = (self._plain, self._urgent, self._later, self._retried, self._chain, self._chord)
        try:
            while not self._ending.wait(dice.uniform(0.0, 0.05)):
                send = dice.choices(kinds, (8, 4, 2, 2, 2, 1))[0]
                result, expected = send(self._app, dice)
                self.sent.append(_Sent(send.__name__, result, expected))
        except BaseException as error:
            self.failures.append(error)

    def _plain(self, app: Celery, dice: random.Random) -> tuple[AsyncResult, Any]:
        x = dice.random()
        return app.send_task("foreign.add", (x, 1.0)), x + 1.0

    def _urgent(self, app: Celery, dice: random.Random) -> tuple[AsyncResult, Any]:
        return app.send_task("foreign.add", (2, 3), priority=dice.randrange(10)), 5

    def _later(self, app: Celery, dice: random.Random) -> tuple[AsyncResult, Any]:
        return app.send_task("foreign.add", (4, 5), countdown=dice.uniform(0.3, 2.0)), 9

    def _retried(self, app: Celery, dice: random.Random) -> tuple[AsyncResult, Any]:
        # At its second try, or later where a worker was killed in one.
        path = self._directory / f"tries-{dice.getrandbits(64):x}"
        result = app.send_task("foreign.retrying", (str(path), 2))
        return result, range(2, 100)

    def _chain(self, app: Celery, dice: random.Random) -> tuple[AsyncResult, Any]:
        add = app.signature("foreign.add", (1,))
        return chain(add.clone((1,)), add, add).apply_async(), 4

    def _chord(self, app: Celery, dice: random.Random) -> tuple[AsyncResult, Any]:
        numbers = range(dice.randrange(2, 6))
        header = [app.signature("foreign.add", (number, number)) for number in numbers]
        body = app.signature("foreign.total")
        if dice.random() < 0.5:
            return chord(header)(body), 2 * sum(numbers)
        return chord([chord(header, body), *header])(body), 4 * sum(numbers)

    def wrong(self) -> list[str]:
        """Wait for every result; return those that are not what they must be."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        found = []
        for kind, result, expected in self.sent:
            try:
                value = result.get(timeout=max(0.1, deadline - time.monotonic()), propagate=False)
            except NotReady:
                value = f"still {result.state}"
            if value != expected and not (isinstance(expected, range) and value in expected):
                found.append(f"{kind} {result.id}: {value!r} and not {expected!r}")
        return found


class Fleet:
    """The server and its workers, and what can be done to them."""

    def __init__(self, servers: Servers, pool: str, directory: Path) -> None:
        self.servers = servers
        environ = {
            "ACK_WAIT_SECONDS": "3",
            "CELERY_BROKER_URL": servers.broker_url,
            "CELERY_RESULT_BACKEND": servers.backend_url,
            "NATS_REPLICAS": str(servers.replicas),
        }
        self.workers = [
            CeleryWorker(
                servers.backend_url,
                directory,
                name=f"soak{number}",
                pool=pool,
                concurrency=_CONCURRENCY[pool],
                environ=environ,
            )
            for number in range(_WORKERS)
        ]
        self.blows: Counter[str] = Counter()

    def rage(self, dice: random.Random) -> None:
        """Hit somebody twice a second until the time is over; all are well at the end."""
        blows: list[Callable[[random.Random], None]] = [
            *(self.server_killed, self.server_frozen),
            *(self.worker_killed, self.worker_frozen, self.worker_replaced, self.child_killed),
        ]
        end = time.monotonic() + _SOAK_SECONDS
        while time.monotonic() < end:
            blow = dice.choice(blows)
            blow(dice)
            self.blows[blow.__name__] += 1
            time.sleep(dice.uniform(0.2, 0.8))

    def server_killed(self, dice: random.Random) -> None:
        server = dice.choice(self.servers.nodes)
        server.kill()
        time.sleep(dice.uniform(0.0, 2.0))
        server.start()
        self.servers.wait_until_whole()

    def server_frozen(self, dice: random.Random) -> None:
        with dice.choice(self.servers.nodes).frozen():
            time.sleep(dice.uniform(0.1, 2.0))
        self.servers.wait_until_whole()

    def worker_killed(self, dice: random.Random) -> None:
        worker = dice.choice(self.workers)
        worker.kill()
        worker.spawn()

    def worker_frozen(self, dice: random.Random) -> None:
        worker = dice.choice(self.workers)
        os.kill(worker.pid, signal.SIGSTOP)
        time.sleep(dice.uniform(0.1, 4.0))
        os.kill(worker.pid, signal.SIGCONT)

    def worker_replaced(self, dice: random.Random) -> None:
        worker = dice.choice(self.workers)
        worker.stop()
        worker.spawn()

    def child_killed(self, dice: random.Random) -> None:
        children = psutil.Process(dice.choice(self.workers).pid).children()
        if children:
            dice.choice(children).kill()


@pytest.mark.soak
@pytest.mark.timeout(2 * _SOAK_SECONDS + 4 * _PATIENCE_SECONDS)
@pytest.mark.parametrize(
    ("start", "pool"),
    [
        (one_server, "prefork"),
        (one_server, "threads"),
        (one_server, "gevent"),
        (three_servers, "prefork"),
    ],
    ids=["prefork", "threads", "gevent", "cluster"],
)
def test_nothing_is_lost_whatever_is_done(
    tmp_path: Path, start: Callable[[Path], AbstractContextManager[Servers]], pool: str
) -> None:
    """Every task that was accepted ends with its own value, and no producer fails."""
    seed = _SEED or random.randrange(1, 1_000_000)
    with start(tmp_path) as servers:
        fleet = Fleet(servers, pool, tmp_path)
        load = Load(servers, tmp_path, seed)
        try:
            for worker in fleet.workers:
                worker.start()
            with load.running():
                wait_until(lambda: len(load.sent) > _TASKS_BEFORE)
                fleet.rage(random.Random(seed))
            told = f"seed {seed}, {len(load.sent)} tasks, {dict(fleet.blows)}"
            assert not load.failures, told
            assert not load.wrong(), told
            for worker in fleet.workers:
                worker.stop()
        finally:
            for worker in fleet.workers:
                worker.kill()
            load.close()
