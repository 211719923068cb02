"""Stored queues that the server has dropped: nobody used them for as long as they last."""

from __future__ import annotations

import logging
import time

from bridge.names import Names
from bridge.transport.exchange import BindingTable
from bridge.transport.stored import StoredQueues
from bridge.wire import JetStream

logger = logging.getLogger("nats")

#: A queue is asked for anew after this long, or after its own time where that is shorter.
_LOOK_SECONDS = 60.0


class Expiry:
    """Finds out that a queue is no longer there, and removes what it leaves."""

    def __init__(
        self, js: JetStream, names: Names, bindings: BindingTable, queues: StoredQueues
    ) -> None:
        self._js = js
        self._names = names
        self._bindings = bindings
        self._queues = queues
        #: when to ask for a queue again
        self._due: dict[str, float] = {}

    def is_over(self, queue: str) -> bool:
        """True where the server has dropped a queue: its bindings and messages are gone then, too.

        The server is asked once in a while; what came for the queue meanwhile goes with the rest.
        """
        if time.monotonic() < self._due.get(queue, 0.0) or self._is_there(queue):
            return False
        # Whoever declares it anew from here on has later messages and later revisions.
        stream = self._names.task_stream
        ends = self._js.ends([stream])
        revisions = self._bindings.revisions(queue)
        if self._is_there(queue) or not self._bindings.remove_revisions(revisions):
            return False
        subjects = self._names.queue_schedules(queue), self._names.queue_subjects(queue)
        purged = self._js.purge(*((stream, subject) for subject in subjects), ends=ends)
        logger.info("queue %s has expired, with its bindings and %d messages", queue, purged)
        return True

    def _is_there(self, queue: str) -> bool:
        if not self._queues.is_there(queue):
            self._due.pop(queue, None)
            return False
        expires = self._queues.arguments[queue].expires or _LOOK_SECONDS
        self._due[queue] = time.monotonic() + min(expires, _LOOK_SECONDS)
        return True
