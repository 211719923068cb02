"""What a reply says of who gave it, or that nobody did. Pure."""

from __future__ import annotations

from bridge.errors import NatsConnectionError, NatsTimeout
from bridge.wire.protocol import Message

NO_ANSWER = (
    "NATS did not answer in time, and may have done what it was asked: try again, and look at the "
    "load of the server if this lasts"
)


def answered(reply: Message | None) -> Message:
    """Return a reply that somebody gave.

    Raises NatsTimeout when none came, NatsConnectionError when nobody listens.
    """
    if reply is None:
        raise NatsTimeout(NO_ANSWER)
    if has_no_responders(reply):
        raise NatsConnectionError(
            "nobody answers at NATS: is JetStream switched on, and are the streams there?"
        )
    return reply


def has_no_responders(reply: Message) -> bool:
    """True for the server's word that nobody listens: what was sent has reached nobody."""
    # Only bare status replies have headers and no payload; skip decoding all others.
    return not reply.payload and reply.status == 503
