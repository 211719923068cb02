"""What the recovery tests share: workers that are killed in the end, and a count of what ran."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from celery import Celery
from celery.result import AsyncResult
from kombu import Connection

from tests.support.celery_worker import CeleryWorker
from tests.support.waiting import wait_until

#: The promise: so soon after its server is back a worker consumes again.
BACK_SECONDS = 5.0
ACK_WAIT_SECONDS = 3.0
#: Far longer than anything here takes.
PATIENCE_SECONDS = 30.0
CONCURRENCY = 2
#: Tasks one worker holds at most: prefetch 2 for each process.
IN_FLIGHT = 2 * CONCURRENCY


@contextmanager
def worker_on(url: str, directory: Path, **options: Any) -> Iterator[CeleryWorker]:
    """A started prefork worker of the foreign app on `url`; `options` are those of CeleryWorker."""
    environ = {"ACK_WAIT_SECONDS": str(ACK_WAIT_SECONDS), **options.pop("environ", {})}
    worker = CeleryWorker(
        url,
        directory,
        # Without them a worker is up a second sooner.
        *("--without-mingle", "--without-gossip", *options.pop("arguments", ())),
        environ=environ,
        **{"concurrency": CONCURRENCY, **options},
    )
    try:
        worker.start()
        yield worker
    finally:
        worker.kill()


def consumer_counts(url: str, queue: str) -> tuple[int, int]:
    """How many messages of a queue wait, and how many are delivered and not acknowledged."""
    with Connection(url) as connection:
        connection.connect()
        broker = connection.connection
        infos = broker.stored_queues.infos(queue)
    return (
        sum(info["num_pending"] for info in infos),
        sum(info["num_ack_pending"] for info in infos),
    )


class Notebook:
    """Tasks that write down when they start and end."""

    def __init__(self, app: Celery, file: Path) -> None:
        self.file = file
        self._app = app
        self._sent: list[tuple[str, AsyncResult]] = []

    def send(self, word: str, seconds: float = 0.0, **options: Any) -> AsyncResult:
        """Send one task that takes `seconds`; `options` are those of Celery's `apply_async`."""
        arguments = (str(self.file), word, seconds)
        result = self._app.send_task("foreign.record", arguments, **options)
        self._sent.append((word, result))
        return result

    def send_many(self, count: int, seconds: float) -> None:
        for number in range(count):
            self.send(f"t{number}", seconds)

    @property
    def lines(self) -> list[str]:
        return self.file.read_text().splitlines() if self.file.exists() else []

    def wait_for(self, line: str) -> None:
        """Wait until a task has written `line`."""
        wait_until(lambda: line in self.lines, told=lambda: f"no {line!r} in {self.lines}")

    def assert_none_lost(self, again_at_most: int) -> None:
        """Every task sent has ended; no more than so many were started a second time."""
        for _, result in self._sent:
            result.get(timeout=PATIENCE_SECONDS)
        words = {word for word, _ in self._sent}
        starts = [line for line in self.lines if line.startswith("start")]
        assert {line.removeprefix("start ") for line in starts} == words
        assert len(starts) - len(words) <= again_at_most, Counter(starts).most_common(8)
