"""How many workers, and how many tasks at once in each. Pure: no clock, no memory of its own.

The story of it is told in docs/scaling.md.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Final, NamedTuple

import msgspec

#: So long without a task started or finished, while some wait: more slots would not help.
STALLED_SECONDS: Final = 10.0
#: A change has shown its effect after this long.
_SETTLED_SECONDS: Final = 5.0
#: Arrivals of this long count as present: until the next look they will be.
_LOOK_SECONDS: Final = 1.0
#: Fewer slots are wanted only if that saves at least this share of them, or leads to the least.
_WORTHWHILE: Final = 0.1
#: A turn that saves less than this share, or less than a worker, saves little,
_LITTLE: Final = 0.2
#: and needs so many cool-downs.
_PATIENCE: Final = 4
#: A fleet that grew turns to shrinking no sooner than so long after the last reversal,
TURN_SECONDS: Final = 60.0
#: and only if that leaves no more than so many reversals
MOST_REVERSALS: Final = 5
#: within any time of this length.
REVERSALS_SECONDS: Final = 300.0


class Size(NamedTuple):
    """Both gears: worker processes, and tasks at once in each."""

    workers: int
    concurrency: int

    @property
    def slots(self) -> int:
        return self.workers * self.concurrency

    def __str__(self) -> str:
        return f"{self.workers}x{self.concurrency}"


class Limits(msgspec.Struct, kw_only=True, frozen=True):
    """What the settings allow and want."""

    min_workers: int
    max_workers: int
    #: tasks at once in each worker
    max_concurrent: int
    min_concurrent: int = 1
    #: share of busy slots, above 0 to 1, from which on there shall be more
    scale_threshold: float = 0.8
    #: a backlog that takes longer is too long
    target_wait_seconds: float = 2.0
    #: slots are given up after nothing has wanted them for so long
    cooldown_seconds: float = 15.0

    @property
    def least(self) -> Size:
        """The size of a fleet with nothing to do."""
        return Size(self.min_workers, self.min_concurrent)

    def clamp(self, size: Size) -> Size:
        """Return the nearest size that is allowed."""
        return Size(
            min(max(size.workers, self.min_workers), self.max_workers),
            min(max(size.concurrency, self.min_concurrent), self.max_concurrent),
        )


class Observation(msgspec.Struct, kw_only=True, frozen=True):
    """What is known at one moment; rates are per second, over the last seconds."""

    #: on any clock that all observations share
    at_seconds: float
    ready_workers: int
    #: accepted and not started
    waiting: int
    #: delivered to workers and not acknowledged
    in_flight: int
    #: None while nothing waits
    oldest_waiting_seconds: float | None
    busy: int
    mean_busy: float
    arrival_rate: float
    completion_rate: float
    #: None before the first task told anything
    service_seconds: float | None
    #: how long nothing was started or finished although tasks wait
    stalled_seconds: float = 0.0


class Direction(StrEnum):
    UP = "up"
    DOWN = "down"
    HOLD = "hold"


class Past(msgspec.Struct, kw_only=True, frozen=True):
    """What the policy must know of earlier decisions; it is handed back with each."""

    #: time and slots needed then, oldest first
    needs: tuple[tuple[float, int], ...] = ()
    #: None until the first observation, and again after one was missing
    observed_since: float | None = None
    changed_at: float | None = None
    direction: Direction = Direction.HOLD
    #: when it went down after having gone up, or up after down; the last few, oldest first
    reversed_at: tuple[float, ...] = ()

    def noting(self, at: float, need: int, limits: Limits) -> Past:
        """Return the past with one more need, without those that no longer matter."""
        longest = limits.cooldown_seconds * _PATIENCE
        # A clock that was set back must not keep what is old alive.
        kept = [n for n in self.needs if 0 <= at - n[0] <= longest]
        return msgspec.structs.replace(
            self,
            needs=(*kept, (at, need)),
            observed_since=at if self.observed_since is None else min(self.observed_since, at),
            changed_at=None if self.changed_at is None else min(self.changed_at, at),
            reversed_at=tuple(min(reversal, at) for reversal in self.reversed_at),
        )

    def peak(self, at: float, seconds: float) -> int:
        """Return the most slots needed at once within the last `seconds`."""
        return max(slots for noted, slots in self.needs if at - noted <= seconds)

    def unseen(self) -> Past:
        """Return the past after a moment of which nothing is known."""
        return msgspec.structs.replace(self, needs=(), observed_since=None)

    def changed(self, at: float, direction: Direction) -> Past:
        reversals = self.reversed_at
        if self.direction not in {Direction.HOLD, direction}:
            reversals = (*reversals, at)[1 - MOST_REVERSALS :]
        return msgspec.structs.replace(
            self, changed_at=at, direction=direction, reversed_at=reversals
        )


class Decision(msgspec.Struct, kw_only=True, frozen=True):
    """What shall be, why in one line, and the figures that led to it."""

    workers: int
    concurrency: int
    direction: Direction
    reason: str
    figures: dict[str, float | int | None]
    past: Past

    @property
    def size(self) -> Size:
        return Size(self.workers, self.concurrency)


class _Need(NamedTuple):
    slots: int
    reason: str


def decide(size: Size, seen: Observation | None, limits: Limits, past: Past) -> Decision:
    """Return the size to have from now on; `size` is the one wanted so far.

    None for `seen` means that the figures are missing: everything stays, and giving up slots
    waits a whole cool-down again, for what was not seen is not taken for idle.
    """
    allowed = limits.clamp(size)
    if allowed != size:
        return _change(size, allowed, "the limits ask for it", seen, past)
    if seen is None:
        return _hold(size, "no current figures", None, past.unseen())
    if seen.stalled_seconds >= STALLED_SECONDS:
        reason = f"{seen.waiting} wait and no worker takes any for {seen.stalled_seconds:.0f} s"
        return _hold(size, reason, seen, past.unseen())
    need = _needed(size, seen, limits, past)
    past = past.noting(seen.at_seconds, need.slots, limits)
    grown = _grown(size, need.slots, limits)
    if grown != size:
        return _change(size, grown, need.reason, seen, past)
    return _down_or_hold(size, need, seen, limits, past)


# -- how many slots are needed ---------------------------------------------------------------


def _needed(size: Size, seen: Observation, limits: Limits, past: Past) -> _Need:
    """Return the slots that carry the load with room to spare and clear the backlog in time."""
    present = max(seen.busy, math.ceil(seen.mean_busy)) + seen.waiting
    # More slots than tasks have no use, however long each takes.
    useful = present + math.ceil(seen.arrival_rate * _LOOK_SECONDS)
    service = seen.service_seconds
    if service is None:
        # Whatever runs has not ended yet, so anything that waits needs a slot of its own.
        return _Need(useful, f"{seen.waiting} wait, and how long a task takes is unknown")
    load = seen.arrival_rate * service
    if service >= _LOOK_SECONDS or seen.mean_busy >= size.slots:
        # Of short tasks a few looks catch too few to tell how many run on average.
        load = max(load, seen.mean_busy)
    backlog = seen.waiting * service / limits.target_wait_seconds
    needs = [
        _Need(_below(load, limits.scale_threshold), _load_reason(load, size, limits)),
        _Need(math.ceil(load + backlog - 1e-9), _backlog_reason(size, seen, service, limits)),
        _late(size, seen, limits, past),
    ]
    needs = [_Need(min(need.slots, useful), need.reason) for need in needs]
    return max(needs, key=lambda need: need.slots)


def _below(load: float, threshold: float) -> int:
    """Return the least number of slots of which less than `threshold` would be busy."""
    return math.floor(load / threshold + 1e-9) + 1


def _late(size: Size, seen: Observation, limits: Limits, past: Past) -> _Need:
    """Correct by what is measured: tasks wait too long although by the figures they should not."""
    age, limit = seen.oldest_waiting_seconds, 2 * limits.target_wait_seconds
    settled = past.changed_at is None or seen.at_seconds - past.changed_at > _SETTLED_SECONDS
    if age is None or age <= limit or not settled or seen.ready_workers < size.workers:
        return _Need(0, "")
    slots = math.ceil(size.slots * min(2.0, age / limit))
    return _Need(slots, f"the oldest waits {age:.1f} s, more than twice the target")


def _load_reason(load: float, size: Size, limits: Limits) -> str:
    share = 100 * load / size.slots
    return (
        f"load of {load:.1f} slots is {share:.0f} % of {size.slots} "
        f"(threshold {100 * limits.scale_threshold:.0f} %)"
    )


def _backlog_reason(size: Size, seen: Observation, service: float, limits: Limits) -> str:
    seconds = seen.waiting * service / size.slots
    return (
        f"{seen.waiting} waiting take {seconds:.1f} s with {size.slots} slots "
        f"(target {limits.target_wait_seconds:g} s), {seen.arrival_rate:.1f}/s come"
    )


# -- which size has them ---------------------------------------------------------------------


def _grown(size: Size, slots: int, limits: Limits) -> Size:
    """Return a size with at least `slots`, as far as allowed: first gear first, none lower."""
    workers = max(size.workers, min(limits.max_workers, _divided(slots, limits.max_concurrent)))
    concurrency = max(size.concurrency, min(limits.max_concurrent, _divided(slots, workers)))
    return Size(workers, concurrency)


def _shrunk(size: Size, slots: int, limits: Limits) -> Size:
    """Return the size with the fewest workers that has `slots`."""
    workers = max(limits.min_workers, _divided(slots, limits.max_concurrent))
    workers = min(workers, size.workers)
    return limits.clamp(Size(workers, _divided(slots, workers)))


def _divided(slots: int, each: int) -> int:
    return -(-slots // each)


def _down_or_hold(
    size: Size, need: _Need, seen: Observation, limits: Limits, past: Past
) -> Decision:
    at, seconds = seen.at_seconds, limits.cooldown_seconds
    smaller = _shrunk(size, past.peak(at, seconds), limits)
    turns = past.direction is Direction.UP
    if turns and _saves_little(size, smaller, limits):
        # Not worth turning for while the load may still be rising, or is only noisy.
        seconds *= _PATIENCE
        smaller = _shrunk(size, past.peak(at, seconds), limits)
    if not _worthwhile(size, smaller, limits):
        return _hold(size, f"{need.slots} of {size.slots} slots needed", seen, past)
    ripe = _ripe_at(turns, seconds, past)
    if at < ripe:
        return _hold(size, f"{smaller} would do, if still so in {ripe - at:.0f} s", seen, past)
    reason = f"no more than {past.peak(at, seconds)} slots needed for {seconds:.0f} s"
    return _change(size, smaller, reason, seen, past)


def _ripe_at(turns: bool, seconds: float, past: Past) -> float:
    """Return from when on slots may be given up that were not needed for `seconds`."""
    ripe = [seconds + (past.observed_since or 0.0)]
    if turns and past.changed_at is not None:
        ripe.append(seconds + past.changed_at)
    if turns and past.reversed_at:
        ripe.append(TURN_SECONDS + past.reversed_at[-1])
    if turns and len(past.reversed_at) == MOST_REVERSALS - 1:
        # The growth that may follow never waits: it has to be the last one still allowed.
        ripe.append(REVERSALS_SECONDS + past.reversed_at[0])
    return max(ripe)


def _worthwhile(size: Size, smaller: Size, limits: Limits) -> bool:
    saved = size.slots - smaller.slots
    return saved > 0 and (smaller == limits.least or saved >= size.slots * _WORTHWHILE)


def _saves_little(size: Size, smaller: Size, limits: Limits) -> bool:
    saved = size.slots - smaller.slots
    return smaller != limits.least and saved < max(size.slots * _LITTLE, limits.max_concurrent)


# -- the answer ------------------------------------------------------------------------------


def _change(
    size: Size, wanted: Size, reason: str, seen: Observation | None, past: Past
) -> Decision:
    direction = Direction.UP if wanted.slots > size.slots else Direction.DOWN
    return Decision(
        workers=wanted.workers,
        concurrency=wanted.concurrency,
        direction=direction,
        reason=f"{size} to {wanted}: {reason}",
        figures=figures(seen),
        past=past if seen is None else past.changed(seen.at_seconds, direction),
    )


def _hold(size: Size, reason: str, seen: Observation | None, past: Past) -> Decision:
    return Decision(
        workers=size.workers,
        concurrency=size.concurrency,
        direction=Direction.HOLD,
        reason=f"{size} stays: {reason}",
        figures=figures(seen),
        past=past,
    )


def figures(seen: Observation | None) -> dict[str, float | int | None]:
    """Return an observation as the figures of a decision, rounded for people."""
    if seen is None:
        return {}
    return {
        name: round(value, 3) if isinstance(value, float) else value
        for name, value in msgspec.structs.asdict(seen).items()
        if name != "at_seconds"
    }
