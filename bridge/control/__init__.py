"""Commands to running Celery workers from outside, each with a bounded time."""

from bridge.control.control import Control
from bridge.control.resized import Resized

__all__ = ["Control", "Resized"]
