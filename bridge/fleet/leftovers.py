"""Worker processes that outlived the controller which started them.

The kernel has told them to end (see `launch`); they may finish their tasks. One that was stopped
(SIGSTOP) would stay for ever, and one that hangs would too.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bridge.logs import get_logger

#: Which fleet a worker process belongs to.
FLEET_VARIABLE: Final = "BRIDGE_FLEET_ID"
WORKER_VARIABLE: Final = "BRIDGE_WORKER_ID"
_PROC: Final = Path("/proc")

log = get_logger("bridge.fleet")


def find(fleet_id: str) -> dict[str, list[int]]:
    """Return the pids of this fleet's workers by worker id; none where there is no /proc."""
    found: dict[str, list[int]] = {}
    for pid in _pids():
        with contextlib.suppress(OSError):  # ended meanwhile, or somebody else's
            environ = _words(pid, "environ")
            if f"{FLEET_VARIABLE}={fleet_id}" not in environ:
                continue
            # What a task has started has the same environment, and may be meant to stay.
            if not any("celery" in word for word in _words(pid, "cmdline")):
                continue
            worker_id = next(w for w in environ if w.startswith(f"{WORKER_VARIABLE}="))
            found.setdefault(worker_id.partition("=")[2], []).append(pid)
    return found


def _pids() -> Iterator[int]:
    if _PROC.is_dir():
        yield from (int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit())


def _words(pid: int, file: str) -> list[str]:
    return (_PROC / str(pid) / file).read_bytes().decode(errors="replace").split("\0")


async def see_off(pids: list[int], grace_seconds: float) -> None:
    """Return once all have ended: by themselves, or by force after `grace_seconds`."""
    for pid in pids:
        _signal(pid, signal.SIGCONT)
    ends = [asyncio.create_task(_end_of(pid)) for pid in pids]
    _, still = await asyncio.wait(ends, timeout=grace_seconds)
    if still:
        log.warning("leftover processes did not end in time", pids=pids)
        for pid in pids:
            _signal(pid, signal.SIGKILL)
    await asyncio.gather(*ends)


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # as wanted
        os.kill(pid, number)


async def _end_of(pid: int) -> None:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    ended = loop.create_future()
    loop.add_reader(descriptor, lambda: None if ended.done() else ended.set_result(None))
    try:
        await ended
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
