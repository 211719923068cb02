"""Chains, groups and chords, as Celery's documentation writes them, on a prefork worker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, chain, chord, group
from celery.result import GroupResult, allow_join_result

from tests.support.celery_client import close_app, make_app
from tests.support.celery_worker import CeleryWorker
from tests.support.waiting import wait_until

GET_SECONDS = 20.0


@pytest.fixture(scope="module")
def app(foreign_worker: CeleryWorker) -> Iterator[Celery]:
    """A client that knows the tasks only by their names."""
    app = make_app(foreign_worker.url, task_default_queue="foreign")
    yield app
    close_app(app)


def task(app: Celery, name: str, *args: Any, **options: Any) -> Any:
    """A signature for canvas."""
    return app.signature(f"foreign.{name}", args=args, **options)


def test_chain_passes_results_on(app: Celery) -> None:
    """((1 + 2) + 3) + 4."""
    result = chain(task(app, "add", 1, 2), task(app, "add", 3), task(app, "add", 4))()

    assert result.get(timeout=GET_SECONDS) == 10
    assert result.parent.get(timeout=GET_SECONDS) == 6


def test_group_of_a_hundred(app: Celery) -> None:
    """All results, in the order of the tasks."""
    result = group([task(app, "add", n, n) for n in range(100)], app=app)()

    assert result.get(timeout=GET_SECONDS) == [2 * n for n in range(100)]
    assert result.successful()


def test_group_is_restored_by_its_id(app: Celery) -> None:
    """Another process may wait for it."""
    result = group([task(app, "add", n, 1) for n in range(5)], app=app)()
    result.save()

    restored = GroupResult.restore(result.id, app=app)

    assert restored.get(timeout=GET_SECONDS) == [1, 2, 3, 4, 5]


def test_chord_runs_its_body_once_all_are_done(app: Celery) -> None:
    """The body gets all results of its header."""
    header = [task(app, "add", n, n) for n in range(50)]

    result = chord(header, app=app)(task(app, "total"))

    assert result.get(timeout=GET_SECONDS) == sum(2 * n for n in range(50))


def test_chord_fails_with_its_header(app: Celery) -> None:
    """The body does not run, and whoever waits for it learns why."""
    header = [task(app, "add", 1, 1), task(app, "fail", "in the header")]

    result = chord(header, app=app)(task(app, "total"))

    with pytest.raises(Exception, match="in the header"):
        result.get(timeout=GET_SECONDS)


def test_canvas_nests(app: Celery) -> None:
    """A chain with a group in the middle becomes a chord, and chords nest."""
    doubled = group([task(app, "add", n, n) for n in range(3)], app=app)
    inner = chord([task(app, "add", 1, 1), task(app, "add", 2, 2)], task(app, "total"), app=app)
    outer = chord([inner, task(app, "add", 10, 10)], task(app, "total"), app=app)

    assert chain(doubled, task(app, "total"))().get(timeout=GET_SECONDS) == 6
    assert outer().get(timeout=GET_SECONDS) == 26


def test_task_replaces_itself_by_a_workflow(app: Celery) -> None:
    """The caller waits for the task and gets the workflow's result."""
    assert task(app, "replaced", [1, 2, 3]).delay().get(timeout=GET_SECONDS) == 12


def test_callbacks_and_errbacks(app: Celery, tmp_path: Path) -> None:
    """`link` gets the result."""
    file = tmp_path / "linked"
    callback = app.signature("foreign.record", args=(str(file), "linked"), immutable=True)
    app.send_task("foreign.add", (1, 1), link=callback).get(timeout=GET_SECONDS)

    wait_until(lambda: file.exists() and "end linked" in file.read_text())


def test_subtask_results_can_be_joined(app: Celery) -> None:
    """`collect` walks a result and its children."""
    result = chain(task(app, "add", 1, 1), task(app, "add", 1))()

    with allow_join_result():
        values = [value for _, value in result.collect()]

    assert values == [3]
