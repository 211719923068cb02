"""Celery result backend for `nats://`."""

from bridge.backend.backend import NatsBackend

__all__ = ["NatsBackend"]
