"""Celery apps that only send, for tests; they know tasks by name."""

from __future__ import annotations

from typing import Any

from celery import Celery


def make_app(url: str, backend: str = "", **settings: Any) -> Celery:
    """Return an app whose broker is `url`, as are its results unless `backend` is another.

    `close_app` ends it.
    """
    app = Celery(
        "client",
        broker=url,
        backend=backend or url,
        # One backend for all threads of a test, so that one call closes it.
        config_source={"result_backend_thread_safe": True, **settings},
        set_as_current=False,
    )
    # Celery makes one for each thread that asks at the same time for the first time.
    assert app.backend
    return app


def close_app(app: Celery) -> None:
    """Close every connection of the app."""
    app.backend.close()
    app.close()
