"""Waiting for time or for something that happens sooner."""

from __future__ import annotations

import asyncio


async def pause(seconds: float | None, *events: asyncio.Event) -> None:
    """Wait `seconds` (None: for ever), but not longer than until one of the events is set."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    timeout = None if seconds is None else max(0.0, seconds)
    await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    await asyncio.gather(*waits, return_exceptions=True)
