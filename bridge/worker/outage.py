"""A worker without NATS: finds it again soon, stops when told to, ends where it is refused.

What ran meanwhile is acknowledged afterwards (`KeepRunning`).
"""

from __future__ import annotations

import gc
import logging
import os
import random
import threading
import time
from collections.abc import Callable
from typing import Any, Final, NoReturn

import celery.worker.consumer
import celery.worker.pidbox
import kombu.utils.functional
from amqp.exceptions import ChannelError
from celery import bootsteps
from celery._state import get_current_worker_task
from celery.exceptions import WorkerShutdown
from celery.worker import state
from kombu.common import ignore_errors

from bridge.errors import NatsAuthError
from bridge.transport import Transport
from bridge.wire import JetStreamError

logger = logging.getLogger("nats")

#: Seconds between two tries to connect grow by one, up to a time in this range; it differs from
#: worker to worker, so that a fleet does not come back in one instant.
_LONGEST_PAUSES: Final = (2.0, 3.0)
#: Celery's own pauses grow to 30 s: its hundred tries take three quarters of an hour, as these do.
_CELERY_MAX_RETRIES: Final = 100
_MAX_RETRIES: Final = 1000
_CELERY_CONSUMER: Final = "celery.worker.consumer:Consumer"


class Consumer(celery.worker.consumer.Consumer):
    """Celery's consumer, which connects again within three seconds of its server's return."""

    #: True once it has consumed: from then on a refusal need not last, and tasks may be running
    has_consumed = False

    def loop_args(self) -> Any:
        self.has_consumed = True
        return super().loop_args()

    def create_task_handler(self, *args: Any, **options: Any) -> Callable[[Any], None]:
        """Celery's, which gives back what comes after the worker was told to stop.

        Where handing a task over takes as long as another one (solo, gevent), a whole prefetch may
        lie behind it, and Celery's loop sees the signal only after that.
        """
        receive = super().create_task_handler(*args, **options)

        def on_task_received(message: Any) -> None:
            if state.should_stop is None or state.should_stop is False:
                receive(message)
            else:
                message.requeue()

        return on_task_received

    def on_connection_error_before_connected(self, exc: Exception) -> None:
        self._end_or_wait_if_refused(exc)
        super().on_connection_error_before_connected(exc)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        self._end_or_wait_if_refused(exc)
        super().on_connection_error_after_connected(exc)

    def _end_or_wait_if_refused(self, error: Exception) -> None:
        """Raise WorkerShutdown where what is refused was never granted.

        Celery comes back at once after any other, and would be refused hundreds of times a minute.
        """
        if not isinstance(error, NatsAuthError | JetStreamError | ChannelError):
            return
        if not self.has_consumed:
            _end(error)
        time.sleep(random.uniform(*_LONGEST_PAUSES))  # noqa: S311 - spreads load

    def ensure_connected(self, conn: Any) -> Any:
        """Connect and return `conn`.

        Raises WorkerShutdown when the login is refused and never was good: nothing but a
        correction will help. One that was good before may be again (a change under way), and
        tasks may be running, so it is tried on.
        """
        ensure = conn.ensure_connection

        def ensure_soon(
            on_error: Callable[[Exception, float], None], max_retries: int, **options: Any
        ) -> Any:
            def on_error_here(error: Exception, pause: float) -> None:
                # Without a pause another server of the list comes next.
                if pause and self.first_connection_attempt and isinstance(error, NatsAuthError):
                    _end(error)
                on_error(error, pause)

            return ensure(
                on_error_here,
                max_retries,
                interval_start=1,
                interval_step=1,
                interval_max=random.uniform(*_LONGEST_PAUSES),  # noqa: S311 - spreads load
                **options,
            )

        conn.ensure_connection = ensure_soon
        try:
            return super().ensure_connected(conn)
        finally:
            del conn.ensure_connection

    def on_close(self) -> None:
        """Drop what has not begun, also what waits for its time.

        Celery cancels the timers of those tasks, and a cancelled timer keeps its task until then.
        """
        timers = [request._eta_timer_entry for request in tuple(state.scheduled_requests)]
        super().on_close()
        for timer in timers:
            if timer is not None:
                # A gevent pool's is a greenlet that has the entry.
                getattr(timer, "entry", timer).args = ()


def _end(error: Exception) -> NoReturn:
    logger.critical("%s. This worker ends.", error)
    raise WorkerShutdown(os.EX_CONFIG) from error


class Mailbox(celery.worker.pidbox.gPidbox):
    """Celery's listener for remote control on gevent, which connects again when it has to.

    It has a connection of its own, and Celery's ends for good with that one.
    """

    def loop(self, c: Any) -> None:
        while True:
            try:
                super().loop(c)
            except (*c.connection_errors, *c.channel_errors) as error:
                # None once the consumer has stopped us; it starts another when it has connected.
                stopped = self._node_shutdown
                if stopped is None or stopped.is_set():
                    return
                logger.warning("remote control has lost its connection: %s", error)
                if stopped.wait(random.uniform(0, _LONGEST_PAUSES[0])):  # noqa: S311 - spreads load
                    return
            else:
                return


class KeepRunning(bootsteps.StartStopStep):
    """Has tasks that run across a reconnect, or to the end of a warm shutdown, run once.

    What has not begun by then is for other workers, at once.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, consumer: Any) -> None:
        consumer.connection.connection.survived_by_messages = True
        if consumer.restart_count > 1:
            # One in a cycle of references would be taken for one that somebody may yet settle.
            gc.collect()

    def stop(self, consumer: Any) -> None:
        # Celery has dropped what has not begun. After a lost connection the next one gives it back.
        if consumer.blueprint.state == bootsteps.CLOSE and consumer.connection is not None:
            ignore_errors(consumer, self._retire, consumer)

    def _retire(self, consumer: Any) -> None:
        consumer.task_consumer.cancel()
        executor = getattr(consumer.pool, "executor", None)
        if executor is not None:
            # As the pool of threads does itself, but not before it has waited for what runs.
            executor.shutdown(wait=False, cancel_futures=True)
        gc.collect()
        consumer.connection.connection.retire()


def install(worker: Any) -> None:
    """Prepare the worker that is about to start in this process."""
    conf = worker.app.conf
    if conf.worker_consumer == _CELERY_CONSUMER:
        conf.worker_consumer = f"{Consumer.__module__}:{Consumer.__qualname__}"
    if conf.broker_connection_max_retries == _CELERY_MAX_RETRIES:
        conf.broker_connection_max_retries = _MAX_RETRIES
    # What JetStream refuses (a full disk, a stream removed) is no reason to take the tasks that run
    # down with the worker, as Celery does with errors of a channel unless told.
    conf.broker_channel_error_retry = True
    celery.worker.pidbox.gPidbox = Mailbox
    # gevent has Celery import kombu before it patches `time`. kombu's pauses between two tries
    # would stop all greenlets, which so keep each other from ever connecting in time.
    kombu.utils.functional.sleep = time.sleep
    pid = os.getpid()

    def end_if_told() -> None:
        """Raise WorkerShutdown where a signal asked for it and only kombu's retry is in the way.

        kombu sends heartbeats and the answers to control commands again and again, without end
        and on the worker's event loop, which then sees no signal.
        """
        on_event_loop = (
            os.getpid() == pid
            and threading.current_thread() is threading.main_thread()
            and get_current_worker_task() is None
        )
        if on_event_loop and worker.blueprint.state == bootsteps.RUN:
            state.maybe_shutdown()

    Transport.on_connect_failure = end_if_told
