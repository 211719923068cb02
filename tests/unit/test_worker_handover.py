"""What goes to a prefork pool at once, before the event loop's next turn."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bridge.worker.handover import HandOver


@pytest.mark.parametrize(
    ("waiting", "written_to"), [([], []), (["job"], [{1, 4}])], ids=["nothing came", "a task came"]
)
def test_only_idle_processes_are_written_to(waiting: list[str], written_to: list[set[int]]) -> None:
    """Neither one that runs a task nor one whose pipe is being written."""
    asked: list[set[int]] = []
    pool = SimpleNamespace(
        outbound_buffer=waiting, _all_inqueues={1, 2, 3, 4}, _active_writes={2}, _busy_workers={3}
    )
    broker: Any = SimpleNamespace(on_delivered=None)
    consumer: Any = SimpleNamespace(
        hub=SimpleNamespace(consolidate_callback=lambda fds: asked.append(set(fds))),
        pool=SimpleNamespace(_pool=pool, uses_semaphore=True),
        connection=SimpleNamespace(connection=broker),
    )
    HandOver(consumer).start(consumer)

    broker.on_delivered()

    assert asked == written_to
