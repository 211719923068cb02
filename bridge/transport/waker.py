"""Wakes Celery's hub from another thread."""

from __future__ import annotations

import contextlib
import os


class Waker:
    """A pipe that a hub reads; it is closed once nobody holds it.

    Closed sooner, its number could be another file's by the time a thread writes to it.
    """

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)

    def fileno(self) -> int:
        return self._reader

    def wake(self) -> None:
        """Make the pipe readable. Any thread."""
        with contextlib.suppress(BlockingIOError):  # a full pipe wakes as well
            os.write(self._writer, b"w")

    def clear(self) -> None:
        """Read what woke the hub."""
        os.read(self._reader, 4096)

    def __del__(self) -> None:
        os.close(self._reader)
        os.close(self._writer)
