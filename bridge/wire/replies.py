"""Where the replies to the requests of one connection come, and which are awaited. Pure."""

from __future__ import annotations

import itertools
import os

from bridge.wire.protocol import Message


class Replies:
    """Replies by the subject each is awaited on. Any thread."""

    def __init__(self) -> None:
        self._inbox = f"_INBOX.{os.urandom(11).hex()}"
        #: all that replies come on, to subscribe to as one
        self.subjects = f"{self._inbox}.*"
        #: one of them on which none is ever awaited
        self.unheard = f"{self._inbox}.0"
        self._numbers = itertools.count(1)
        self._inboxes = itertools.count()
        #: None while it is awaited
        self._by_subject: dict[str, Message | None] = {}
        #: return the reply on a subject, None where none came yet
        self.on = self._by_subject.get

    def new_inbox(self) -> str:
        """Return a subject nobody else uses, and no reply comes on."""
        # A level deeper than the replies.
        return f"{self._inbox}.s.{next(self._inboxes)}"

    def expect(self, count: int) -> list[str]:
        """Return that many subjects, on each of which one reply is awaited from now on."""
        subjects = [f"{self._inbox}.{next(self._numbers)}" for _ in range(count)]
        self._by_subject.update(dict.fromkeys(subjects))
        return subjects

    def receive(self, message: Message) -> None:
        # A reply nobody awaits any more belongs to a request that has timed out.
        if message.subject in self._by_subject:
            self._by_subject[message.subject] = message

    def forget(self, subjects: list[str]) -> None:
        """Await nothing on these any more."""
        for subject in subjects:
            self._by_subject.pop(subject, None)
