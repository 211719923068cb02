"""Error codes and the exception tree. Every message tells the reader what to do."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar


class ErrorCode(StrEnum):
    """The codes of the response envelope; the service answers with no other."""

    WORKER_START_ERROR = "WORKER_START_ERROR"
    WORKER_STOP_ERROR = "WORKER_STOP_ERROR"
    WORKER_NOT_FOUND = "WORKER_NOT_FOUND"
    TASK_SUBMISSION_ERROR = "TASK_SUBMISSION_ERROR"
    TASK_EXECUTION_ERROR = "TASK_EXECUTION_ERROR"
    NATS_CONNECTION_ERROR = "NATS_CONNECTION_ERROR"
    SCALING_ERROR = "SCALING_ERROR"
    INVALID_WORKER_CONFIG = "INVALID_WORKER_CONFIG"
    INVALID_TASK_DATA = "INVALID_TASK_DATA"
    INVALID_PARAMETERS = "INVALID_PARAMETERS"
    SERVICE_UNAVAILABLE = "SERVICE_UNAVAILABLE"
    INTERNAL_ERROR = "INTERNAL_ERROR"
    #: Beyond the specification's twelve: none of them says that a key is missing.
    UNAUTHORIZED = "UNAUTHORIZED"


class BridgeError(Exception):
    """Anything this project raises on purpose.

    `code` and `status` (HTTP) are what a client sees; `retry_after_seconds` is set where
    trying again later can help.
    """

    code: ClassVar[ErrorCode] = ErrorCode.INTERNAL_ERROR
    status: int = 500
    retry_after_seconds: float | None = None

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        if status is not None:
            self.status = status


class InvalidTaskData(BridgeError):
    """The task a client described cannot be run."""

    code = ErrorCode.INVALID_TASK_DATA
    status = 400


class InvalidParameters(BridgeError):
    """A request is wrong in itself."""

    code = ErrorCode.INVALID_PARAMETERS
    status = 400


class Unauthorized(BridgeError):
    """The request carries no valid API key."""

    code = ErrorCode.UNAUTHORIZED
    status = 401


class TaskNotFound(InvalidParameters):
    """No task of this id was ever accepted, or its record has expired."""

    status = 404


class InvalidWorkerConfig(BridgeError):
    """A worker setting is out of its limits."""

    code = ErrorCode.INVALID_WORKER_CONFIG
    status = 400


class WorkerNotFound(BridgeError):
    """No such worker."""

    code = ErrorCode.WORKER_NOT_FOUND
    status = 404


class WorkerStartError(BridgeError):
    """A worker process did not come up."""

    code = ErrorCode.WORKER_START_ERROR


class WorkerStopError(BridgeError):
    """A worker process did not go down in time."""

    code = ErrorCode.WORKER_STOP_ERROR


class ScalingError(BridgeError):
    """The worker pool could not be brought to the wanted size."""

    code = ErrorCode.SCALING_ERROR


class TaskSubmissionError(BridgeError):
    """NATS is there but did not store the task."""

    code = ErrorCode.TASK_SUBMISSION_ERROR


class ServiceUnavailable(BridgeError):
    """Nothing is there that could do the work."""

    code = ErrorCode.SERVICE_UNAVAILABLE
    status = 503
    retry_after_seconds = 5.0


class WorkerSilent(ServiceUnavailable):
    """A worker did not answer a command in time; whether it carried it out is unknown."""


class NatsConnectionError(BridgeError, ConnectionError):
    """NATS cannot be reached, or the connection broke. Recoverable: connect again."""

    code = ErrorCode.NATS_CONNECTION_ERROR
    status = 503
    retry_after_seconds = 2.0


class NatsTimeout(NatsConnectionError, TimeoutError):
    """NATS did not answer in time; whether it did the work is unknown."""


class NatsAuthError(NatsConnectionError):
    """NATS refused the credentials."""


class NatsPermissionError(NatsAuthError):
    """NATS let us in and refused an operation: trying again helps only once the user may do it."""


class ConfigError(BridgeError):
    """A setting is unknown, of the wrong type or out of its limits."""
