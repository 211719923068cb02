"""Pipes for a new pool process: Celery's where one is free, else new ones."""

from __future__ import annotations

from types import SimpleNamespace

from bridge.worker.flush import _spare_queues


def test_a_process_without_free_pipes_gets_new_ones() -> None:
    """Those of one that was killed as the connection went stay taken; Celery's worker would end."""
    made = iter(["third"])
    pool = SimpleNamespace(
        _queues={"first": "process", "second": None}, create_process_queues=lambda: next(made)
    )
    pool.get_process_queues = lambda: next(q for q, own in pool._queues.items() if own is None)
    get_process_queues = _spare_queues(pool)

    assert get_process_queues() == "second"
    pool._queues["second"] = "process"
    assert get_process_queues() == "third"
    assert pool._queues == {"first": "process", "second": "process", "third": None}
