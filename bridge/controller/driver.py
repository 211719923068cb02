"""What the rest of the controller needs of whoever runs the workers."""

from __future__ import annotations

import asyncio
from contextlib import AbstractContextManager
from typing import Protocol

from bridge.records import Snapshot
from bridge.scaling import Size
from bridge.stats import FleetView


class Driver(Protocol):
    """Makes a size true while this controller leads."""

    @property
    def wanted_ids(self) -> set[str]:
        """Ids of the workers that there shall be."""

    def keeps_elsewhere(self, worker_id: str) -> bool:
        """Whether another controller can restart this worker."""

    def rid_of(self, worker_id: str) -> AbstractContextManager[None]:
        """Within this block whatever makes the fleet smaller takes this worker first."""

    async def run(self, stop: asyncio.Event) -> None:
        """Keep what is there as it is wanted, until `stop` is set."""

    async def apply(self, size: Size) -> None:
        """Make `size` the target. Raises NotLeading, NatsConnectionError, ScalingError."""

    async def forget(self) -> None:
        """Take back what nobody shall follow once this controller has ended."""

    def note(self, snapshot: Snapshot) -> None:
        """Take notice of the latest snapshot."""

    def view(self, max_concurrent: int) -> FleetView:
        """Return the fleet's own workers, on all hosts."""
