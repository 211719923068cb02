"""How many workers and how many tasks at once in each: observed, decided, explained."""

from __future__ import annotations

from bridge.scaling.autoscaler import Autoscaler, Pins
from bridge.scaling.history import History, StoredHistory
from bridge.scaling.leader import Leader, NotLeading
from bridge.scaling.meter import Meter
from bridge.scaling.policy import Decision, Direction, Limits, Observation, Past, Size, decide
from bridge.scaling.reading import Reading, from_snapshot

__all__ = [
    "Autoscaler",
    "Pins",
    "History",
    "StoredHistory",
    "Leader",
    "NotLeading",
    "Meter",
    "Reading",
    "from_snapshot",
    "Decision",
    "Direction",
    "Limits",
    "Observation",
    "Past",
    "Size",
    "decide",
]
