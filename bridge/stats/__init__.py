"""Celery's events to figures, and the snapshot that the API answers from."""

from __future__ import annotations

from bridge.stats.collector import FIGURES_KEY, Collector
from bridge.stats.figures import Figures
from bridge.stats.snapshot import FleetView

__all__ = ["FIGURES_KEY", "Collector", "Figures", "FleetView"]
