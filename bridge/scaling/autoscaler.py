"""The loop around the policy: look, decide, apply, tell. Runs in the controller that leads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

import msgspec

from bridge.envelope import from_epoch
from bridge.errors import NatsConnectionError
from bridge.logs import get_logger
from bridge.records import ScalingDecision, ScalingState
from bridge.scaling.history import KEPT_DECISIONS, History
from bridge.scaling.leader import NotLeading
from bridge.scaling.meter import Meter
from bridge.scaling.policy import Limits, Past, Size, decide
from bridge.scaling.reading import Reading
from bridge.stats.pause import pause

#: How late a new reading may be noticed; there are two a second.
PERIOD_SECONDS: Final = 0.2
#: Without a new reading for so long, nothing is known any more.
BLIND_SECONDS: Final = 5.0
_MANUAL: Final = "manual"

log = get_logger("bridge.scaling")


class Pins(NamedTuple):
    """Gears that a person set; None leaves one to the policy."""

    workers: int | None = None
    concurrency: int | None = None
    #: seconds since 1970; None holds until told otherwise
    until_epoch: float | None = None

    @property
    def any(self) -> bool:
        return self.workers is not None or self.concurrency is not None


class Autoscaler:
    """Decides the size of the fleet.

    `observe` returns the latest reading (the same one again while there is none newer), or None.
    `apply` makes a size the one that all controllers follow, and returns once it is told, not
    once it is reached. Both may raise NatsConnectionError, and `apply` NotLeading: then the
    decision was not made, and the next look makes it again.

    `limits` hold for everybody. `initial` is the size at the start, when its predecessor left no
    larger one; with `automatic` False it stays until somebody asks for another one. Its workers
    hold against the policy for `start_hold_seconds`, as any number that somebody asked for; only
    pools shrink meanwhile. `leads` tells whether this process may decide.
    """

    def __init__(
        self,
        observe: Callable[[], Awaitable[Reading | None]],
        apply: Callable[[Size], Awaitable[None]],
        limits: Limits,
        history: History,
        *,
        initial: Size,
        automatic: bool = True,
        start_hold_seconds: float = 0.0,
        leads: Callable[[], bool] = lambda: True,
        period_seconds: float = PERIOD_SECONDS,
        blind_seconds: float = BLIND_SECONDS,
    ) -> None:
        self._observe = observe
        self._apply = apply
        self._limits = limits
        self._history = history
        self._initial = initial
        self._automatic = automatic
        self._start_hold_seconds = start_hold_seconds
        #: time.monotonic()
        self._start_held_until = 0.0
        self._leads = leads
        self._period_seconds = period_seconds
        self._blind_seconds = blind_seconds
        # Decisions of the policy and of people never mix: one at a time, the later one counts.
        self._lock = asyncio.Lock()
        self._leading = self._has_led = False
        self._begin(None)

    def _begin(self, stored: ScalingState | None) -> None:
        """Go on from what a predecessor stored."""
        self._meter, self._past = Meter(), Past()
        self._last_reading_at: float | None = None
        self._news_at = time.monotonic()
        self._blind: str | None = None
        self._decisions: list[ScalingDecision] = []
        self.size, self.pins = self._limits.clamp(self._initial), Pins()
        if stored is not None:
            self._decisions = list(stored.decisions)
            self.size = Size(stored.workers, stored.concurrency)
            if stored.mode == "manual":
                self.pins = Pins(
                    stored.pinned_workers, stored.pinned_concurrency, stored.manual_until_epoch
                )
        if not self.pins.any:
            self.size, self.pins = self._unasked()
            if not self._has_led:
                # What an idle fleet was left with before a restart is no size to start with.
                workers = max(self.size.workers, self._initial.workers)
                self.size = self.size._replace(workers=workers)
                self._start_held_until = time.monotonic() + self._start_hold_seconds

    def _unasked(self) -> tuple[Size, Pins]:
        """Return what holds while nobody asks for anything: the policy, or the settings."""
        if self._automatic:
            return self.size, Pins()
        fixed = self._limits.clamp(self._initial)
        return fixed, Pins(*fixed)

    @property
    def state(self) -> ScalingState:
        """Return what is wanted now, and why."""
        return ScalingState(
            mode=self._mode,
            workers=self.size.workers,
            concurrency=self.size.concurrency,
            pinned_workers=self.pins.workers,
            pinned_concurrency=self.pins.concurrency,
            manual_until_epoch=self.pins.until_epoch,
            blind_reason=self._blind,
            decisions=self._decisions,
        )

    @property
    def _mode(self) -> str:
        if not self.pins.any:
            return "auto"
        return "fixed" if (self.size, self.pins) == self._unasked() else "manual"

    async def run(self, stop: asyncio.Event) -> None:
        """Look once a period until `stop` is set."""
        while not stop.is_set():
            started = time.monotonic()
            try:
                await self._look()
            except (NatsConnectionError, NotLeading) as error:
                log.warning("scaling interrupted", reason=str(error))
            spent = time.monotonic() - started
            await pause(self._period_seconds - spent, stop)

    # -- what people ask for -------------------------------------------------------------

    async def scale(
        self,
        *,
        workers: int | None = None,
        concurrency: int | None = None,
        hold_seconds: float | None = None,
    ) -> Size:
        """Have this size at once and hold it against the policy; return it.

        A gear that is not given stays with the policy. Without `hold_seconds` it holds until
        `automatic` or another call. Values must be within the limits.

        Raises ValueError, NotLeading, NatsConnectionError; then nothing has changed.
        """
        self._check(workers, concurrency)
        until = None if hold_seconds is None else time.time() + hold_seconds
        async with self._lock:
            await self._take_over()
            pins = Pins(workers, concurrency, until)
            wanted = self._pinned(pins).clamp(self.size)
            held = "until told otherwise" if until is None else f"until {from_epoch(until)}"
            await self._change(
                wanted, _MANUAL, f"{self.size} to {wanted}: asked for, {held}", {}, pins
            )
        return wanted

    async def automatic(self) -> Size:
        """Give both gears back to the policy. Raises NotLeading, NatsConnectionError."""
        async with self._lock:
            await self._take_over()
            self._start_held_until = 0.0
            await self._change(self.size, _MANUAL, f"{self.size} is automatic again", {}, Pins())
        return self.size

    def _check(self, workers: int | None, concurrency: int | None) -> None:
        limits = self._limits
        if workers is not None and not limits.min_workers <= workers <= limits.max_workers:
            raise ValueError(
                f"worker_count: {limits.min_workers} to {limits.max_workers} are allowed, not "
                f"{workers}; MIN_WORKERS and MAX_WORKERS say so."
            )
        if concurrency is not None and not 1 <= concurrency <= limits.max_concurrent:
            raise ValueError(
                f"concurrency: 1 to {limits.max_concurrent} are allowed, not {concurrency}; "
                "MAX_CONCURRENT_TASKS says so."
            )

    # -- the loop ------------------------------------------------------------------------

    async def _look(self) -> None:
        if not self._leads():
            self._leading = False
            return
        async with self._lock:
            await self._take_over()
        reading, reason = await self._latest()
        async with self._lock:
            if self._leads():
                await self._decide(reading, reason)

    async def _take_over(self) -> None:
        if not self._leads():
            raise NotLeading("this controller does not lead: ask the one that does")
        if not self._leading:
            self._begin(await self._history.load())
            # Those that follow may have missed what a predecessor wanted.
            await self._apply(self.size)
            await self._store(None)
            self._leading = self._has_led = True

    async def _latest(self) -> tuple[Reading | None, str | None]:
        """Return a new reading, or why there is none; neither when one will come soon."""
        reason = "no current figures"
        try:
            reading = await self._observe()
        except NatsConnectionError as error:
            reading, reason = None, str(error)
        now = time.monotonic()
        if reading is not None and reading.at_seconds != self._last_reading_at:
            self._last_reading_at, self._news_at = reading.at_seconds, now
            return reading, None
        return None, reason if now - self._news_at > self._blind_seconds else None

    async def _decide(self, reading: Reading | None, blind: str | None) -> None:
        if reading is None and blind is None:
            return
        if self.pins.until_epoch is not None and time.time() >= self.pins.until_epoch:
            size, pins = self._unasked()
            await self._change(size, _MANUAL, "the manual hold is over", {}, pins)
        await self._note_blind(blind)
        seen = None if reading is None else self._meter.observe(reading)
        decision = decide(self.size, seen, self._pinned(self.pins), self._past)
        if decision.size != self.size:
            direction = decision.direction.value
            await self._change(
                decision.size, direction, decision.reason, decision.figures, self.pins
            )
        self._past = decision.past

    def _pinned(self, pins: Pins) -> Limits:
        """Return the limits within which the policy may move."""
        limits = self._limits
        workers, concurrency, _ = pins
        if time.monotonic() < self._start_held_until:
            least = limits.clamp(self._initial).workers
            limits = msgspec.structs.replace(limits, min_workers=least)
        if workers is not None:
            limits = msgspec.structs.replace(limits, min_workers=workers, max_workers=workers)
        if concurrency is not None:
            limits = msgspec.structs.replace(
                limits, min_concurrent=concurrency, max_concurrent=concurrency
            )
        return limits

    # -- telling -------------------------------------------------------------------------

    async def _change(
        self,
        size: Size,
        direction: str,
        reason: str,
        figures: dict[str, float | int | None],
        pins: Pins,
    ) -> None:
        decided = ScalingDecision(
            decided_at=from_epoch(time.time()),
            direction=direction,
            workers_before=self.size.workers,
            concurrency_before=self.size.concurrency,
            workers=size.workers,
            concurrency=size.concurrency,
            reason=reason,
            figures=figures,
        )
        await self._apply(size)
        self.size, self.pins = size, pins
        if direction == _MANUAL:
            self._past = Past()
        self._decisions = [decided, *self._decisions][:KEPT_DECISIONS]
        log.info("scaled", direction=direction, reason=reason, **figures)
        await self._store(decided)

    async def _note_blind(self, reason: str | None) -> None:
        if (reason is None) == (self._blind is None):
            return
        self._blind = reason
        if reason is None:
            log.info("scaling sees again")
        else:
            log.warning("scaling is blind, everything stays", reason=reason)
        await self._store(None)

    async def _store(self, decided: ScalingDecision | None) -> None:
        """Keep the state; what fails now is stored with the next one."""
        try:
            await self._history.store(self.state, decided)
        except NatsConnectionError as error:
            log.warning("scaling state not stored", reason=str(error))
