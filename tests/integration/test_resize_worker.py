"""`pool_resize` on real workers of each pool type."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bridge.control import Control, Resized
from tests.support.celery_worker import CeleryWorker, answers
from tests.support.nats import NatsServer
from tests.support.resize_app import hold, submit
from tests.support.waiting import wait_until

PREFETCH_MULTIPLIER = 4


class Bench:
    """One worker with 2 slots, its server and what is needed to watch it."""

    def __init__(self, server: NatsServer, directory: Path, pool: str = "prefork") -> None:
        self.server = server
        self.control = Control(server.url)
        self.ran = directory / "ran"
        self.worker = CeleryWorker(
            server.url,
            directory,
            app="tests.support.resize_app",
            pool=pool,
            environ={"RAN_FILE": str(self.ran), "ACKS_LATE": "1"},
        )
        self.worker.start()
        self.start_over()

    def start_over(self) -> None:
        """Forget what ran; have a gate that is closed."""
        self.ran.write_bytes(b"")
        self.gate = self.ran.with_name(f"gate-{uuid.uuid4().hex}")
        self.await_answer()

    def await_answer(self) -> None:
        """Wait until the worker answers commands."""
        impatient = Control(self.server.url, timeout=0.5)
        wait_until(lambda: answers(impatient, self.worker.hostname))

    def resize(self, target: int) -> Resized:
        return self.control.resize(self.worker.hostname, target)

    def stats(self) -> dict[str, Any]:
        return self.control.stats(self.worker.hostname)

    def inspect(self, command: str) -> Any:
        return self.control.ask(self.worker.hostname, command)

    def children(self) -> set[int]:
        return set(self.stats()["pool"]["processes"])

    def await_children(self, count: int) -> None:
        """Wait until `count` children are up and the others gone."""

        def there() -> bool:
            pool = self.stats()["pool"]
            return len(pool["processes"]) == pool["writes"]["inqueues"]["total"] == count

        # Celery itself looks at its children every 5 s.
        wait_until(there, timeout=4)

    def hold(self, *numbers: int, running: int) -> None:
        """Send tasks that run until the gate opens; wait until `running` of them do."""
        submit(self.server.url, hold, numbers, gate=str(self.gate))
        wait_until(lambda: len(self.inspect("active")) == running)

    def numbers(self) -> list[int]:
        return sorted(map(int, self.ran.read_text().split()))

    def close(self) -> None:
        self.gate.touch()
        self.worker.kill()


@pytest.fixture(scope="module")
def shared_bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A prefork worker for all tests that leave it well."""
    server = NatsServer(tmp_path_factory.mktemp("nats"))
    server.start()
    bench = Bench(server, tmp_path_factory.mktemp("resize"))
    yield bench
    bench.close()
    server.stop()


@pytest.fixture
def bench(shared_bench: Bench) -> Iterator[Bench]:
    """A prefork worker with 2 children and nothing to do."""
    shared_bench.start_over()
    shared_bench.resize(2)
    shared_bench.await_children(2)
    yield shared_bench
    shared_bench.gate.touch()
    wait_until(lambda: not shared_bench.inspect("active") and not shared_bench.inspect("reserved"))


@pytest.fixture
def start(nats_server: NatsServer, tmp_path: Path) -> Iterator[Callable[[str], Bench]]:
    """A function that starts a worker with a pool of the type given."""
    started: list[Bench] = []

    def start(pool: str) -> Bench:
        started.append(Bench(nats_server, tmp_path, pool))
        return started[-1]

    yield start
    for bench in started:
        bench.close()


