"""What NATS holds of one chord while its header runs (ADR-49 of NATS: counters).

Every part of the header is a key of its own, so a part that runs twice counts once. A counter in
the server starts at minus the size of the header and tells each part whether it may be the last.
It may be too high, since a part that runs twice adds to it twice, and is never too low: whoever
sees it at zero or above looks at the keys themselves. Of those who find all parts there, one gets
the claim, and only its holder sends the callback.
"""

from __future__ import annotations

import contextlib
import math
import os

from bridge.errors import BridgeError
from bridge.names import Names, escape
from bridge.wire import Bucket, JetStream, KeyExists

#: Stands where the claim was, so that a part that runs once more later changes nothing.
_DONE = b"done"
#: How long such a part is recognised: far longer than any broker holds a delivery back.
_DONE_SECONDS = 3600.0
_NO_INDEX = "-"


class PartsExpired(BridgeError):
    """Parts of a chord were kept for as long as they are, and it has not ended."""


class ChordRecord:
    """One chord in the bucket `chords`. All methods raise NatsConnectionError, JetStreamError.

    Each may be called again after an error, whether it had been carried out or not.
    """

    def __init__(self, js: JetStream, names: Names, group_id: str, ttl: float | None) -> None:
        """`ttl` in seconds is how long a chord that never ends is kept; None for ever."""
        self._js = js
        self._bucket = Bucket(js, names.bucket("chords"))
        self._counters = names.counter_stream
        self._counter = names.chord_counter(group_id)
        self._prefix = escape(group_id)
        self._ttl = ttl

    def _key(self, name: str) -> str:
        return f"{self._prefix}.{name}"

    @staticmethod
    def part(task_id: str, group_index: int | None) -> str:
        """Return the key of a part; a frozen signature may stand in a header several times."""
        return f"{_NO_INDEX if group_index is None else group_index}.{escape(task_id)}"

    # -- the sender --------------------------------------------------------------------

    def reset(self) -> None:
        """Forget an earlier run: a chord that is sent twice has the same ids both times."""
        self._purge(">")

    def set_size(self, size: int) -> None:
        """Say how many parts there are, before the last of them is sent."""
        self._bucket.put(self._key("size"), str(size).encode(), self._ttl)
        # Counted once even where two workers send the chord at the same time: twice is too low.
        self._count(-size, f"size.{self._prefix}")

    def add(self, task_id: str) -> None:
        """Enlarge a chord that is running by one part."""
        self._bucket.put(self._key(f"added.{escape(task_id)}"), b"", self._ttl)
        self._count(-1, f"added.{self._prefix}.{escape(task_id)}")

    def _count(self, step: int, message_id: str | None = None) -> int:
        """Add to the counter and return the total, 0 where it is not known."""
        headers = {"Nats-Incr": f"{step:+d}"}
        if message_id:
            headers["Nats-Msg-Id"] = message_id
        ack = self._js.publish(self._counter, b"", headers)
        return int(ack.val or 0)

    def _purge(self, *patterns: str) -> None:
        """Remove the matching keys, and the counter."""
        subjects = [self._bucket.subject(self._key(pattern)) for pattern in patterns]
        keys = [(self._bucket.stream, subject) for subject in subjects]
        self._js.purge(*keys, (self._counters, self._counter))

    # -- the parts ---------------------------------------------------------------------

    def store(self, part: str, value: bytes) -> int:
        """Keep the outcome of a part, the first one for ever; return the counter.

        From 0 on it may be the last.
        """
        # Where it is there the part ran before; whether it was counted then is not known.
        with contextlib.suppress(KeyExists):
            self._bucket.create(self._key(f"part.{part}"), value, self._ttl)
        return self._count(1)

    def claim(self, holder: str, counted: int) -> int | None:
        """Become the one who sends the callback; None where parts are missing or another is.

        `counted` is what `store` returned. Raises PartsExpired to the last part of a chord whose
        first ones are gone.

        `holder` is a `new_holder(part)`. The claim belongs to the part, not to the process: when
        a worker dies with it, the part comes back to another worker, and that one goes on.
        Returns the claim's revision.
        """
        size, claim = self._bucket.entries([self._key("size"), self._key("claim")])
        if claim is not None and claim.value == _DONE:
            self._forget_parts()
            return None
        if size is None and claim is None and counted == 0:
            self._check_expired()
        if size is None or not self._is_complete(int(size.value)):
            return None
        try:
            return self._bucket.create(self._key("claim"), holder.encode(), self._ttl)
        except KeyExists:
            [claim] = self._bucket.entries([self._key("claim")])
        if claim is None or _part_of(claim.value) != _part_of(holder.encode()):
            return None
        return self.renew(holder, claim.revision)

    def _check_expired(self) -> None:
        """Raise PartsExpired where a counter of 0 tells that the size had been there."""
        # Until it is, each part makes the counter more than 0, unless some were added.
        if not self._bucket.keys(self._key("added.>")):
            raise PartsExpired("it took longer than its size and its parts are kept")

    def _is_complete(self, size: int) -> bool:
        keys = self._bucket.keys(self._key(">"))
        parts = sum(key.startswith(self._key("part.")) for key in keys)
        added = sum(key.startswith(self._key("added.")) for key in keys)
        return parts >= size + added

    def renew(self, holder: str, revision: int) -> int | None:
        """Return the claim's new revision, None where another worker took it over."""
        renewed = self._bucket.update(self._key("claim"), holder.encode(), revision, self._ttl)
        if renewed is None:
            [claim] = self._bucket.entries([self._key("claim")])
            # An attempt that seemed to fail may have been carried out.
            renewed = claim.revision if claim and claim.value == holder.encode() else None
        return renewed

    def values(self) -> list[bytes]:
        """Return the outcomes of all parts in the order of the header."""
        keys = sorted(self._bucket.keys(self._key("part.>")), key=self._position)
        entries = self._bucket.entries(keys, self._js.connection.most_at_once)
        return [entry.value for entry in entries if entry is not None]

    def _position(self, key: str) -> tuple[float, str]:
        index = key.removeprefix(self._key("part.")).split(".")[0]
        return (math.inf if index == _NO_INDEX else float(index), key)

    def finish(self, revision: int) -> None:
        """Remove everything but a note that the chord is done."""
        self._bucket.update(self._key("claim"), _DONE, revision, _DONE_SECONDS)
        [claim] = self._bucket.entries([self._key("claim")])
        if claim is not None and claim.value == _DONE:
            self._forget_parts()

    def _forget_parts(self) -> None:
        self._purge("size", "part.>", "added.>")


def new_holder(part: str) -> str:
    """Return a name for one run of a part."""
    return f"{part}/{os.urandom(8).hex()}"


def _part_of(holder: bytes) -> bytes:
    return holder.split(b"/")[0]
