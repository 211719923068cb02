"""What controllers tell one another in the bucket `status`. Pure."""

from __future__ import annotations

from typing import Final

import msgspec

from bridge.fleet import MemberState
from bridge.names import escape

TARGET_KEY: Final = "target"
#: Filter over the records of all hosts.
HOST_KEYS: Final = "host.*"
#: A host that was silent this long is not alive; it tells of itself once a second.
HOST_TTL_SECONDS: Final = 6


def host_key(host: str) -> str:
    """Key of a host's record."""
    return f"host.{escape(host)}"


class HostRecord(msgspec.Struct, kw_only=True, frozen=True):
    """A live host and its workers, told by the one controller that keeps them."""

    host: str
    #: which controller, unique over all that ever ran
    instance: str
    pid: int
    #: where that pid means something
    pid_namespace: str
    #: it is being stopped and takes no new workers
    leaving: bool = False
    members: list[MemberState] = []


class FleetTarget(msgspec.Struct, kw_only=True, frozen=True):
    """What all controllers follow: the numbers of the workers on each host, and their pools."""

    concurrency: int
    hosts: dict[str, list[int]] = {}

    @property
    def numbers(self) -> set[int]:
        return {number for numbers in self.hosts.values() for number in numbers}
