"""One JSON line per event on stderr, whoever logs it; on a terminal, the same for people.

`configure` is for our own processes. `get_logger` works without it too: inside a foreign
Celery worker the events go to whatever logging that worker has.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Mapping
from typing import Any, BinaryIO, Final, TextIO

import msgspec
import structlog
from structlog.typing import EventDict, ProcessorReturnValue, WrappedLogger

from bridge.envelope import from_epoch
from bridge.errors import ConfigError
from bridge.log_lines import parse_line
from bridge.masking import mask_text, mask_value

__all__ = ["FORMAT_VARIABLE", "configure", "get_logger", "parse_line", "relay"]

#: Environment variable: ``json`` or ``console``, instead of asking whether stderr is a terminal.
FORMAT_VARIABLE: Final = "BRIDGE_LOG_FORMAT"
#: A longer line of a child's output is relayed in pieces.
MAX_LINE_BYTES: Final = 1 << 20

#: Loggers that bring handlers of their own; ours shall be the only one.
_ADOPTED: Final = (
    "celery",
    "celery.redirected",
    "celery.task",
    "gunicorn.access",
    "gunicorn.error",
    "tornado.access",
    "tornado.application",
    "tornado.general",
    "werkzeug",
)
#: Fields that every line starts with, in this order.
_LEADING: Final = ("timestamp", "level", "logger", "message", "service")
#: Celery's words for the outcome of a task (`celery.app.trace`): status and message of ours.
_OUTCOMES: Final = {
    "raised expected": ("failure", "task failed"),
    "raised unexpected": ("failure", "task failed"),
    "INTERNAL ERROR": ("failure", "task failed"),
    "rejected": ("rejected", "task rejected"),
    "ignored": ("ignored", "task ignored"),
}
_encode: Final = msgspec.json.Encoder(enc_hook=repr).encode


class _Entry:
    """An event and its fields as the message of a log record.

    Our formatter takes the fields apart; any other handler gets a readable line.
    """

    __slots__ = ("event", "fields")

    def __init__(self, event: str, fields: Mapping[str, Any]) -> None:
        self.event = event
        self.fields = fields

    def __str__(self) -> str:
        return " ".join([self.event, *(f"{name}={value!r}" for name, value in self.fields.items())])


def _to_entry(_: WrappedLogger, __: str, fields: EventDict) -> ProcessorReturnValue:
    arguments = {
        name: fields.pop(name)
        for name in ("exc_info", "stack_info", "stacklevel")
        if name in fields
    }
    return (_Entry(str(fields.pop("event", "")), fields),), arguments


_PROCESSORS: Final[list[structlog.typing.Processor]] = [
    structlog.stdlib.filter_by_level,
    structlog.stdlib.PositionalArgumentsFormatter(),
    _to_entry,
]


def get_logger(name: str, **bound: Any) -> structlog.stdlib.BoundLogger:
    """Return the logger `name`; every event carries the fields `bound`.

    It writes through the standard library's logger of the same name and leaves structlog's
    process-wide configuration, which belongs to the application, alone.
    """
    logger: structlog.stdlib.BoundLogger = structlog.wrap_logger(
        logging.getLogger(name),
        processors=_PROCESSORS,
        wrapper_class=structlog.stdlib.BoundLogger,
        context_class=dict,
        cache_logger_on_first_use=True,
    )
    return logger.bind(**bound) if bound else logger


def configure(
    service: str = "task-worker",
    level: str = "INFO",
    json: bool | None = None,
    **bound: Any,
) -> None:
    """Send every log record of this process to stderr in the one format; repeatable.

    `json` None: JSON unless stderr is a terminal or BRIDGE_LOG_FORMAT says otherwise.
    `bound` are fields of every line, for instance ``worker_id``. Starts no thread, so a
    process may fork after it.

    Raises ValueError for an unknown level, ConfigError for another format.
    """
    json = _json_wanted() if json is None else json
    handler = _JsonHandler(sys.stderr) if json else logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter(json, service, bound))
    root = logging.getLogger()
    root.setLevel(level)
    root.handlers = [handler]
    for name in _ADOPTED:
        adopted = logging.getLogger(name)
        adopted.handlers = []
        adopted.propagate = True
    logging.captureWarnings(True)
    if not structlog.is_configured():
        structlog.configure(
            processors=_PROCESSORS,
            wrapper_class=structlog.stdlib.BoundLogger,
            logger_factory=structlog.stdlib.LoggerFactory(),
        )


def relay(stream: BinaryIO, logger_name: str, **bound: Any) -> None:
    """Log what a child process writes to `stream`, line by line, until its end.

    Lines in our JSON keep their own time, logger and fields; any other is logged under
    `logger_name` with the fields `bound`. Blocks: give it a thread.
    """
    json_handler = next((h for h in logging.root.handlers if isinstance(h, _JsonHandler)), None)
    for line in iter(lambda: stream.readline(MAX_LINE_BYTES), b""):
        if not line.strip():
            continue
        fields = {"logger": logger_name, **bound, **(told := parse_line(line))}
        logger = logging.getLogger(fields.pop("logger"))
        level = logging.getLevelNamesMapping()[fields.pop("level")]
        if not logger.isEnabledFor(level):
            continue
        # Busy workers write many lines, each through two processes: what is in our form already
        # (only then has it a time of its own) is not made anew.
        if json_handler and "timestamp" in told and bound.keys() <= told.keys():
            json_handler.pass_on(line)
        else:
            message = fields.pop("message")
            logger.handle(
                logger.makeRecord(logger.name, level, "", 0, _Entry(message, fields), (), None)
            )


class _JsonHandler(logging.StreamHandler[TextIO]):
    """Writes records as our JSON lines, and lines that already are such."""

    def pass_on(self, line: bytes) -> None:
        """Write a line of ours as it stands."""
        self.acquire()
        try:
            self.stream.write(line.decode().rstrip("\n") + self.terminator)
            self.flush()
        finally:
            self.release()


def _json_wanted() -> bool:
    wanted = os.environ.get(FORMAT_VARIABLE, "")
    if wanted not in ("", "json", "console"):
        raise ConfigError(
            f"{FORMAT_VARIABLE} is {wanted!r}: set it to json or console, or unset it"
        )
    return wanted == "json" or (wanted != "console" and not sys.stderr.isatty())


# -- from a log record to a line ------------------------------------------------------------


def _formatter(json: bool, service: str, bound: Mapping[str, Any]) -> logging.Formatter:
    defaults = {"service": service, **bound}

    def add_defaults(_: WrappedLogger, __: str, fields: EventDict) -> EventDict:
        for name, value in defaults.items():
            fields.setdefault(name, value)
        return fields

    render: list[structlog.typing.Processor] = [_render_json]
    if not json:
        console = structlog.dev.ConsoleRenderer(event_key="message", colors=sys.stderr.isatty())
        render = [_for_console, console]
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            _unpack,
            structlog.contextvars.merge_contextvars,
            structlog.processors.format_exc_info,
            add_defaults,
        ],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _mask, *render],
    )


def _unpack(_: WrappedLogger, __: str, fields: EventDict) -> EventDict:
    """Turn what the formatter knows of a record into the fields of a line."""
    record: logging.LogRecord = fields["_record"]
    fields["message"] = fields.pop("event")
    entry, data = record.msg, getattr(record, "data", None)
    if isinstance(entry, _Entry):
        fields.update(entry.fields)
        fields["message"] = entry.event
    elif isinstance(data, dict) and "id" in data and "name" in data:
        fields.update(_task_fields(data))
    elif record.name == "py.warnings":
        fields["message"], _, rest = fields["message"].strip().partition("\n")
        if rest:
            fields["exception"] = rest.strip()
    fields.setdefault("timestamp", from_epoch(record.created))
    fields["level"] = record.levelname
    fields["logger"] = record.name
    return fields


def _task_fields(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return our fields for the context that Celery attaches to its records about a task."""
    fields = {"task_id": data["id"], "task_type": data["name"]}
    if "runtime" in data:
        milliseconds = round(data["runtime"] * 1000, 3)
        return {
            **fields,
            "message": "task finished",
            "duration_ms": milliseconds,
            "status": "success",
        }
    if "exc" not in data and "description" not in data:
        return {**fields, "message": "task received", "status": "received"}
    status, message = _OUTCOMES.get(data.get("description", ""), ("retry", "task retried"))
    return {**fields, "message": message, "status": status, "error": data.get("exc")}


def _mask(_: WrappedLogger, __: str, fields: EventDict) -> EventDict:
    return {name: _masked(name, value) for name, value in fields.items()}


def _masked(name: str, value: Any) -> Any:
    try:
        return mask_value(name, value)
    except RecursionError:
        return mask_text(ascii(value))


def _for_console(_: WrappedLogger, __: str, fields: EventDict) -> EventDict:
    fields["level"] = fields["level"].lower()
    fields["timestamp"] = time.strftime("%H:%M:%S")
    del fields["service"]
    return fields


def _render_json(_: WrappedLogger, __: str, fields: EventDict) -> str:
    ordered = {name: fields.pop(name) for name in _LEADING if name in fields}
    ordered.update(fields)
    try:
        return _encode(ordered).decode()
    except (TypeError, ValueError, RecursionError):
        return _encode({ascii(name)[1:-1]: _encodable(ordered[name]) for name in ordered}).decode()


def _encodable(value: Any) -> Any:
    """Return `value`, or its text where JSON cannot hold it: that must not cost the line."""
    try:
        return msgspec.Raw(_encode(value))
    except (TypeError, ValueError, RecursionError):
        return ascii(value)