def test_size_and_prefetch_are_absolute_and_immediate(bench: Bench) -> None:
    """The children are there with the answer, prefetch follows, and twice is the same as once."""
    assert bench.resize(5) == Resized(before=2, after=5, target=5, pending_shrink=0)
    stats = bench.stats()
    assert len(stats["pool"]["processes"]) == stats["pool"]["max-concurrency"] == 5
    assert stats["prefetch_count"] == 5 * PREFETCH_MULTIPLIER
    grown = bench.children()
    assert bench.resize(5) == Resized(before=5, after=5, target=5, pending_shrink=0)
    assert bench.children() == grown

    # A child that still starts would count as pending.
    bench.await_children(5)
    assert bench.resize(1) == Resized(before=5, after=1, target=1, pending_shrink=0)
    bench.await_children(1)
    assert bench.children() < grown
    assert bench.stats()["prefetch_count"] == PREFETCH_MULTIPLIER


def test_child_with_a_task_is_kept_until_the_task_has_ended(bench: Bench) -> None:
    """All 4 children run a task: a shrink to 1 ends none of them, and is done when they are."""
    bench.resize(4)
    bench.hold(1, 2, 3, 4, running=4)
    busy = bench.children()

    assert bench.resize(1) == Resized(before=4, after=4, target=1, pending_shrink=3)
    assert bench.children() == busy
    assert bench.stats()["pool_resize"] == {"serving": 4, "pending_shrink": 3}

    bench.gate.touch()
    bench.await_children(1)
    assert bench.numbers() == [1, 2, 3, 4]
    assert bench.stats()["pool_resize"] == {"serving": 1, "pending_shrink": 0}


def test_growing_again_keeps_the_children_that_were_to_go(bench: Bench) -> None:
    """A shrink that had to wait is forgotten when the pool grows back; nothing is forked."""
    bench.hold(1, 2, running=2)
    busy = bench.children()

    assert bench.resize(1).pending_shrink == 1
    assert bench.resize(2) == Resized(before=2, after=2, target=2, pending_shrink=0)
    assert bench.children() == busy


def test_waiting_task_can_be_cancelled_after_growth(bench: Bench) -> None:
    """A busy pool that grew takes one task more, not two: one too many could not be revoked."""
    bench.hold(1, 2, running=2)
    bench.resize(3)
    bench.hold(3, 4, running=3)
    (waiting,) = bench.inspect("reserved")

    bench.control.ask(bench.worker.hostname, "revoke", task_id=waiting["id"])
    bench.gate.touch()

    wait_until(lambda: len(bench.numbers()) == 3)
    wait_until(lambda: not bench.inspect("active") and not bench.inspect("reserved"))
    assert waiting["args"][0] not in bench.numbers()
    assert len(bench.numbers()) == 3


def test_size_outlives_the_connection(start: Callable[[str], Bench]) -> None:
    """After the server was restarted the worker has the size it was given, and can be resized."""
    bench = start("prefork")
    bench.resize(3)
    children = bench.children()

    bench.server.restart()

    bench.await_answer()
    assert bench.children() == children
    assert bench.stats()["prefetch_count"] == 3 * PREFETCH_MULTIPLIER
    assert bench.resize(1).after == 1
    bench.await_children(1)


def test_greenlets_are_resized(start: Callable[[str], Bench]) -> None:
    """A gevent pool runs as many tasks as it is told, and never ends a running one."""
    bench = start("gevent")

    assert bench.resize(4) == Resized(before=2, after=4, target=4, pending_shrink=0)
    bench.hold(1, 2, 3, 4, 5, running=4)
    assert bench.resize(1) == Resized(before=4, after=4, target=1, pending_shrink=3)
    bench.gate.touch()

    wait_until(lambda: bench.numbers() == [1, 2, 3, 4, 5])
    assert bench.stats()["pool_resize"] == {"serving": 1, "pending_shrink": 0}


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_pool_that_cannot_be_resized_says_what_to_do(
    start: Callable[[str], Bench], pool: str
) -> None:
    """The refusal of a pool of fixed size names the options that help."""
    bench = start(pool)

    answer = bench.control.ask(bench.worker.hostname, "pool_resize", target=3)

    assert "--concurrency" in answer["error"]
    assert "pool_resize" not in bench.stats()
