"""One host's share of the fleet: claimed, followed, watched, told."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, Final

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg

from bridge.control import Control
from bridge.controller.shared import (
    HOST_KEYS,
    HOST_TTL_SECONDS,
    TARGET_KEY,
    FleetTarget,
    HostRecord,
    host_key,
)
from bridge.controller.sizes import Sizes
from bridge.errors import NatsConnectionError
from bridge.fleet import Fleet, MemberState, ProcessState
from bridge.logs import get_logger
from bridge.names import (
    EVENT_EXCHANGE,
    Names,
    bucket_change_subject,
    bucket_stream,
    bucket_subject,
)
from bridge.stats.client import direct_get, header, is_marker, keep_connected, store
from bridge.stats.figures import decode_events
from bridge.stats.pause import pause
from bridge.wire import ConnectOptions

PERIOD_SECONDS: Final = 1.0
#: Celery's workers send a heartbeat every two seconds; one that sends none for so long hangs.
SILENT_SECONDS: Final = 20.0
#: After an outage of NATS, Celery may take this long to connect again.
_RECONNECT_GRACE_SECONDS: Final = 35.0
#: What a hanging worker gets to end by itself.
_HANG_GRACE_SECONDS: Final = 2.0
_NAMESPACE: Final = Path("/proc/self/ns/pid")

log = get_logger("bridge.controller")
_decode_host: Final = msgspec.json.Decoder(HostRecord).decode
_decode_target: Final = msgspec.json.Decoder(FleetTarget).decode


class HostKeeper:
    """Keeps the workers that the target gives to this host.

    Only one controller keeps a host: it holds the key of the host's record. While NATS is away,
    everything stays as it is.
    """

    def __init__(
        self,
        options: ConnectOptions,
        names: Names,
        fleet: Fleet,
        control: Control,
        *,
        instance: str,
        serve: Callable[[Client], Awaitable[None]],
        leftover_seconds: float,
    ) -> None:
        """`serve` is awaited on each new connection, to subscribe to commands.

        `leftover_seconds` is what leftovers of an earlier controller get to end by themselves.
        """
        self.host = fleet.options.host
        self.instance = instance
        self.leaving = False
        #: set while this controller is the one that keeps this host
        self.claimed = asyncio.Event()
        #: monotonic time of the present connection
        self.connected_at = 0.0
        self._options = options
        self._names = names
        self._bucket = names.bucket("status")
        self._fleet = fleet
        self._leftover_seconds = leftover_seconds
        self._sizes = Sizes(control, fleet.options.pool, self._note_size)
        self._serve = serve
        self._client: Client | None = None
        self._revision: int | None = None
        self._holder = ""
        self._wake = asyncio.Event()
        #: Celery hostname -> when it was heard last, seconds since 1970
        self._heard: dict[str, float] = {}
        self._news = asyncio.Condition()
        self._replacing: set[asyncio.Task[None]] = set()

    async def run(self, stop: asyncio.Event) -> None:
        """Keep the host until `stop` is set, over any number of lost connections."""
        await keep_connected(
            self._options, lambda client: self._attend(client, stop), stop, part="host"
        )

    async def leave(self) -> None:
        """Take no new workers from now on, and let the others know."""
        self.leaving = True
        with contextlib.suppress(NatsConnectionError):  # then they see it by our silence
            await self._tell()

    async def hosts(self) -> list[HostRecord]:
        """Return what all live hosts tell. Raises NatsConnectionError."""
        subject = self._subject(HOST_KEYS)
        query = {"multi_last": [subject]}
        found = await direct_get(self.client, bucket_stream(self._bucket), query)
        return [_decode_host(each.data) for each in found if not is_marker(each)]

    def record(self) -> HostRecord:
        """Return what there is to tell of this host."""
        return HostRecord(
            host=self.host,
            instance=self.instance,
            pid=os.getpid(),
            pid_namespace=_pid_namespace(),
            leaving=self.leaving,
            members=self._fleet.members(),
        )

    def wake(self) -> None:
        """Have this host looked after now."""
        self._wake.set()

    def pid_of(self, number: int) -> int | None:
        """Return the pid of a worker of this host, None where it has none."""
        return next((m.pid for m in self._fleet.members() if m.number == number), None)

    async def until_ready(self, number: int, *, other_than: int | None) -> None:
        """Wait until a new process is this worker and was heard."""
        async with self._news:
            await self._news.wait_for(
                lambda: any(
                    member.number == number
                    and member.pid not in {None, other_than}
                    and self._is_ready(member)
                    for member in self._fleet.members()
                )
            )

    # -- the loop ------------------------------------------------------------------------

    async def _attend(self, client: Client, stop: asyncio.Event) -> None:
        async def on_change(_: Msg) -> None:
            self._wake.set()

        await client.subscribe(bucket_change_subject(self._bucket, TARGET_KEY), cb=on_change)
        for kind in ("worker.heartbeat", "worker.online"):
            subject = self._names.exchange_subject(EVENT_EXCHANGE, kind)
            await client.subscribe(subject, cb=self._on_heartbeat)
        await self._serve(client)
        self._client, self.connected_at = client, time.monotonic()
        try:
            while not stop.is_set():
                self._wake.clear()
                await self._turn(client)
                await pause(PERIOD_SECONDS, stop, self._wake)
            await self._release(client)
        finally:
            self._client = None

    async def _turn(self, client: Client) -> None:
        await self._claim(client)
        if not self.claimed.is_set():
            return
        if not self.leaving:
            await self._follow(client)
        ready = [member for member in self._fleet.members() if self._is_ready(member)]
        self._sizes.align(ready, self._fleet.concurrency)
        self._replace_silent()

    async def _follow(self, client: Client) -> None:
        query = {"multi_last": [self._subject(TARGET_KEY)]}
        found = await direct_get(client, bucket_stream(self._bucket), query)
        if not found:
            return
        target = _decode_target(found[0].data)
        numbers = target.hosts.get(self.host, [])
        if set(numbers) != self._fleet.wanted or target.concurrency != self._fleet.concurrency:
            log.info("target", workers=len(numbers), concurrency=target.concurrency)
            await self._fleet.set_target(numbers, target.concurrency)

    # -- the key -------------------------------------------------------------------------

    async def _claim(self, client: Client) -> None:
        """Store the host's record, if it is ours to store."""
        if self._revision is not None and await self._tell():
            return
        query = {"multi_last": [self._subject(host_key(self.host))]}
        [*found] = await direct_get(client, bucket_stream(self._bucket), query)
        holder = None if not found or is_marker(found[0]) else _decode_host(found[0].data)
        if holder is not None and not self._may_follow(holder):
            await self._give_way(holder)
            return
        self._revision = int(header(found[0], "Nats-Sequence")) if found else 0
        if await self._tell() and not self.claimed.is_set():
            log.info("host claimed", host=self.host, instance=self.instance)
            self._fleet.replace_leftovers(self._leftover_seconds)
            self.claimed.set()

    async def _tell(self) -> bool:
        """Store the record; False when somebody else has stored one since."""
        if self._revision is None:
            return False
        headers = {
            "Nats-TTL": str(HOST_TTL_SECONDS),
            "Nats-Expected-Last-Subject-Sequence": str(self._revision),
        }
        value = msgspec.json.encode(self.record())
        subject = self._subject(host_key(self.host))
        self._revision = await store(self.client, subject, value, headers)
        return self._revision is not None

    def _may_follow(self, holder: HostRecord) -> bool:
        """Whether the controller that told this last is gone, or is this one."""
        if holder.instance == self.instance:
            return True
        if holder.pid_namespace != _pid_namespace() or not holder.pid_namespace:
            return False
        return holder.pid == os.getpid() or not _is_alive(holder.pid)

    async def _give_way(self, holder: HostRecord) -> None:
        if holder.instance != self._holder:
            self._holder = holder.instance
            log.error(
                "another controller keeps the workers of this host; waiting for its end",
                host=self.host,
                pid=holder.pid,
            )
        if self.claimed.is_set():
            self.claimed.clear()
            await self._fleet.set_target(())

    async def _release(self, client: Client) -> None:
        if self._revision is not None:
            headers = {
                "Nats-TTL": "1",
                "KV-Operation": "DEL",
                "Nats-Expected-Last-Subject-Sequence": str(self._revision),
            }
            await store(client, self._subject(host_key(self.host)), b"", headers)

    async def finish(self) -> None:
        """Wait for what is under way."""
        await self._sizes.finish()

    # -- workers -------------------------------------------------------------------------

    def _note_size(self, member: MemberState, slots: int) -> None:
        if member.pid is not None:
            self._fleet.note_size(member.number, member.pid, slots)
        self._wake.set()

    async def _on_heartbeat(self, message: Msg) -> None:
        try:
            events = decode_events(message.data)
        except msgspec.MsgspecError:
            return  # anybody may publish events
        for event in events if isinstance(events, list) else [events]:
            if event.hostname not in self._heard or event.type == "worker-online":
                self._wake.set()
            self._heard[event.hostname] = time.time()
        async with self._news:
            self._news.notify_all()

    def _is_ready(self, member: MemberState) -> bool:
        """Whether the process that now has this name was heard."""
        started = member.started_epoch
        return started is not None and self._heard.get(member.hostname, 0.0) > started

    def _replace_silent(self) -> None:
        """Start anew what sends no heartbeat any more although it did and NATS is there."""
        connected = time.monotonic() - self.connected_at
        if self._fleet.options.pool == "solo" or connected < _RECONNECT_GRACE_SECONDS:
            # A solo worker sends none while it runs a task.
            return
        for member in self._fleet.members():
            if member.state is not ProcessState.RUNNING or not self._is_ready(member):
                continue
            silent = time.time() - self._heard[member.hostname]
            if silent > SILENT_SECONDS:
                reason = f"sent no heartbeat for {silent:.0f} s and was replaced"
                log.error("worker hangs", worker=member.hostname, pid=member.pid, reason=reason)
                self._in_background(self._fleet.restart(member.number, _HANG_GRACE_SECONDS, reason))

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._replacing.add(task)
        task.add_done_callback(self._replacing.discard)

    # -- NATS ----------------------------------------------------------------------------

    def _subject(self, key: str) -> str:
        return bucket_subject(self._bucket, key)

    @property
    def client(self) -> Client:
        """The present connection. Raises NatsConnectionError while there is none."""
        if self._client is None:
            raise NatsConnectionError("the controller has no connection to NATS, it connects again")
        return self._client


def _pid_namespace() -> str:
    """Return what tells whose pids these are; empty where that cannot be known."""
    with contextlib.suppress(OSError):  # not Linux
        return str(_NAMESPACE.readlink())
    return ""


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody's: alive
        return True
    return True
