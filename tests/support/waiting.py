"""Waiting for what another process, thread or task brings about."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

#: Far longer than anything here takes, so only a failure meets it.
_PATIENCE_SECONDS = 60.0
_PAUSE_SECONDS = 0.02
T = TypeVar("T")


def wait_until(
    ask: Callable[[], T],
    wanted: Callable[[T], object] = bool,
    *,
    timeout: float = _PATIENCE_SECONDS,
    told: Callable[[], object] | None = None,
) -> T:
    """Ask until the answer is as wanted, by default true, and return it.

    Who waits in vain sees the last answer, or what `told()` says instead of it.
    """
    __tracebackhide__ = True  # pytest shows the caller's line then, which says what is wanted
    deadline = time.monotonic() + timeout
    while not wanted(answer := ask()):
        if time.monotonic() > deadline:
            found = told() if told else f"still {answer!r}"
            raise AssertionError(f"waited {timeout:g} s for {ask}: {found}")
        time.sleep(_PAUSE_SECONDS)
    return answer


async def wait_until_async(condition: Callable[[], object]) -> None:
    """Wait for a condition and leave the event loop to others meanwhile."""
    __tracebackhide__ = True
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {_PATIENCE_SECONDS:g} s for {condition}")
        await asyncio.sleep(_PAUSE_SECONDS)
