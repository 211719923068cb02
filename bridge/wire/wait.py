"""Wait for a socket; under gevent and eventlet by their hubs, else by poll(2)."""

from __future__ import annotations

import os
import select
import socket
import sys
import time
from typing import Any

#: An answer that usually comes within this many seconds is awaited awake.
_SPIN_SECONDS = 0.0003
#: How much one wait tells of what is usual.
_WEIGHT = 1 / 8


def _active_monkey() -> Any:
    """Return gevent.monkey or eventlet.patcher where it has patched sockets, else None."""
    monkey: Any = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("socket"):
        return monkey
    patcher: Any = sys.modules.get("eventlet.patcher")
    return patcher if patcher is not None and patcher.is_monkey_patched("socket") else None


def readable(sock: socket.socket, timeout: float | None) -> bool:
    """True when `sock` can be read within `timeout` seconds (None: for ever)."""
    return _wait(sock, timeout, select.POLLIN)


def writable(sock: socket.socket, timeout: float | None) -> bool:
    """True when `sock` can be written within `timeout` seconds (None: for ever)."""
    return _wait(sock, timeout, select.POLLOUT)


def wake(sock: socket.socket) -> None:
    """Wake who waits for `sock`, which has been shut down and is about to be closed.

    Only eventlet needs it: its hub looks at a socket later, and sees nothing of a closed one.
    """
    monkey = _active_monkey()
    if monkey is not None and not _is_gevent(monkey):
        from eventlet import hubs  # noqa: PLC0415 (only where eventlet already runs)

        hubs.notify_opened(sock.fileno())
        # It tells them at its next turn, which would else be its next timer's.
        hubs.get_hub().schedule_call_global(0, bool)


class Answers:
    """Waits for a server's answers on one socket, which come soon where the server is near.

    A process that sleeps wakes late and with cold caches: it costs as much processor time as a
    short wait awake, and a task is sent in 220 instead of 250 µs (docs/performance.md).
    """

    def __init__(self) -> None:
        #: seconds
        self._usual_wait = 0.0

    def readable(self, sock: socket.socket, timeout: float | None) -> bool:
        """As the function `readable`."""
        started = time.perf_counter()
        seconds = _SPIN_SECONDS if timeout is None else min(timeout, _SPIN_SECONDS)
        is_near = self._usual_wait < _SPIN_SECONDS and _active_monkey() is None
        ready = (is_near and _spin(sock, seconds)) or readable(sock, timeout)
        # A call that kept the server busy says little of the next.
        waited = min(time.perf_counter() - started, 2 * _SPIN_SECONDS)
        self._usual_wait += (waited - self._usual_wait) * _WEIGHT
        return ready


def _spin(sock: socket.socket, seconds: float) -> bool:
    """True once `sock` can be read; others who want the processor have it first."""
    descriptor = sock.fileno()
    if descriptor < 0:
        return True  # as in `_wait`
    deadline = time.perf_counter() + seconds
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    while not poller.poll(0):
        if time.perf_counter() > deadline:
            return False
        os.sched_yield()
    return True


def _wait(sock: socket.socket, timeout: float | None, event: int) -> bool:
    descriptor = sock.fileno()
    if descriptor < 0:
        return True  # closed by another thread, as whoever now uses it will learn
    seconds = None if timeout is None else max(0.0, timeout)
    monkey = _active_monkey()
    if monkey is None:
        return _poll(select.poll(), descriptor, seconds, event)
    if seconds == 0:
        # The hub's timer may run out before it looks at the socket; this one blocks nobody.
        return _poll(_original_poll(monkey), descriptor, seconds, event)
    if _is_gevent(monkey):
        return _wait_in_gevent(descriptor, seconds, event)
    return _wait_in_eventlet(descriptor, seconds, event)


def _is_gevent(monkey: Any) -> bool:
    return bool(monkey.__name__ == "gevent.monkey")


def _original_poll(monkey: Any) -> Any:
    if _is_gevent(monkey):
        return monkey.get_original("select", "poll")()
    return monkey.original("select").poll()


def _poll(poller: Any, descriptor: int, seconds: float | None, event: int) -> bool:
    poller.register(descriptor, event)
    return bool(poller.poll(None if seconds is None else seconds * 1000))


def _wait_in_gevent(descriptor: int, seconds: float | None, event: int) -> bool:
    # gevent's patched poll() builds a watcher and an event object for every call; its own
    # wait functions cost a tenth of that.
    from gevent import socket as green  # noqa: PLC0415 (only where gevent already runs)

    wait = green.wait_read if event == select.POLLIN else green.wait_write
    try:
        wait(descriptor, seconds)
    except TimeoutError:
        return False
    return True


def _wait_in_eventlet(descriptor: int, seconds: float | None, event: int) -> bool:
    from eventlet import hubs  # noqa: PLC0415 (only where eventlet already runs)

    is_read = event == select.POLLIN
    try:
        hubs.trampoline(
            descriptor, read=is_read, write=not is_read, timeout=seconds, timeout_exc=TimeoutError
        )
    except TimeoutError:
        return False
    except hubs.IOClosed:
        return True  # as in `_wait`
    return True
