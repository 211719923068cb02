"""An absolute pool size by Celery's own pool_grow and pool_shrink, which know only changes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from bridge.control.resized import Resized
from bridge.errors import ScalingError

#: Celery starts children every 5 s. A size read sooner is the old one, and a second change made
#: from it would be a change too many.
SETTLE_SECONDS: Final = 6.0
#: Nothing tells when Celery has done it, so the size is read again and again.
READ_EVERY_SECONDS: Final = 0.25


def resize_by_deltas(
    ask: Callable[..., Any], worker_id: str, target: int, stats: dict[str, Any]
) -> Resized:
    """Bring a worker to `target` slots; shrink by no more than what is idle.

    Args:
        ask: sends a command with its arguments to the worker and returns the answer.
        stats: the worker's answer to `stats`.

    Raises:
        ScalingError: the worker refuses, is busy, or did not get there in time.
    """
    before = wanted = size_of(stats)
    if target > before:
        wanted = target
        accepted(worker_id, ask("pool_grow", n=target - before))
    elif target < before:
        wanted = max(target, _busy(ask), 1)
        if wanted >= before:
            raise ScalingError(
                f"Worker {worker_id} is busy in all its {before} slots, and Celery's own "
                "pool_shrink might end a task. Try again later, or install this package there."
            )
        accepted(worker_id, ask("pool_shrink", n=before - wanted))
    after = before if wanted == before else _read_back(ask, wanted)
    if after != wanted:
        raise ScalingError(
            f"Worker {worker_id} was asked for {wanted} slots and has {after} after "
            f"{SETTLE_SECONDS:g} s. See its log."
        )
    return Resized(before=before, after=after, target=target, pending_shrink=max(after - target, 0))


def size_of(stats: dict[str, Any]) -> int:
    """The pool's true size: `max-concurrency` of a prefork pool is what it once was."""
    pool = stats["pool"]
    prefork = pool["implementation"].startswith("celery.concurrency.prefork")
    return len(pool["processes"]) if prefork else int(pool["max-concurrency"])


def accepted(worker_id: str, answer: Any) -> Any:
    """Return a worker's answer; raise ScalingError when it is a refusal."""
    if isinstance(answer, dict) and "error" in answer:
        raise ScalingError(f"Worker {worker_id} cannot be resized: {answer['error']}.")
    return answer


def _busy(ask: Callable[..., Any]) -> int:
    """Tasks that hold a slot or are about to."""
    return len(ask("active")) + len(ask("reserved"))


def _read_back(ask: Callable[..., Any], wanted: int) -> int:
    deadline = time.monotonic() + SETTLE_SECONDS
    while (size := size_of(ask("stats"))) != wanted and time.monotonic() < deadline:
        time.sleep(READ_EVERY_SECONDS)
    return size
