"""Queues that outlive their connections: one durable JetStream consumer for each priority."""

from __future__ import annotations

import logging
from typing import Any

from bridge.names import PRIORITIES, Names
from bridge.transport.arguments import QueueArguments
from bridge.wire import JetStream, JetStreamError

logger = logging.getLogger("nats")

#: JetStream's error for a consumer that is there with another configuration
_CONSUMER_EXISTS = 10148
#: ... and for one that is not there
CONSUMER_NOT_FOUND = 10014
#: JetStream's own limit for waiting pulls is 512, and it cannot be raised later.
_MAX_WAITING_PULLS = 16_384


class StoredQueues:
    """The stored queues of a virtual host, as one connection declares and describes them.

    `ack_wait` is how many seconds a delivery may go without a sign of life.
    """

    def __init__(self, js: JetStream, names: Names, ack_wait: float) -> None:
        self._js = js
        self._names = names
        self._ack_wait = ack_wait
        #: of those that are known to exist
        self.arguments: dict[str, QueueArguments] = {}

    def declare(
        self, queue: str, arguments: QueueArguments | None = None, *, consume: bool = False
    ) -> int:
        """Create the consumers of a queue in JetStream; return how many messages wait in it.

        Existing ones are brought to our `ack_wait` only by who will `consume`: a publisher with
        another setting must not take deliveries from workers that keep them at their own pace.
        `arguments` are those of the first to declare; None are the ones it already has.
        """
        known = self.arguments.get(queue) or arguments
        if known is None:
            known = self._existing_arguments(queue)
        try:
            answers = self._create(queue, known, self._ack_wait)
        except JetStreamError as error:
            if error.err_code != _CONSUMER_EXISTS:
                raise
            answers = self.infos(queue)
            known = self.arguments[queue]
            if consume:
                ack_wait = self._allowed_ack_wait(queue, answers)
                answers = self._create(queue, known, ack_wait, update=True)
        self._note(queue, answers)
        return sum(answer["num_pending"] for answer in answers)

    def _allowed_ack_wait(self, queue: str, infos: list[dict[str, Any]]) -> float:
        """Return our `ack_wait`, or that of others who consume and show signs of life by a longer.

        What they hold would be given to us between two of those.
        """
        kept: float = max(info["config"]["ack_wait"] for info in infos) / 1e9
        in_use = any(info["num_ack_pending"] or info["num_waiting"] for info in infos)
        if kept <= self._ack_wait or not in_use:
            return self._ack_wait
        logger.warning(
            "queue %s keeps ack_wait at %g s: others may consume by it. It is lowered to %g s by "
            "who begins to consume while nobody else does and nothing is unacknowledged",
            *(queue, kept, self._ack_wait),
        )
        return kept

    def _existing_arguments(self, queue: str) -> QueueArguments:
        return self.arguments[queue] if self.is_there(queue) else QueueArguments()

    def is_there(self, queue: str) -> bool:
        """Ask the server for a queue. Raises JetStreamError where it cannot tell."""
        try:
            self.infos(queue)
        except JetStreamError as error:
            if error.err_code != CONSUMER_NOT_FOUND:
                raise
            return False
        return True

    def infos(self, queue: str) -> list[dict[str, Any]]:
        """Return what the server knows of a queue's consumers. Raises JetStreamError for none.

        A consumer of one with `expires` may be missing: who is busy asks only for the messages it
        holds to be kept, and the server drops the others.
        """
        answers = self._js.try_many(self._calls("INFO", queue))
        infos = [answer for answer in answers if not isinstance(answer, JetStreamError)]
        refused = [answer for answer in answers if isinstance(answer, JetStreamError)]
        for error in refused:
            if not infos or error.err_code != CONSUMER_NOT_FOUND:
                raise error
        self._note(queue, infos)
        return infos

    def _note(self, queue: str, answers: list[dict[str, Any]]) -> None:
        self.arguments[queue] = QueueArguments.from_consumer(answers[0]["config"])

    def delete(self, queue: str) -> None:
        """Remove the consumers of a queue, as many as are there. Its messages stay."""
        self.arguments.pop(queue, None)
        for call in self._calls("DELETE", queue):
            try:
                self._js.api_many([call])
            except JetStreamError as error:
                if error.err_code != CONSUMER_NOT_FOUND:
                    raise

    def _create(
        self, queue: str, arguments: QueueArguments, ack_wait: float, *, update: bool = False
    ) -> list[dict[str, Any]]:
        """Create the consumers of a queue; with `update`, change those that are there."""
        names, stream = self._names, self._names.task_stream
        config = {
            "ack_policy": "explicit",
            "ack_wait": int(ack_wait * 1e9),
            # Prefetch is ours to keep, per worker; the server's limit is over all of them.
            "max_ack_pending": -1,
            "max_waiting": _MAX_WAITING_PULLS,
            # A limit here would strand the message in the stream, not end it.
            "max_deliver": -1,
            **arguments.consumer_config(),
        }
        action = {} if update else {"action": "create"}
        calls = []
        for priority in PRIORITIES:
            name, subject = names.consumer(queue, priority), names.task_subject(queue, priority)
            own = {"durable_name": name, "filter_subject": subject, **config}
            body = {"stream_name": stream, "config": own, **action}
            calls.append((f"CONSUMER.CREATE.{stream}.{name}.{subject}", body))
        return self._js.api_many(calls)

    def _calls(self, verb: str, queue: str) -> list[tuple[str, None]]:
        return [(endpoint, None) for endpoint in self.endpoints(verb, queue)]

    def endpoints(self, verb: str, queue: str) -> list[str]:
        """Return the API endpoints INFO, MSG.NEXT or DELETE of all consumers of a queue."""
        stream, names = self._names.task_stream, self._names
        return [f"CONSUMER.{verb}.{stream}.{names.consumer(queue, p)}" for p in PRIORITIES]
