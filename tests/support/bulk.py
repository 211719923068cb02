"""A client that sends many calls, and what stands in the stream then, for tests."""

from __future__ import annotations

from typing import Any

from celery import Task

from bridge.names import Names
from bridge.wire import Connection, ConnectOptions, JetStream, Message
from tests.support.celery_client import make_app

#: More than one window of a batch.
MANY = 600


def double(x: Any, word: str = "") -> Any:
    return x * 2


class Store:
    """What stands in the task stream of one virtual host."""

    def __init__(self, url: str, names: Names) -> None:
        self.names = names
        self._wire = Connection(ConnectOptions.from_url(url))
        self._wire.connect()
        self.js = JetStream(self._wire)

    def messages(self, subjects: str = ">") -> list[Message]:
        found: list[Message] = []
        first: int | None = 1
        while first is not None:
            page, first = self.js.page(self.names.task_stream, subjects, first)
            found += page
        return found

    def ids(self) -> list[str]:
        return [message.headers["Celery-id"] for message in self.messages()]

    def close(self) -> None:
        self._wire.close()


class Client:
    """An app with one task, `double`, in a virtual host of its own."""

    def __init__(self, url: str, vhost: str, **settings: Any) -> None:
        self.app = make_app(f"{url}/{vhost}", **settings)
        self.task: Task = self.app.task(double, name="double", shared=False)
        self.url, self.names = url, Names(vhost)

    def store(self) -> Store:
        return Store(self.url, self.names)
