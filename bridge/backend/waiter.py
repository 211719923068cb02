"""Wakes whoever waits in `AsyncResult.get()`: a subscription to the result, never a poll."""

from __future__ import annotations

import contextlib
import heapq
import logging
import math
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import celery.exceptions
from celery import states
from celery.backends.asynchronous import BaseResultConsumer, _waiting_on

from bridge.errors import NatsAuthError, NatsConnectionError, NatsPermissionError
from bridge.names import bucket_change_subject, bucket_stream, bucket_subject
from bridge.wire import SILENCE_SECONDS, Connection, Message
from bridge.wire.jetstream import is_gone
from bridge.wire.turns import Turns

logger = logging.getLogger("nats")

#: Pause between attempts to reach a server that is away.
_RECONNECT_SECONDS = 0.5
#: The server is asked so often whether it is there.
_CHECK_SECONDS = SILENCE_SECONDS / 2
#: In a cluster a result is asked for again so long after it was asked for first, and then after
#: twice as long each time up to the second figure: the copy that answered may have been behind,
#: and the word of a change is lost when the node dies that stored it.
_ASK_AGAIN_SECONDS = (1.0, 16.0)


class ResultConsumer(BaseResultConsumer):
    """Subscribes to the stored changes of a result, then asks once for it.

    Both go out in one write on one connection, so no result falls between them, and both are
    answered to the same callback. In a cluster it asks again, ever more rarely. Any thread may
    add a task; one thread at a time reads.
    """

    _connection_errors = (NatsConnectionError,)
    on_message: Callable[[Mapping[str, Any]], None] | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._connection: Connection | None = None
        #: task id -> subscription
        self._sids: dict[str, int] = {}
        self._cancelled: deque[str] = deque()
        self._begin()
        _consumers.add(self)

    def _begin(self) -> None:
        #: when to see whether the server is still there
        self._check_at = 0.0
        #: subject on which the server answers what was asked for
        self._answers = ""
        self._guard = threading.Lock()
        self._turns = Turns()
        #: what the connection is still to be asked for
        self._unasked: deque[str] = deque()
        #: questions, answers to them, and questions before the last PING
        self._asked = self._answered = self._asked_before = 0
        #: when to ask again, after how long, and for which task; a heap
        self._doubts: list[tuple[float, float, str]] = []
        self._inbox: deque[Message | NatsAuthError] = deque()
        self._passing = threading.RLock()
        #: how many states were passed on, and up to which a thread knows
        self._passed = 0
        self._known = threading.local()
        #: the last one; who waits since before it raises it
        self._refusal: NatsAuthError | None = None
        self._is_away = False

    def _leave_parent(self) -> None:
        """In a forked child, begin anew: locks and turns may be held by a thread of our parent.

        What is waited for stays; the next read asks for it.
        """
        inherited, self._connection = self._connection, None
        if inherited is not None:
            with contextlib.suppress(OSError):
                inherited.close()
        self._sids = dict.fromkeys(self._sids, 0)
        self._begin()

    def start(self, initial_task_id: str, **_: Any) -> None:
        self.consume_from(initial_task_id)

    def stop(self) -> None:
        with self._guard:
            connection, self._connection = self._connection, None
            self._sids.clear()
        if connection is not None:
            connection.close()

    def consume_from(self, task_id: str) -> None:
        """Have `on_state_change` called with every state of a task from now on."""
        with self._guard:
            try:
                connection = self._open()
                with connection.together():
                    # First, since this very task may be among them: it is then asked for anew.
                    self._end_cancelled(connection)
                    self._watch(connection, task_id)
            except NatsConnectionError as error:
                # drain_events connects again, watches everything in `_sids` and tells of a refusal.
                self._sids.setdefault(task_id, 0)
                self._close_broken(error)

    def is_watching(self, task_id: str) -> bool:
        """True while the server tells of every state of a task."""
        return bool(self._sids.get(task_id))

    def cancel_for(self, task_id: str) -> None:
        """Stop watching. Called by the garbage collector at any point, so it only takes a note."""
        # And that for every task that is sent: who waits for none would keep all their ids.
        if task_id in self._sids:
            self._cancelled.append(task_id)

    # The next two are Celery's but for its `sleep(0)` after everything that came. It gives way to
    # nobody who is not served by `drain_events` as well, and was a quarter of what `get()` takes.

    def _wait_for_pending(
        self,
        result: Any,
        timeout: float | None = None,
        on_interval: Callable[[], None] | None = None,
        on_message: Callable[[Mapping[str, Any]], None] | None = None,
        **_: Any,
    ) -> Iterator[None]:
        before, self.on_message = self.on_message, on_message
        known = self._refusal
        try:
            for _round in self.drain_events_until(result.on_ready, timeout, on_interval):
                refusal = self._refusal
                if refusal is not None and refusal is not known and not result.on_ready.ready:
                    # Not by `drain_events`: Celery takes it for an outage that will pass.
                    raise type(refusal)(str(refusal)) from refusal
                yield
        except TimeoutError as error:
            raise celery.exceptions.TimeoutError("The operation timed out.") from error
        finally:
            self.on_message = before

    def on_state_change(self, meta: Mapping[str, Any], message: Message) -> None:  # noqa: ARG002
        """Tell those who wait.

        A final state for nobody, of a task that ran twice, say, is not kept as Celery would keep
        thousands of them: whoever waits from now on asks for it.
        """
        if self.on_message:
            self.on_message(meta)
        if meta["status"] not in states.READY_STATES:
            return
        # First: whoever begins to wait while the others are told asks anew.
        self.cancel_for(meta["task_id"])
        for result in _waiting_on(self._pending_results, meta["task_id"]):
            result._maybe_set_cache(meta)
            bucket = self.buckets.pop(result, None)
            if bucket is not None:
                bucket.append(result)

    def drain_events(self, timeout: float | None = None) -> None:
        """Pass on what came; wait up to `timeout` seconds for it. Raises TimeoutError.

        Returns as well when another thread has passed something on: it may be this one's result.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._pass_on():
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError("no result yet")
            self._turns.read(self._read, left, self._has_news)

    def _pass_on(self) -> bool:
        with self._passing:
            while self._inbox:
                # Counted first: whoever finds the inbox empty must find the count changed.
                self._passed += 1
                message = self._inbox.popleft()
                if isinstance(message, NatsAuthError):
                    self._refusal = message
                    continue
                self.on_state_change(self.backend.decode_result(message.payload), message)
            news = self._has_news()
            self._known.count = self._passed
        return news

    def _has_news(self) -> bool:
        return bool(self._inbox) or getattr(self._known, "count", 0) != self._passed

    def _read(self, timeout: float | None) -> bool:
        """Read once; False when nothing came in time, or the server is away."""
        connection: Connection | None = None
        try:
            with self._guard:
                connection = self._open()
                if self._cancelled:
                    with connection.together():
                        self._end_cancelled(connection)
                until_due = self._check_peer(connection)
                if self._unasked:
                    self._ask_more(connection)
                if self._doubts:
                    until_due = min(until_due, self._ask_again(connection))
            with connection.refusals() as refusals:
                connection.drain(until_due if timeout is None else min(timeout, until_due))
                refusals.check()
        except NatsConnectionError as error:
            with self._guard:
                if self._connection is connection:  # else another thread has closed it
                    self._close_broken(error)
            # A login may have run out under an open connection: whether the next has a better one
            # shows when it connects.
            was_open = connection is not None
            may_be_renewed = was_open and not isinstance(error, NatsPermissionError)
            if isinstance(error, NatsAuthError) and not may_be_renewed:
                self._inbox.append(error)
            # Nobody signals that a server is back; the caller's own time limit still holds.
            pause = _RECONNECT_SECONDS if timeout is None else min(timeout, _RECONNECT_SECONDS)
            threading.Event().wait(pause)
            return False
        except TimeoutError:
            return False
        return True

    # -- under the guard ---------------------------------------------------------------

    def _open(self) -> Connection:
        if self._connection is None:
            connection = Connection(self.backend.connect_options)
            connection.connect()
            if self._is_away:
                self._is_away = False
                logger.info("results come from NATS again")
            self._answers = connection.new_inbox()
            self._unasked.extend(self._sids)
            self._answered = self._asked
            self._check_at = time.monotonic() + _CHECK_SECONDS
            with connection.together():
                connection.subscribe(self._answers, self._on_answer)
                for task_id in self._sids:
                    self._subscribe(connection, task_id)
            self._connection = connection
        return self._connection

    def _watch(self, connection: Connection, task_id: str) -> None:
        if self.is_watching(task_id):
            return
        self._subscribe(connection, task_id)
        if self._unasked or not self._may_ask(connection):
            self._unasked.append(task_id)
        else:
            self._ask(connection, task_id, _ASK_AGAIN_SECONDS[0])

    def _subscribe(self, connection: Connection, task_id: str) -> None:
        bucket, key = self.backend.bucket_name, self.backend.result_key(task_id)
        subject = bucket_change_subject(bucket, key)
        self._sids[task_id] = connection.subscribe(subject, self._on_message)

    def _ask_more(self, connection: Connection) -> None:
        """Ask for what is there already, in portions that a connection can hold.

        Such results may be many and large; the others come as they are made.
        """
        with connection.together():
            while self._unasked and self._may_ask(connection):
                task_id = self._unasked.popleft()
                if self.is_watching(task_id):
                    self._ask(connection, task_id, _ASK_AGAIN_SECONDS[0])

    def _may_ask(self, connection: Connection) -> bool:
        return self._asked - self._answered < connection.most_at_once

    def _ask(self, connection: Connection, task_id: str, again_seconds: float) -> None:
        bucket, key = self.backend.bucket_name, self.backend.result_key(task_id)
        stream, subject = bucket_stream(bucket), bucket_subject(bucket, key)
        connection.publish(f"$JS.API.DIRECT.GET.{stream}.{subject}", reply=self._answers)
        self._asked += 1
        if connection.is_clustered:
            ask_at = time.monotonic() + again_seconds
            heapq.heappush(self._doubts, (ask_at, again_seconds, task_id))

    def _check_peer(self, connection: Connection) -> float:
        """Ping now and then; return the seconds until the next time."""
        now = time.monotonic()
        if now >= self._check_at:
            if connection.check_peer(SILENCE_SECONDS):
                # What was asked before the last PING was answered, or lost with a copy.
                self._answered = max(self._answered, self._asked_before)
            self._asked_before = self._asked
            self._check_at = now + _CHECK_SECONDS
        return self._check_at - now

    def _ask_again(self, connection: Connection) -> float:
        """Ask for what it is time for; return the seconds until the next time."""
        now = time.monotonic()
        with connection.together():
            while self._doubts and self._doubts[0][0] <= now:
                _, seconds, task_id = heapq.heappop(self._doubts)
                if self.is_watching(task_id):
                    self._ask(connection, task_id, min(2 * seconds, _ASK_AGAIN_SECONDS[1]))
        return self._doubts[0][0] - now if self._doubts else math.inf

    def _on_answer(self, message: Message) -> None:
        self._answered = min(self._answered + 1, self._asked)  # may come after all
        self._on_message(message)

    def _on_message(self, message: Message) -> None:
        if not is_gone(message):
            self._inbox.append(message)

    def _end_cancelled(self, connection: Connection) -> None:
        """Unsubscribe from what was cancelled."""
        while self._cancelled:
            task_id = self._cancelled.popleft()
            sid = self._sids.pop(task_id, 0)
            if sid:  # else there is none yet, or it ended with its connection
                connection.unsubscribe(sid)
            waiting = _waiting_on(self._pending_results, task_id)
            if any(result._cache is None for result in waiting):
                # Somebody began to wait just when the last other one was seen to have gone.
                self._sids[task_id] = 0
                self._watch(connection, task_id)

    def _close_broken(self, error: NatsConnectionError) -> None:
        # A refused permission was logged by the connection.
        if not self._is_away and not isinstance(error, NatsPermissionError):
            self._is_away = True
            logger.warning("no results from NATS until it is back: %s", error)
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._sids = dict.fromkeys(self._sids, 0)
        self._doubts.clear()
        self._unasked.clear()


#: all there are in this process
_consumers: weakref.WeakSet[ResultConsumer] = weakref.WeakSet()


def _leave_parent() -> None:
    for consumer in list(_consumers):
        consumer._leave_parent()


# Before the child has a second thread, which might take a lock that is about to be replaced.
os.register_at_fork(after_in_child=_leave_parent)
