"""Handlers of this service: an ordinary Celery app, run by ``celery -A tasks worker``."""

from __future__ import annotations

from tasks.app import app as celery_app

__all__ = ["celery_app"]
