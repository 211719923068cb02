"""The daemon beside the web front: worker processes, figures and scaling.

Several may run, one on each host. Each keeps the workers of its own host; one of them leads, which
means that it writes the figures and decides how many workers there are and where.
"""

from __future__ import annotations

from bridge.controller.controller import Controller, run

__all__ = ["Controller", "run"]
