"""Task messages that differ only in id and arguments, made from one that Celery made. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from kombu.serialization import dumps

from bridge.names import Names, escape
from bridge.transport import delay
from bridge.transport.headers import APPLICATION_PREFIX, PROPERTY_HEADERS, encode_value
from bridge.wire.connection import Outgoing

_SERIALIZER = "json"
_CONTENT_TYPE, _CORRELATION_ID = (
    PROPERTY_HEADERS[name] for name in ("content_type", "correlation_id")
)
_ID, _ARGSREPR, _KWARGSREPR = (
    APPLICATION_PREFIX + escape(name) for name in ("id", "argsrepr", "kwargsrepr")
)
_REPLACED = frozenset({_ID, _CORRELATION_ID, _ARGSREPR, _KWARGSREPR})
_SCHEDULE_TARGET = "Nats-Schedule-Target"


class TaskTemplate:
    """One encoded message of a task, in which id and arguments are replaced."""

    def __init__(self, names: Names, fields: Mapping[str, str], subject: str, embed: bytes) -> None:
        """`embed` is the rest of the body behind args and kwargs; see `of`."""
        self._names = names
        self._fields = fields
        self._subject = subject
        self._embed = embed

    @classmethod
    def of(
        cls, names: Names, outgoing: Outgoing, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Self | None:
        """Return the template of a message that calls a task with `args` and `kwargs`.

        None where it cannot be one: it is not of task protocol 2, or its body is not the JSON
        that kombu makes (another serializer, compressed).
        """
        subject, payload, fields = outgoing
        head = _arguments(args, kwargs)
        if (
            fields is None
            or not fields.keys() >= _REPLACED
            or fields.get(_CONTENT_TYPE) != dumps(None, _SERIALIZER)[0]
            or not payload.startswith(head)
        ):
            return None
        return cls(names, fields, subject, payload[len(head) :])

    def message(
        self,
        task_id: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        argsrepr: str,
        kwargsrepr: str,
    ) -> Outgoing:
        """Return the message of another call. Raises kombu's EncodeError.

        `task_id` must be a UUID: its text needs no encoding.
        """
        fields = {
            **self._fields,
            _ID: task_id,
            _CORRELATION_ID: task_id,
            _ARGSREPR: encode_value(argsrepr),
            _KWARGSREPR: encode_value(kwargsrepr),
        }
        payload = _arguments(args, kwargs) + self._embed
        target = fields.get(_SCHEDULE_TARGET)
        if target is None:
            return self._subject, payload, fields
        queue = self._names.queue_of(target)
        subject = self._names.schedule_subject(queue, task_id, delay.nonce())
        return subject, payload, fields


def _arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes:
    """Return the body of a task message up to its third part."""
    text: str = dumps((args, kwargs), _SERIALIZER)[2]
    return text[:-1].encode()
