"""One time limit over several calls."""

from __future__ import annotations

import time
from typing import Final

from bridge.errors import NatsTimeout

#: A client hears within this time, whatever NATS does.
ANSWER_SECONDS: Final = 1.8
#: Of this, so much may go into a new connection.
CONNECT_SECONDS: Final = 0.9


class Deadline:
    """A moment `seconds` from now by which everything must be done."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def remaining(self) -> float:
        """Seconds that are left. Raises NatsTimeout when there are none."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise NatsTimeout("NATS did not answer in time. Try again shortly.")
        return left

    def allows(self, seconds: float) -> bool:
        """True when what takes up to `seconds` can still be begun."""
        return self._end - time.monotonic() >= seconds
