"""Processes: started in sessions of their own, watched, restarted with back-off, ended surely."""

from __future__ import annotations

from bridge.fleet.child import Child, ProcessSpec
from bridge.fleet.fleet import Fleet, MemberState, WorkerOptions
from bridge.fleet.placement import place
from bridge.fleet.supervisor import ProcessState, Supervisor

__all__ = [
    "Child",
    "Fleet",
    "MemberState",
    "ProcessSpec",
    "ProcessState",
    "Supervisor",
    "WorkerOptions",
    "place",
]
