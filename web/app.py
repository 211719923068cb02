"""Makes the Flask application."""

from __future__ import annotations

import time

from flask import Flask, g, request

from config.settings import Settings
from web import documentation, status, tasks, workers
from web.auth import ApiKeys
from web.context import Context, attach, context
from web.resources import Resources
from web.responses import register_error_handlers

#: Without a key: probes have none, and the page holds nothing but its own text.
_OPEN = frozenset({"status.health", "status.ready", "documentation.page", "documentation.part"})


def create_app(
    settings: Settings, resources: Resources | None = None, started_epoch: float | None = None
) -> Flask:
    """Return the application.

    Args:
        settings: of the service.
        resources: started by the caller; None makes and starts them here, in this process.
        started_epoch: when the service was started, in seconds since 1970; None is now.

    Raises:
        ConfigError: the API keys or the NATS URL cannot be used.
    """
    keys = ApiKeys.load(settings.api_keys_file)
    if resources is None:
        resources = Resources(settings)
        resources.start()
    app = Flask(__name__, static_folder=None)
    app.url_map.redirect_defaults = False
    attach(
        app.extensions,
        Context(
            settings=settings,
            keys=keys,
            resources=resources,
            started_epoch=time.time() if started_epoch is None else started_epoch,
        ),
    )
    if keys.required:
        app.before_request(_authenticate)
    register_error_handlers(app)
    for room in (status, tasks, workers, documentation):
        app.register_blueprint(room.blueprint)
    return app


def _authenticate() -> None:
    if request.endpoint in _OPEN:
        return
    headers = request.headers
    g.client = context().keys.client(headers.get("Authorization"), headers.get("X-API-Key"))
