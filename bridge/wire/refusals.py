"""Refusals: what a user may not do and who is told; what helps against JetStream's. Pure."""

from __future__ import annotations

import re
from typing import Final, Self

from bridge.errors import NatsPermissionError

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

_SUBJECT: Final = re.compile(r'"([^"]*)"')


class Waiter:
    """Who waits for answers about some subjects, and why in vain once the server refused one.

    Is told as long as its context lasts.
    """

    __slots__ = ("_waiters", "refusal", "subjects")

    def __init__(self, waiters: list[Waiter], subjects: tuple[str, ...]) -> None:
        self._waiters = waiters
        self.subjects = subjects
        #: the server's words
        self.refusal = ""

    def __enter__(self) -> Self:
        self._waiters.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._waiters.remove(self)

    def check(self) -> None:
        """Raise NatsPermissionError once the server has refused."""
        if self.refusal:
            raise NatsPermissionError(
                f"NATS refused the operation ({self.refusal}): give its user this permission"
            )


class Refusals:
    """Gives each refusal on a connection to whom it concerns. Any thread.

    The server names the subject and no request: whoever waits for an answer on that subject is
    told. Of what nobody waits for, like a subscription, everyone who waits is told.
    """

    def __init__(self) -> None:
        self._waiters: list[Waiter] = []

    def waiting(self, *subjects: str) -> Waiter:
        """Return who is told meanwhile; without subjects, only of what nobody else waits for."""
        return Waiter(self._waiters, subjects)

    def tell(self, error_text: str) -> None:
        named = _SUBJECT.search(error_text)
        subject = named[1] if named else ""
        waiters = list(self._waiters)
        concerned = [waiter for waiter in waiters if subject in waiter.subjects]
        for waiter in concerned or waiters:
            waiter.refusal = error_text


def is_operation_refused(error_text: str) -> bool:
    """True for a `-ERR` after which the connection stays up: the user may not do this one thing."""
    return "permissions violation" in error_text.lower()


def with_advice(description: str, err_code: int) -> str:
    """Return the server's words and its error number, then what helps where that is known."""
    advice = _ADVICE.get(err_code)
    said = f"{description} ({err_code})"
    return f"{said}: {advice}" if advice else said
