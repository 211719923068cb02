"""Refusals: what a user may not do, and what helps against JetStream's, by its number. Pure."""

from __future__ import annotations

from typing import Final

STREAM_NOT_FOUND: Final = 10059
MAXIMUM_CONSUMERS: Final = 10026

_NEEDED: Final = '(what is needed: docs/operations.md, "An account of its own")'
_ADVICE: Final[dict[int, str]] = {
    10023: "its disk or its limits are full: remove what is not needed, or give it more room",
    MAXIMUM_CONSUMERS: f"raise the account's max_consumers {_NEEDED}",
    10027: f"raise the account's max_streams {_NEEDED}",
    10039: "switch JetStream on for this user's account, or log in to one that has it",
    10047: f"give the account or the server more room on disk {_NEEDED}",
    STREAM_NOT_FOUND: "it was removed; whoever connects anew makes it again",
    10065: (
        "another stream takes subjects that ours need (docs/wire-format.md): use an account of its "
        "own, or another virtual host"
    ),
    10074: "NATS_REPLICAS above 1 needs a cluster",
    10076: "start nats-server with -js; one whose disk fails switches JetStream off by itself",
    10113: f"create the streams beforehand, each with a max_bytes of your own {_NEEDED}",
}


def is_operation_refused(error_text: str) -> bool:
    """True for a `-ERR` after which the connection stays up: the user may not do this one thing."""
    return "permissions violation" in error_text.lower()


def with_advice(description: str, err_code: int) -> str:
    """Return the server's words and its error number, then what helps where that is known."""
    advice = _ADVICE.get(err_code)
    said = f"{description} ({err_code})"
    return f"{said}: {advice}" if advice else said
