"""When to start a crashed process again. Pure."""

from __future__ import annotations

from typing import Final

#: A process that ran this long was healthy: the next crash counts as the first.
STABLE_SECONDS: Final = 30.0
#: The same for one that somebody killed (SIGKILL): that says less about the process.
KILLED_STABLE_SECONDS: Final = 3.0
#: After this many crashes in a row the process is reported as lost and tried only slowly.
CRASHES_BEFORE_LOST: Final = 5
_FIRST_SECONDS: Final = 0.5
_CEILING_SECONDS: Final = 8.0
_LOST_SECONDS: Final = 60.0


def crashes_in_a_row(crashes: int, lived_seconds: float, *, killed: bool = False) -> int:
    """Return the new count after a process with `crashes` before it ended once more."""
    stable_seconds = KILLED_STABLE_SECONDS if killed else STABLE_SECONDS
    return 1 if lived_seconds >= stable_seconds else crashes + 1


def restart_delay_seconds(crashes: int, jitter: float) -> float:
    """Return how long to wait before the next start.

    The wait doubles with each crash from half a second on. `jitter` in [0, 1] takes up to half
    of it away, so that many processes that died of one cause do not come back as one.
    """
    if crashes >= CRASHES_BEFORE_LOST:
        full = _LOST_SECONDS
    else:
        full = min(_CEILING_SECONDS, _FIRST_SECONDS * 2 ** max(0, crashes - 1))
    return full * (1 - jitter / 2)
