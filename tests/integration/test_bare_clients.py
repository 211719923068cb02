"""Tasks from nats-py, which knows nothing of Celery: a header, a JSON object, no more."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator

import nats
import pytest
from celery import Celery

from bridge.names import Names
from bridge.wire import JetStream, Message
from tests.integration.conftest import FOREIGN_VHOST
from tests.support.celery_client import close_app, make_app
from tests.support.celery_worker import CeleryWorker
from tests.support.waiting import wait_until

NAMES = Names(FOREIGN_VHOST)
QUEUE = "foreign"
WAIT_SECONDS = 20.0


@pytest.fixture(scope="module")
def app(foreign_worker: CeleryWorker) -> Iterator[Celery]:
    app = make_app(foreign_worker.url, task_default_queue=QUEUE)
    yield app
    close_app(app)


def publish(worker: CeleryWorker, payload: bytes, **headers: str) -> int:
    """Publish with the official client to the worker's queue; return the stream sequence."""

    async def work() -> int:
        client = await nats.connect(worker.url.rpartition("/")[0])
        try:
            subject = NAMES.task_subject(QUEUE)
            fields = {name.replace("_", "-"): value for name, value in headers.items()}
            return (await client.jetstream().publish(subject, payload, headers=fields)).seq
        finally:
            await client.close()

    return asyncio.run(work())


def test_header_and_json_object_are_a_task(app: Celery, foreign_worker: CeleryWorker) -> None:
    """It runs under the client's own message id, and Celery finds its result there."""
    task_id = f"order/{uuid.uuid4()}"

    publish(foreign_worker, b'{"x": 2, "y": 3}', Celery_task="foreign.add", Nats_Msg_Id=task_id)

    assert app.AsyncResult(task_id).get(timeout=WAIT_SECONDS) == 5


def test_same_message_id_is_one_task(foreign_worker: CeleryWorker) -> None:
    """JetStream drops the repetition, so a client may send again when it is in doubt."""
    task_id = uuid.uuid4().hex
    sequences = {
        publish(foreign_worker, b"{}", Celery_task="foreign.shared", Nats_Msg_Id=task_id)
        for _ in range(2)
    }

    assert len(sequences) == 1


@pytest.mark.parametrize(
    ("payload", "headers", "reason"),
    [
        (b"[1, 2]", {"Celery_task": "foreign.add"}, "the payload is not a JSON object"),
        (b'{"x": 1', {"Celery_task": "foreign.add"}, "the payload is not a JSON object"),
        (b'{"x": 1}', {}, "no header Celery-task that names the task"),
    ],
)
def test_malformed_is_set_aside_and_blocks_nothing(
    app: Celery,
    js: JetStream,
    foreign_worker: CeleryWorker,
    payload: bytes,
    headers: dict[str, str],
    reason: str,
) -> None:
    """What is no task goes to the dead letters with its reason; what comes after it runs."""
    publish(foreign_worker, payload, X_test=reason, **headers)
    task_id = uuid.uuid4().hex
    publish(foreign_worker, b'{"x": 1, "y": 1}', Celery_task="foreign.add", Nats_Msg_Id=task_id)

    assert app.AsyncResult(task_id).get(timeout=WAIT_SECONDS) == 2
    dead = last_dead(js, payload)
    assert dead.headers["Dead-Reason"].startswith(reason)
    assert (dead.headers["Dead-Queue"], dead.headers["X-test"]) == (QUEUE, reason)


def last_dead(js: JetStream, payload: bytes) -> Message:
    """Wait for the last dead letter of the queue to be this one."""
    dead = wait_until(
        lambda: js.get_last(NAMES.dead_stream, NAMES.dead_subject(QUEUE)),
        lambda last: last is not None and last.payload == payload,
    )
    assert dead is not None
    return dead
