"""What makes a Celery worker one of ours, without a line in the user's app.

`celery` loads its plug-in commands before it builds an app (entry point `celery.commands`), and
that loads this module; a program that starts a worker by itself calls `install` (ADR 0005).
"""

from __future__ import annotations

import logging
import os
import time
from typing import Any

import click
from celery import signals
from celery.worker.consumer.gossip import Gossip
from celery.worker.consumer.mingle import Mingle

from bridge import logs
from bridge.worker import handover, lost, outage, resize, scheduled, unprefetched
from bridge.worker.announce import Announce
from bridge.worker.dead import ReportDead
from bridge.worker.tombstones import Tombstones

WORKER_ID_VARIABLE = "BRIDGE_WORKER_ID"
#: As long as a worker of the fleet itself has to show that it is alive
_CHILD_START_SECONDS = 30.0


@click.group()
def nats() -> None:
    """Celery on NATS: see `python -m bridge --help` for the service's own commands."""


@nats.command()
@click.pass_obj
def ping(context: Any) -> None:
    """Connect to the app's broker and say which one answers."""
    with context.app.connection_for_read() as connection:
        connection.ensure_connection(max_retries=1)
        version = connection.connection.wire.server_info["version"]
        click.echo(f"nats-server {version} at {connection.as_uri()}")


@nats.command()
@click.argument("queues", nargs=-1)
@click.pass_obj
def enqueue_scheduled(context: Any, queues: tuple[str, ...]) -> None:
    """Put what is due later into QUEUES (all of the app's) now, for `celery migrate`.

    A worker that takes such a task waits with it until it is due, as on other brokers.
    """
    with context.app.connection_for_write() as connection:
        broker = connection.default_channel.broker
        for queue in queues or context.app.amqp.queues:
            click.echo(f"{queue}: {scheduled.enqueue(broker, queue)}")


def install() -> None:
    """Hook into the Celery workers this process will start. Safe to call twice."""
    scheduled.install()
    signals.celeryd_init.connect(_on_worker_init, dispatch_uid="bridge.worker.init")
    signals.task_prerun.connect(_on_task_start, dispatch_uid="bridge.worker.prerun")
    signals.import_modules.connect(_on_import_modules, dispatch_uid="bridge.worker.flower")
    # Set by whoever collects our log lines.
    if os.environ.get(logs.FORMAT_VARIABLE):
        signals.setup_logging.connect(_on_logging, dispatch_uid="bridge.worker.logging")


def _on_worker_init(instance: Any, **_: Any) -> None:
    app = instance.app
    if app.connection_for_read().transport.driver_type != "nats":
        return
    # Celery names the brokers these two work on; they need fan-out and replies, which we have.
    Mingle.compatible_transports = Mingle.compatible_transports | {"nats"}
    Gossip.compatible_transports = Gossip.compatible_transports | {"nats"}
    if WORKER_ID_VARIABLE in os.environ:
        # REST tasks have a priority: what they start in turn must not wait behind all new ones.
        app.conf.task_inherit_parent_priority = True
        # Celery kills a pool process that is not up within 4 s, and starts the next, which is no
        # faster. Where many workers start at once, or the app is large, that goes on for ever.
        app.conf.worker_proc_alive_timeout = max(
            app.conf.worker_proc_alive_timeout, _CHILD_START_SECONDS
        )
    # A pool process that is spawned (worker_pool_start_method) has nothing of this one but the
    # app's settings, and imports these modules before it sets up logging and tasks.
    app.conf.include = (*app.conf.include, __name__)
    app.steps["consumer"].update(
        {Tombstones, Announce, ReportDead, outage.KeepRunning, handover.HandOver}
    )
    resize.install(app)
    unprefetched.install(app)
    lost.install()
    outage.install(instance)


def _on_import_modules(sender: Any, **_: Any) -> None:
    # Celery tells nobody which command it runs; Flower's sends this signal before it builds
    # anything, and so does a worker, which has no use for a web server in its memory.
    context = click.get_current_context(silent=True)
    if context is not None and context.info_name == "flower":
        from bridge import flower  # noqa: PLC0415

        flower.install(sender)


def _on_task_start(task: Any, **_: Any) -> None:
    # Celery keeps no start time; the backend stores this one with the result.
    task.request.started_epoch = time.time()


def _on_logging(loglevel: Any = None, **_: Any) -> None:
    bound: dict[str, Any] = {}
    if worker_id := os.environ.get(WORKER_ID_VARIABLE):
        bound["worker_id"] = worker_id
    logs.configure(level=logging.getLevelName(loglevel or logging.INFO), **bound)


install()
