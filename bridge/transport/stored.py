"""Queues that outlive their connections: one durable JetStream consumer for each priority."""

from __future__ import annotations

from typing import Any

from bridge.names import PRIORITIES, Names
from bridge.transport.arguments import QueueArguments
from bridge.wire import JetStream, JetStreamError

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
            answers = self._js.api_many(
                self._consumer_call(queue, p, known, consume) for p in PRIORITIES
            )
        except JetStreamError as error:
            if error.err_code != _CONSUMER_EXISTS:
                raise
            answers = self.infos(queue)
        self._note(queue, answers)
        return sum(answer["num_pending"] for answer in answers)

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

    def _consumer_call(
        self, queue: str, priority: int, arguments: QueueArguments, consume: bool
    ) -> tuple[str, dict[str, Any]]:
        names = self._names
        name, subject = names.consumer(queue, priority), names.task_subject(queue, priority)
        config = {
            "durable_name": name,
            "filter_subject": subject,
            "ack_policy": "explicit",
            "ack_wait": int(self._ack_wait * 1e9),
            # Prefetch is ours to keep, per worker; the server's limit is over all of them.
            "max_ack_pending": -1,
            "max_waiting": _MAX_WAITING_PULLS,
            # A limit here would strand the message in the stream, not end it.
            "max_deliver": -1,
            **arguments.consumer_config(),
        }
        endpoint = f"CONSUMER.CREATE.{names.task_stream}.{name}.{subject}"
        body = {"stream_name": names.task_stream, "config": config}
        return endpoint, body if consume else {**body, "action": "create"}

    def _calls(self, verb: str, queue: str) -> list[tuple[str, None]]:
        return [(endpoint, None) for endpoint in self.endpoints(verb, queue)]

    def endpoints(self, verb: str, queue: str) -> list[str]:
        """Return the API endpoints INFO, MSG.NEXT or DELETE of all consumers of a queue."""
        stream, names = self._names.task_stream, self._names
        return [f"CONSUMER.{verb}.{stream}.{names.consumer(queue, p)}" for p in PRIORITIES]
