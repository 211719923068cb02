"""Makes the Flask application."""

from __future__ import annotations

from flask import Flask, g, request

from config.settings import Settings
from web import documentation, status, tasks, workers
from web.auth import ApiKeys
from web.context import Context, attach, context
from web.resources import Resources
from web.responses import register_error_handlers

#: Without a key: probes have none, and the page holds nothing but its own text.
_OPEN = frozenset({"status.health", "status.ready", "documentation.page", "documentation.part"})


def create_app(settings: Settings, resources: Resources, started_epoch: float) -> Flask:
    """Return the application of the service that was started then, in seconds since 1970.

    Raises ConfigError when the API keys cannot be used.
    """
    keys = ApiKeys.load(settings.api_keys_file)
    app = Flask(__name__, static_folder=None)
    app.url_map.redirect_defaults = False
    attach(
        app.extensions,
        Context(
            settings=settings,
            keys=keys,
            resources=resources,
            started_epoch=started_epoch,
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
