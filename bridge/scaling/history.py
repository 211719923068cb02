"""What the autoscaler wants and why, where the API and its successor can read it."""

from __future__ import annotations

import time
from typing import Final, Protocol

import msgspec

from bridge.logs import get_logger
from bridge.names import EVENT_EXCHANGE, Names
from bridge.records import SCALING_KEY, ScalingDecision, ScalingState
from bridge.scaling.leader import Leader

#: The latest of them; all are in the log and, for a day, in the event stream.
KEPT_DECISIONS: Final = 50
#: Celery's name for it, as it stands among the events of workers and tasks.
EVENT_TYPE: Final = "scaling-decided"

log = get_logger("bridge.scaling")
_decode: Final = msgspec.json.Decoder(ScalingState).decode


class History(Protocol):
    """Where the state is kept. Both raise NatsConnectionError."""

    async def load(self) -> ScalingState | None: ...

    async def store(self, state: ScalingState, decided: ScalingDecision | None) -> None: ...


class StoredHistory:
    """In the bucket `status`, and each decision as an event of Celery's beside it."""

    def __init__(self, leader: Leader, names: Names) -> None:
        self._leader = leader
        self._subject = names.exchange_subject(EVENT_EXCHANGE, EVENT_TYPE.replace("-", "."))

    async def load(self) -> ScalingState | None:
        stored = await self._leader.get(SCALING_KEY)
        if stored is None:
            return None
        try:
            return _decode(stored)
        except msgspec.MsgspecError as error:
            log.error("stored scaling state not readable, starting anew", reason=str(error))
            return None

    async def store(self, state: ScalingState, decided: ScalingDecision | None) -> None:
        await self._leader.put(SCALING_KEY, msgspec.json.encode(state))
        if decided is not None:
            await self._leader.tell(
                self._subject,
                msgspec.json.encode(self._event(decided)),
                {"Content-Type": "application/json", "Content-Encoding": "utf-8"},
            )

    def _event(self, decided: ScalingDecision) -> dict[str, object]:
        fields = msgspec.to_builtins(decided)
        return {
            **fields,
            "type": EVENT_TYPE,
            "hostname": self._leader.name,
            "timestamp": time.time(),
        }
