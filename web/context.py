"""What the views need of the application they run in."""

from __future__ import annotations

from typing import cast

import msgspec
from flask import current_app

from config.settings import Settings
from web.auth import ApiKeys
from web.resources import Resources

_EXTENSION = "task-worker"


class Context(msgspec.Struct, kw_only=True, frozen=True):
    """Settings, keys and resources of one application."""

    settings: Settings
    keys: ApiKeys
    resources: Resources
    #: seconds since 1970 when the service was started
    started_epoch: float


def attach(extensions: dict[str, object], context: Context) -> None:
    """Give an application its context."""
    extensions[_EXTENSION] = context


def context() -> Context:
    """The context of the application that handles this request."""
    return cast(Context, current_app.extensions[_EXTENSION])


def resources() -> Resources:
    """The resources of the application that handles this request."""
    return context().resources
