"""`celery nats …`: Celery loads this module before it builds an app, which is how what runs
inside a worker gets there (ADR 0005)."""

from __future__ import annotations

import click


@click.group()
def nats() -> None:
    """Celery on NATS."""
