"""Wait for a socket; under gevent by its hub, else by poll(2)."""

from __future__ import annotations

import select
import socket
import sys


def _gevent_is_active() -> bool:
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("socket"))


def readable(sock: socket.socket, timeout: float | None) -> bool:
    """True when `sock` can be read within `timeout` seconds (None: for ever)."""
    return _wait(sock, timeout, select.POLLIN)


def writable(sock: socket.socket, timeout: float | None) -> bool:
    """True when `sock` can be written within `timeout` seconds (None: for ever)."""
    return _wait(sock, timeout, select.POLLOUT)


def _wait(sock: socket.socket, timeout: float | None, event: int) -> bool:
    if timeout is not None and timeout <= 0:
        timeout = 0.0
    if _gevent_is_active():
        return _wait_in_hub(sock, timeout, event)
    poller = select.poll()
    poller.register(sock, event)
    return bool(poller.poll(None if timeout is None else timeout * 1000))


def _wait_in_hub(sock: socket.socket, timeout: float | None, event: int) -> bool:
    # gevent's patched poll() builds a watcher and an event object for every call; its own
    # wait functions cost a tenth of that.
    from gevent import socket as green  # noqa: PLC0415 (only where gevent already runs)

    wait = green.wait_read if event == select.POLLIN else green.wait_write
    try:
        wait(sock.fileno(), timeout)
    except TimeoutError:
        return False
    return True
