"""One controller decides: a lock in the bucket `status` that ends by itself, fenced by NATS.

The lock is the key `leader`, stored with a TTL and renewed by its holder. Every write of a leader
names the revision of that key which it holds, and the server refuses the write when the key has
another one or is gone. So a leader that was stopped for a while (SIGSTOP, a lost network) cannot
overwrite what its successor wrote, whatever it believes.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import Final

import msgspec
from nats.aio.client import Client
from nats.errors import Error as NatsError

from bridge.errors import BridgeError, NatsConnectionError
from bridge.logs import get_logger
from bridge.names import Names, bucket_stream, bucket_subject
from bridge.records import LEADER_KEY
from bridge.stats.client import direct_get, header, is_marker, keep_connected, store
from bridge.stats.pause import pause
from bridge.wire import ConnectOptions

#: A leader that died is followed by another after this long, at the latest about twice.
LEADER_TTL_SECONDS: Final = 4
_EXPECTED: Final = "Nats-Expected-Last-Subject-Sequence"
_EXPECTED_SUBJECT: Final = "Nats-Expected-Last-Subject-Sequence-Subject"

log = get_logger("bridge.scaling")


class NotLeading(BridgeError):
    """Another controller decides now; this one must not."""


class Leader:
    """Campaigns while `run` runs. `name` must differ from every other controller's."""

    def __init__(
        self,
        options: ConnectOptions,
        names: Names,
        *,
        name: str,
        ttl_seconds: int = LEADER_TTL_SECONDS,
    ) -> None:
        self.name = name
        self._options = options
        self._bucket = names.bucket("status")
        self._ttl_seconds = ttl_seconds
        self._client: Client | None = None
        #: of the key `leader` as this one stored it; None while it does not lead
        self._revision: int | None = None
        #: set while this one leads
        self.elected = asyncio.Event()
        self._valid_until = 0.0
        # Renewal changes the revision that a write must name.
        self._lock = asyncio.Lock()

    @property
    def leads(self) -> bool:
        """Whether this controller decides, as far as it can know."""
        return self._revision is not None and time.monotonic() < self._valid_until

    async def run(self, stop: asyncio.Event) -> None:
        """Lead whenever possible until `stop` is set, over any number of lost connections."""
        await keep_connected(
            self._options, lambda client: self._campaign(client, stop), stop, part="leader"
        )

    async def put(self, key: str, value: bytes) -> None:
        """Store `value` in the bucket `status`, as the leader only.

        Raises NotLeading (nothing was stored), NatsConnectionError, or NatsTimeout (unknown).
        """
        async with self._lock:
            if not self.leads or self._revision is None:
                raise NotLeading(f"{self.name} does not lead: ask the controller that does")
            fence = {_EXPECTED: str(self._revision), _EXPECTED_SUBJECT: self._subject(LEADER_KEY)}
            if await self._publish(key, value, fence) is None:
                self._resign("another controller leads")
                raise NotLeading(f"{self.name} leads no more: ask the controller that does")

    async def get(self, key: str) -> bytes | None:
        """Return what the bucket `status` holds. Raises NatsConnectionError, NatsTimeout."""
        found = await direct_get(
            self._connected(), bucket_stream(self._bucket), {"multi_last": [self._subject(key)]}
        )
        return found[0].data if found and not is_marker(found[0]) else None

    async def tell(self, subject: str, payload: bytes, headers: dict[str, str]) -> None:
        """Publish on core NATS, as the leader. Raises NatsConnectionError."""
        try:
            await self._connected().publish(subject, payload, headers=headers)
        except NatsError as error:
            raise NatsConnectionError(f"NATS did not take {subject}: {error}") from error

    # -- the lock ------------------------------------------------------------------------

    async def _campaign(self, client: Client, stop: asyncio.Event) -> None:
        self._client = client
        try:
            while not stop.is_set():
                async with self._lock:
                    await self._hold_or_take()
                # Spread, so that several candidates do not ask as one.
                await pause(self._ttl_seconds * random.uniform(0.2, 0.3), stop)  # noqa: S311
            async with self._lock:
                await self._release()
        finally:
            self._client = None

    async def _hold_or_take(self) -> None:
        """Store the key anew if it is free or ours."""
        started = time.monotonic()
        revision, holder = await self._read()
        if holder not in {"", self.name}:
            self._resign(f"{holder} leads")
            return
        headers = {_EXPECTED: str(revision), "Nats-TTL": str(self._ttl_seconds)}
        stored = await self._publish(LEADER_KEY, msgspec.json.encode(self.name), headers)
        if stored is None:
            self._resign("another controller was first")
            return
        if self._revision is None:
            log.info("leading", name=self.name, revision=stored)
        # From before it was stored: the server counts from later on.
        self._revision, self._valid_until = stored, started + self._ttl_seconds
        self.elected.set()

    async def _read(self) -> tuple[int, str]:
        """Return the last revision of the key and who holds it, 0 and "" where nothing is."""
        query = {"multi_last": [self._subject(LEADER_KEY)]}
        found = await direct_get(self._connected(), bucket_stream(self._bucket), query)
        if not found:
            return 0, ""
        revision = int(header(found[0], "Nats-Sequence"))
        if is_marker(found[0]):
            return revision, ""
        return revision, found[0].data.decode(errors="replace").strip('"')

    async def _release(self) -> None:
        """Give the lock back, so that another controller leads at once."""
        if self._revision is None:
            return
        # The marker would otherwise stay; a candidate knows it by its header.
        headers = {_EXPECTED: str(self._revision), "Nats-TTL": "1", "KV-Operation": "DEL"}
        await self._publish(LEADER_KEY, b"", headers)
        self._resign("stopped")

    def _resign(self, reason: str) -> None:
        if self._revision is not None:
            log.info("not leading", name=self.name, reason=reason)
        self._revision = None
        self.elected.clear()

    # -- NATS ----------------------------------------------------------------------------

    def _subject(self, key: str) -> str:
        return bucket_subject(self._bucket, key)

    def _connected(self) -> Client:
        if self._client is None:
            raise NatsConnectionError("the leader's connection to NATS is lost, it connects again")
        return self._client

    async def _publish(self, key: str, value: bytes, headers: dict[str, str]) -> int | None:
        """Store and return the revision; None when the expected one is not there."""
        return await store(self._connected(), self._subject(key), value, headers)
