"""Wait for a socket; under gevent by its hub, else by poll(2)."""

from __future__ import annotations

import select
import socket
import sys
from typing import Any


def _active_monkey() -> Any:
    """Return gevent.monkey where it has patched sockets, else None."""
    monkey: Any = sys.modules.get("gevent.monkey")
    return monkey if monkey is not None and monkey.is_module_patched("socket") else None


def readable(sock: socket.socket, timeout: float | None) -> bool:
    """True when `sock` can be read within `timeout` seconds (None: for ever)."""
    return _wait(sock, timeout, select.POLLIN)


def writable(sock: socket.socket, timeout: float | None) -> bool:
    """True when `sock` can be written within `timeout` seconds (None: for ever)."""
    return _wait(sock, timeout, select.POLLOUT)


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
        return _poll(monkey.get_original("select", "poll")(), descriptor, seconds, event)
    return _wait_in_hub(descriptor, seconds, event)


def _poll(poller: Any, descriptor: int, seconds: float | None, event: int) -> bool:
    poller.register(descriptor, event)
    return bool(poller.poll(None if seconds is None else seconds * 1000))


def _wait_in_hub(descriptor: int, seconds: float | None, event: int) -> bool:
    # gevent's patched poll() builds a watcher and an event object for every call; its own
    # wait functions cost a tenth of that.
    from gevent import socket as green  # noqa: PLC0415 (only where gevent already runs)

    wait = green.wait_read if event == select.POLLIN else green.wait_write
    try:
        wait(descriptor, seconds)
    except TimeoutError:
        return False
    return True
