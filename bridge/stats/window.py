"""How long tasks ran and how many finished, over the last minutes, in bounded memory. Pure."""

from __future__ import annotations

import math
from collections import Counter
from typing import Final

import msgspec

WINDOW_SECONDS: Final = 600.0
_SLOT_SECONDS: Final = 5.0
#: Each bucket is this much wider than the one before: a percentile is at most 2.5 % off.
_GROWTH: Final = 1.05
_SHORTEST_SECONDS: Final = 1e-5
_LONGEST_SECONDS: Final = 1e7


class Slot(msgspec.Struct):
    """What finished within one slot of time."""

    finished: int = 0
    #: bucket of the duration -> tasks
    durations: dict[int, int] = {}


class Window(msgspec.Struct):
    """The last `WINDOW_SECONDS`, in slots; a plain value that survives in a record."""

    #: number of the slot since 1970 -> what finished in it
    slots: dict[int, Slot] = {}

    def add(self, at_epoch: float, duration_seconds: float | None) -> None:
        """Note one finished task; a duration of None is unknown."""
        slot = self.slots.setdefault(int(at_epoch // _SLOT_SECONDS), Slot())
        slot.finished += 1
        if duration_seconds is not None:
            bucket = _bucket(duration_seconds)
            slot.durations[bucket] = slot.durations.get(bucket, 0) + 1

    def expire(self, now_epoch: float) -> None:
        """Forget what is older than the window."""
        oldest = (now_epoch - WINDOW_SECONDS) // _SLOT_SECONDS
        for number in [number for number in self.slots if number < oldest]:
            del self.slots[number]

    def finished_since(self, epoch: float) -> int:
        """Count the tasks finished since `epoch`, to the nearest slot."""
        first = round(epoch / _SLOT_SECONDS)
        return sum(slot.finished for number, slot in self.slots.items() if number >= first)

    def percentiles(self, *shares: float) -> list[float | None]:
        """Return the duration (seconds) not exceeded by each share (0..1) of the tasks."""
        merged: Counter[int] = Counter()
        for slot in self.slots.values():
            merged.update(slot.durations)
        total = merged.total()
        if not total:
            return [None for _ in shares]
        return [_duration(_nth(merged, math.ceil(share * total))) for share in shares]


def _nth(counts: Counter[int], rank: int) -> int:
    """Return the bucket that holds the task of this rank (from 1)."""
    seen = 0
    for bucket, count in sorted(counts.items()):
        seen += count
        if seen >= rank:
            return bucket
    raise ValueError(f"rank {rank} is above the {seen} tasks counted")


def _bucket(seconds: float) -> int:
    # A clock that was set back can make a duration negative or absurd.
    bounded = min(max(seconds, _SHORTEST_SECONDS), _LONGEST_SECONDS)
    return math.floor(math.log(bounded / _SHORTEST_SECONDS, _GROWTH))


def _duration(bucket: int) -> float:
    """Return the middle of a bucket."""
    return float(_SHORTEST_SECONDS * _GROWTH ** (bucket + 0.5))
