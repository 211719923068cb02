"""The command line: ``python -m bridge``.

Each command imports what it runs: the controller shall not carry Flask, nor web the fleet.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click
import msgspec

# `python -m` puts the user's directory first, where a config.py or web.py of their own may lie:
# ours must win (ADR 0006).
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bridge import logs
from bridge.errors import BridgeError, ServiceUnavailable
from config.settings import Settings, load


class _Commands(click.Group):
    """Turns an error of ours into one line and exit status 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BridgeError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(1)


def _settings(app: str | None = None) -> Settings:
    """Load the settings and give them to this process' environment.

    There `bridge.wire` finds the credentials, and child processes everything.
    """
    environ = {**os.environ, "CELERY_APP": app} if app else os.environ
    settings = load(environ)
    os.environ.update(settings.child_environ())
    return settings


def _configured(app: str | None = None) -> Settings:
    settings = _settings(app)
    logs.configure(level=settings.log_level)
    return settings


def _with_nats_url(settings: Settings) -> Settings:
    """Return the settings with the embedded server's address where no other is named."""
    os.environ["NATS_URL"] = settings.server_url
    return msgspec.structs.replace(settings, nats_url=settings.server_url)


_app_option = click.option(
    "--app", help="Celery app, as `celery -A` takes it; instead of CELERY_APP."
)


@click.group(cls=_Commands)
def main() -> None:
    """Celery on NATS."""


@main.command()
@_app_option
def up(app: str | None) -> None:
    """Run everything in the foreground until Ctrl-C."""
    from bridge.up import run  # noqa: PLC0415

    run(_configured(app), os.environ)


@main.command("web")
def web_command() -> None:
    """Run the REST front."""
    from web.server import run  # noqa: PLC0415

    run(_with_nats_url(_configured()))


@main.command()
@_app_option
def controller(app: str | None) -> None:
    """Run the worker processes and keep the figures."""
    from bridge.controller import run  # noqa: PLC0415

    run(_with_nats_url(_configured(app)), os.environ)


@main.command()
def doctor() -> None:
    """Show the settings in force and check what they name."""
    from bridge.doctor import run  # noqa: PLC0415

    if not run(_settings(), os.environ):
        sys.exit(1)


@main.command()
def health() -> None:
    """Exit with 0 when the REST front of these settings answers."""
    from bridge import probe  # noqa: PLC0415

    settings = _settings()
    try:
        status, _ = probe.http_request(settings.host, settings.port, "/health")
    except OSError as error:
        raise ServiceUnavailable(f"nothing answers on port {settings.port}: {error}") from error
    if status != 200:
        raise ServiceUnavailable(f"/health on port {settings.port} answers {status}")


@main.command()
@click.argument("name", default="default")
def apikey(name: str) -> None:
    """Make an API key called NAME, and the line for API_KEYS_FILE."""
    from web.auth import generate  # noqa: PLC0415

    key, line = generate(name)
    click.echo(f"key, shown only now: {key}\nline for API_KEYS_FILE: {line}")


if __name__ == "__main__":
    main(prog_name="python -m bridge")
