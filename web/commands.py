"""Commands to the controllers. They answer twice: that they will see to it, and how it ended."""

from __future__ import annotations

import time
from typing import Final

import msgspec

from bridge.errors import (
    BridgeError,
    InvalidWorkerConfig,
    NatsConnectionError,
    ScalingError,
    ServiceUnavailable,
    WorkerNotFound,
    WorkerStartError,
    WorkerStopError,
)
from bridge.records import CommandReply
from bridge.wire import Connection, Message
from web.context import context

#: Within so long a controller says that it will see to it.
_ACCEPT_SECONDS: Final = 3.0
#: The controller's own limit comes first: it knows the reason.
_MARGIN_SECONDS: Final = 5.0
#: The copies of the snapshot in this process are behind by no more.
_SHOWN_SECONDS: Final = 2.0
_NO_RESPONDERS: Final = 503
_ERRORS: Final[dict[str, type[BridgeError]]] = {
    error.code: error
    for error in (
        InvalidWorkerConfig,
        NatsConnectionError,
        ScalingError,
        WorkerNotFound,
        WorkerStartError,
        WorkerStopError,
    )
}
_decode: Final = msgspec.json.Decoder(CommandReply).decode


def give(verb: str, command: msgspec.Struct) -> CommandReply:
    """Have a controller carry out a command, and wait for the end of it.

    What it did is to be seen in this process' figures then. Raises the error that the controller
    answers, ServiceUnavailable without one, NatsConnectionError.
    """
    here = context()
    subject = here.resources.names.service_subject(verb)
    most = here.settings.scaling.answer_seconds + _MARGIN_SECONDS
    with here.resources.pool.connection() as connection:
        reply = _ask(connection, subject, msgspec.json.encode(command), most)
    if reply.error_code:
        raise _ERRORS.get(reply.error_code, BridgeError)(reply.message, status=reply.status)
    here.resources.await_snapshot(reply.snapshot_epoch, _SHOWN_SECONDS)
    return reply


def _ask(connection: Connection, subject: str, payload: bytes, most_seconds: float) -> CommandReply:
    answers: list[Message] = []
    inbox = connection.new_inbox()
    sid = connection.subscribe(inbox, answers.append)
    try:
        connection.publish(subject, payload, reply=inbox)
        started = time.monotonic()
        seconds = _ACCEPT_SECONDS
        while True:
            while not answers:
                _await(connection, started + seconds - time.monotonic(), seconds)
            answer = answers.pop(0)
            if answer.status == _NO_RESPONDERS:
                raise ServiceUnavailable(
                    "No controller is running. Start it (python -m bridge controller)."
                )
            reply = _decode(answer.payload)
            if not reply.accepted:
                return reply
            seconds = most_seconds
    finally:
        connection.unsubscribe(sid)


def _await(connection: Connection, left: float, seconds: float) -> None:
    try:
        connection.drain(max(0.0, left))
    except NatsConnectionError:
        raise
    except TimeoutError as error:
        if seconds == _ACCEPT_SECONDS:
            raise ServiceUnavailable(
                "No controller takes commands now: another one is about to lead, or the one that "
                "keeps the worker hangs. Try again in a few seconds."
            ) from error
        raise ServiceUnavailable(
            "The controller did not tell how it ended. GET /api/v1/workers/scaling shows what is "
            "wanted, GET /api/v1/workers what is there."
        ) from error
