"""What Flower lacks for `nats://`: a broker tab, and a task list that outlives its restart.

`install` puts two things of ours in the place of Flower's, in the process of `celery flower`
alone; nothing else of Flower is touched.
"""

from __future__ import annotations

import logging
from importlib.metadata import version
from typing import Any

import flower.app
import flower.views

from bridge.flower.broker import NatsBroker
from bridge.flower.events import StoredEvents
from bridge.names import EVENT_EXCHANGE

logger = logging.getLogger("nats")

#: Release the two replacements were written for and are tested with.
TESTED_RELEASE = "2.2"

_flowers_get_broker = flower.views.BaseHandler.get_broker


def install(app: Any) -> None:
    """Extend Flower for the Celery `app` it will show. Safe to call twice."""
    if app.connection_for_read().transport.driver_type != "nats":
        return
    release = version("flower")
    if not f"{release}.".startswith(f"{TESTED_RELEASE}."):
        logger.warning(
            "this is Flower %s, tested is %s: should its broker tab or its task list fail, "
            "install flower==%s.*",
            *(release, TESTED_RELEASE, TESTED_RELEASE),
        )
    flower.views.BaseHandler.get_broker = _get_broker
    # The stream keeps what goes over Celery's own exchange; another's events are live only.
    if app.conf.event_exchange == EVENT_EXCHANGE:
        flower.app.Events = StoredEvents


def _get_broker(handler: Any) -> Any:
    if handler.application.transport == "nats":
        return NatsBroker(handler.application)
    return _flowers_get_broker(handler)
