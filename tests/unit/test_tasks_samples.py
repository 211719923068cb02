"""The sample handlers, run in this process by Celery itself, without a broker."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery.backends.base import BaseBackend

from tasks import samples
from tasks.app import app


class MemoryBackend(BaseBackend):
    """Keeps the states that tasks store, in their order."""

    def __init__(self) -> None:
        super().__init__(app=app, url="memory://")
        self.states: list[tuple[str, Any]] = []

    def _store_result(
        self, task_id: str, result: Any, state: str, *args: Any, **kwargs: Any
    ) -> None:
        self.states.append((state, result))


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryBackend]:
    memory = MemoryBackend()
    for task in (samples.flaky, samples.progress):
        monkeypatch.setattr(task, "_backend", memory, raising=False)
    return memory


def test_echo_returns_the_message() -> None:
    """What went in comes out, unchanged."""
    assert samples.echo.run("héllo") == "héllo"


def test_noop_returns_nothing() -> None:
    """The task of the benchmarks has no result to carry."""
    assert samples.noop.run() is None


def test_sleep_sleeps_and_returns_the_seconds() -> None:
    """The task takes the time it was told to take."""
    started = time.monotonic()

    assert samples.sleep.run(0.02) == 0.02
    assert time.monotonic() - started >= 0.02


def test_fail_raises_the_message() -> None:
    """The caller's message reaches the error of the task."""
    with pytest.raises(RuntimeError, match=r"^on purpose$"):
        samples.fail.run("on purpose")


@pytest.mark.parametrize("failures", [0, 1, 4])
def test_flaky_succeeds_after_its_failures(backend: MemoryBackend, failures: int) -> None:
    """Celery's retry runs it again until it succeeds, also beyond the default of 3 retries."""
    result = samples.flaky.apply(kwargs={"failures": failures})

    assert result.state == "SUCCESS"
    assert result.result == failures + 1


def test_flaky_asks_for_a_short_delay() -> None:
    """A caller who waits for the result must not wait for Celery's default of minutes."""
    with pytest.raises(RuntimeError, match="failure 1 of 2"):
        samples.flaky.run(2)
    assert samples.FLAKY_DELAY_SECONDS < 1


def test_progress_tells_every_step(backend: MemoryBackend) -> None:
    """Each step is a PROGRESS state with where it is and where it ends."""
    result = samples.progress.apply(kwargs={"steps": 3, "pause_seconds": 0})

    assert result.get() == 3
    assert backend.states == [("PROGRESS", {"current": step, "total": 3}) for step in (1, 2, 3)]


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: samples.sleep.run(-0.1), "seconds"),
        (lambda: samples.sleep.run(3601), "seconds"),
        (lambda: samples.sleep.run(float("nan")), "seconds"),
        (lambda: samples.flaky.run(101), "failures"),
        (lambda: samples.progress.run(0), "steps"),
        (lambda: samples.progress.run(1, pause_seconds=61), "pause_seconds"),
    ],
)
def test_number_out_of_bounds_is_refused(call: Callable[[], object], name: str) -> None:
    """A caller who comes through Celery and not the API meets the same bounds."""
    with pytest.raises(ValueError, match=f"^{name} must be from "):
        call()
