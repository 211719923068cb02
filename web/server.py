"""Runs the front end: gunicorn with gevent workers, so that a waiting client costs no thread."""

from __future__ import annotations

import importlib

from gevent import monkey

from config.settings import Settings, check_exposure


def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; ends the process.

    Raises ConfigError when the address is in use or beyond this machine without API keys.
    """
    check_exposure(settings)
    # Before anything binds the blocking ones: sockets, locks and sleep of this process and its
    # children become gevent's. The master forks and watches its children by plain Python.
    monkey.patch_all(os=False, signal=False, subprocess=False, select=False)
    importlib.import_module("web.gunicorn_app").serve(settings)
