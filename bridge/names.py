"""Names on the wire: the only place where subjects, streams, consumers and keys are built.

Pure. Celery's names (queues, exchanges, task ids, hostnames) may hold any character;
NATS tokens may not, so every one of them passes through `escape`.
"""

from __future__ import annotations

import re
from typing import Final

from bridge.errors import ConfigError

#: Highest priority; higher is sooner (ADR 0003).
MAX_PRIORITY: Final = 9
#: What a message has whose sender named no priority, as in AMQP (ADR 0003).
DEFAULT_PRIORITY: Final = 0
PRIORITIES: Final = tuple(range(MAX_PRIORITY, -1, -1))
DEFAULT_VHOST: Final = "default"
#: Celery's exchange for events (celery.events.event).
EVENT_EXCHANGE: Final = "celeryev"

#: The first tokens of the default virtual host's subjects, and what other streams are called.
_RESERVED_VHOST = re.compile(r"(?:c[bcdqsx]|kv)$|EVENTS|DEAD|COUNTERS")
_NOT_ALPHANUMERIC = re.compile(r"[^A-Za-z0-9]")
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]")
_ESCAPED = re.compile(r"((?:=[0-9A-F]{2})+)")


def escape(name: str) -> str:
    """Return `name` as one NATS token, legal in subjects, consumer names and KV keys.

    Every UTF-8 byte outside ``[A-Za-z0-9_-]`` becomes ``=XX``; the empty name is ``=``.
    """
    if not name:
        return "="
    return _UNSAFE.sub(lambda m: "".join(f"={byte:02X}" for byte in m[0].encode()), name)


def unescape(token: str) -> str:
    """Return the name that `escape` turned into `token`."""
    if token == "=":
        return ""
    return _ESCAPED.sub(lambda m: bytes.fromhex(m[1].replace("=", "")).decode(), token)


def _tokens(routing_key: str) -> str:
    return ".".join(escape(word) for word in routing_key.split("."))


def _binding_token(word: str) -> str:
    return word if word == "*" else escape(word)


class Names:
    """The names of one virtual host. Those of the default one carry no prefix."""

    def __init__(self, vhost: str = DEFAULT_VHOST) -> None:
        """Raise ConfigError for a name whose streams or subjects would be another's."""
        self.vhost = vhost = vhost.strip("/") or DEFAULT_VHOST
        if _RESERVED_VHOST.match(vhost):
            raise ConfigError(f"a virtual host cannot be called {vhost!r}: choose another name")
        is_default = vhost == DEFAULT_VHOST
        # Buckets may not hold "=", so every byte but letters and digits is _XX there.
        suffix = _NOT_ALPHANUMERIC.sub(
            lambda m: "".join(f"_{byte:02X}" for byte in m[0].encode()), vhost
        )
        self._prefix = "" if is_default else f"{escape(vhost)}."
        self._bucket_suffix = "" if is_default else f"_{suffix}"
        self._stream_suffix = suffix

    # -- task stream -------------------------------------------------------------------

    @property
    def task_stream(self) -> str:
        return f"CELERY_{self._stream_suffix}"

    @property
    def task_stream_subjects(self) -> list[str]:
        return [f"{self._prefix}cq.>", f"{self._prefix}cs.>"]

    def task_subject(self, queue: str, priority: int = DEFAULT_PRIORITY) -> str:
        """Subject of a queue's messages of one priority; stable wire format."""
        return f"{self._prefix}cq.{escape(queue)}.{priority}"

    def queue_subjects(self, queue: str) -> str:
        """Filter over all priorities of a queue."""
        return f"{self._prefix}cq.{escape(queue)}.*"

    def queue_of(self, task_subject: str) -> str:
        return unescape(task_subject.split(".")[-2])

    def schedule_subject(self, queue: str, task_id: str, nonce: str) -> str:
        """Subject that holds one message until it is due (ADR-51 of NATS)."""
        return f"{self._prefix}cs.{escape(queue)}.{escape(task_id)}.{nonce}"

    def queue_schedules(self, queue: str) -> str:
        return f"{self._prefix}cs.{escape(queue)}.>"

    def task_schedules(self, task_id: str) -> str:
        """Filter over everything scheduled under one task id, in any queue."""
        return f"{self._prefix}cs.*.{escape(task_id)}.*"

    def consumer(self, queue: str, priority: int) -> str:
        """Durable consumer of one queue and priority."""
        return f"{escape(queue)}-{priority}"

    # -- dead letters ------------------------------------------------------------------

    @property
    def dead_stream(self) -> str:
        return f"CELERY_DEAD_{self._stream_suffix}"

    @property
    def dead_subjects(self) -> str:
        return f"{self._prefix}cd.>"

    def dead_subject(self, queue: str) -> str:
        """Subject of what was taken out of a queue because it cannot be done."""
        return f"{self._prefix}cd.{escape(queue)}"

    # -- transient traffic on core NATS ------------------------------------------------

    def exchange_subject(self, exchange: str, routing_key: str) -> str:
        return f"{self._prefix}cx.{escape(exchange)}.{_tokens(routing_key)}"

    def exchange_subjects(self, exchange: str) -> str:
        return f"{self._prefix}cx.{escape(exchange)}.>"

    def binding_subjects(self, exchange: str, exchange_type: str, binding_key: str) -> list[str]:
        """Core subjects a transient queue listens on for one binding.

        A ``#`` in the middle of a topic key widens the subject; the caller then matches
        each routing key itself.
        """
        root = f"{self._prefix}cx.{escape(exchange)}"
        if exchange_type == "fanout":
            return [f"{root}.>"]
        if exchange_type != "topic":
            return [f"{root}.{_tokens(binding_key)}"]
        words = binding_key.split(".")
        if "#" not in words:
            return [".".join([root, *map(_binding_token, words)])]
        head = [root, *map(_binding_token, words[: words.index("#")])]
        rest = [f"{'.'.join(head)}.>"]
        return rest if len(head) == 1 else [".".join(head), *rest]

    def routing_key_of(self, subject: str) -> str:
        """Routing key of a message that came on an exchange's subject."""
        tokens = subject[len(self._prefix) :].split(".")[2:]
        return ".".join(map(unescape, tokens))

    def service_subject(self, verb: str) -> str:
        """Subject of a command to the controllers, for instance ``scale``."""
        return f"{self._prefix}cb.{verb}"

    # -- streams and buckets -----------------------------------------------------------

    @property
    def event_stream(self) -> str:
        return f"CELERY_EVENTS_{self._stream_suffix}"

    @property
    def counter_stream(self) -> str:
        return f"CELERY_COUNTERS_{self._stream_suffix}"

    def chord_counter(self, group_id: str) -> str:
        """Subject that counts the parts of a chord; ``*`` for all of them."""
        return f"{self._prefix}cc.{group_id if group_id == '*' else escape(group_id)}"

    def bucket(self, name: str) -> str:
        """KV bucket, for instance ``celery_results``."""
        return f"celery_{name}{self._bucket_suffix}"


def bucket_stream(bucket: str) -> str:
    """Stream behind a KV bucket (ADR-8 of NATS)."""
    return f"KV_{bucket}"


def bucket_change_subject(bucket: str, key: str) -> str:
    """Subject on which the server tells that a value of a bucket was stored.

    A publish reaches plain subscribers before it is stored, so who subscribes to the key itself
    and then reads may miss a value between the two (ADR 0002).
    """
    return f"kv.{bucket}.{key}"


def bucket_subject(bucket: str, key: str) -> str:
    """Subject of a KV key; `key` must already be escaped where it holds foreign text."""
    return f"$KV.{bucket}.{key}"
