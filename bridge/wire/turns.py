"""Many threads wait for what one of them reads."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Turns:
    """One thread at a time reads, for all that wait; the others learn of all it has read."""

    def __init__(self) -> None:
        #: guards `_reader`; told of every read
        self._read = threading.Condition()
        #: the thread whose turn it is, 0 when it is nobody's
        self._reader = 0

    def read(
        self,
        read: Callable[[float | None], bool],
        timeout: float | None,
        done: Callable[[], object],
    ) -> bool:
        """Call `read(timeout)`; while another thread does, wait up to `timeout` (None: for ever).

        `read` may call this method again, as may a signal handler that interrupts it. `done` is
        asked when no other thread can make it true any more before we wait; if it is, nobody does.
        Returns what `read` does, and True when another thread's has ended or `done()` is.
        """
        this_thread = threading.get_ident()
        within = self._reader == this_thread
        try:
            with self._read:
                if done():
                    return True
                if self._reader not in {0, this_thread}:
                    return self._read.wait(timeout)
                self._reader = this_thread
            return read(timeout)
        finally:
            if self._reader == this_thread:
                with self._read:
                    self._reader = this_thread if within else 0
                    self._read.notify_all()
