"""A pool process that is lost after it stored a success, and before the task's chord knew of it."""

from __future__ import annotations

import logging
from typing import Any

from celery import states
from celery.worker.request import Request

from bridge.backend import NatsBackend
from bridge.errors import BridgeError

logger = logging.getLogger("nats")

_find_success = Request._success_was_stored


def _success_was_stored(request: Any) -> Any:
    """Celery's, which has the task acknowledged; here its chord is told before that.

    Telling it twice does no harm (`bridge.backend.chord_record`). Where it cannot be told, the task
    counts as lost, and runs again where it may.
    """
    meta = _find_success(request)
    backend, context = request.task.backend, request._context
    if not (meta and context.chord and isinstance(backend, NatsBackend)):
        return meta
    try:
        backend.on_chord_part_return(context, states.SUCCESS, meta["result"])
    except BridgeError as error:
        logger.warning("the chord of task %s was not told of its success: %s", request.id, error)
        return False
    return meta


def install() -> None:
    """Take the place of Celery's method. Safe to call twice."""
    Request._success_was_stored = _success_was_stored
