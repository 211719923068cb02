"""Log events: one JSON line each, whoever logs them."""

from __future__ import annotations

import io
import json
import logging
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from bridge import logs
from bridge.errors import ConfigError
from bridge.logs import configure, get_logger, relay
from bridge.masking import MASK, mask_text, mask_value

CYCLE: list[object] = []
CYCLE.append(CYCLE)


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    """Give the process back the logging it had."""
    root = logging.getLogger()
    names = [*logging.root.manager.loggerDict]
    loggers = {name: logging.getLogger(name) for name in names}
    kept = {name: (log.handlers, log.propagate) for name, log in loggers.items()}
    handlers, level = root.handlers, root.level
    yield
    root.handlers = handlers
    root.setLevel(level)
    for name, (own, propagate) in kept.items():
        loggers[name].handlers, loggers[name].propagate = own, propagate
    logging.captureWarnings(False)
    structlog.reset_defaults()


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return [json.loads(line) for line in captured.err.splitlines()]


def test_line_has_the_form_of_the_spec(capsys: pytest.CaptureFixture[str]) -> None:
    """A line starts with the spec's fields, in its order, and carries what was bound."""
    configure(json=True, worker_id="general-worker-1")
    get_logger("task-worker", task_type="test").info("task finished", task_id="t-1", status="ok")

    (line,) = lines(capsys)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("timestamp"))
    assert line == {
        "level": "INFO",
        "logger": "task-worker",
        "message": "task finished",
        "service": "task-worker",
        "worker_id": "general-worker-1",
        "task_id": "t-1",
        "task_type": "test",
        "status": "ok",
    }
    assert list(line)[:4] == ["level", "logger", "message", "service"]


def test_level_hides_what_is_below_it(capsys: pytest.CaptureFixture[str]) -> None:
    """An event below the level writes nothing."""
    configure(level="WARNING", json=True)
    get_logger("bridge.a").info("quiet")
    get_logger("bridge.a").warning("%s loud", "very")

    assert [line["message"] for line in lines(capsys)] == ["very loud"]


def test_configure_refuses_an_unknown_level() -> None:
    """A wrong level is an error and not a silent default."""
    with pytest.raises(ValueError, match="LOUD"):
        configure(level="LOUD", json=True)


def test_configure_twice_writes_each_event_once(capsys: pytest.CaptureFixture[str]) -> None:
    """A repeated call replaces the handler."""
    configure(json=True)
    configure(json=True)
    get_logger("bridge.a").info("once")

    assert len(lines(capsys)) == 1


@pytest.mark.parametrize("name", ["gunicorn.error", "celery.task", "tornado.access", "foreign"])
def test_records_of_other_libraries_have_the_same_form(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Handlers that a library brought are removed; its records come once, in our form."""
    logging.getLogger(name).addHandler(logging.NullHandler())
    configure(json=True)
    logging.getLogger(name).warning("from %s", name)

    (line,) = lines(capsys)
    assert (line["logger"], line["level"], line["message"]) == (name, "WARNING", f"from {name}")


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (
            {"runtime": 0.0125, "return_value": "'secret'"},
            {"message": "task finished", "status": "success", "duration_ms": 12.5},
        ),
        (
            {"description": "raised unexpected", "exc": "ValueError()"},
            {"message": "task failed", "status": "failure", "error": "ValueError()"},
        ),
        ({"exc": "Retry in 1s"}, {"message": "task retried", "status": "retry",
                                  "error": "Retry in 1s"}),
        ({"description": "rejected", "exc": "R"}, {"message": "task rejected",
                                                   "status": "rejected", "error": "R"}),
        ({"args": "()", "eta": None}, {"message": "task received", "status": "received"}),
    ],
)  # fmt: skip
def test_records_of_celery_about_a_task_become_fields(
    data: dict[str, Any], told: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """What Celery attaches to its records is mapped to the spec's fields, and no more."""
    configure(json=True)
    context = {"id": "t-1", "name": "tasks.add", **data}
    logging.getLogger("celery.app.trace").info(
        "Task %(name)s[%(id)s]", context, extra={"data": context}
    )

    (line,) = lines(capsys)
    assert line.pop("timestamp")
    assert line == {
        "level": "INFO",
        "logger": "celery.app.trace",
        "service": "task-worker",
        "task_id": "t-1",
        "task_type": "tasks.add",
        **told,
    }


def test_exception_is_one_field(capsys: pytest.CaptureFixture[str]) -> None:
    """A traceback stays inside its line, from our loggers and from others'."""
    configure(json=True)
    for log in (get_logger("bridge.a"), logging.getLogger("other")):
        try:
            raise RuntimeError("broken")
        except RuntimeError:
            log.exception("failed")

    for line in lines(capsys):
        assert line["message"] == "failed"
        assert line["exception"].startswith("Traceback (most recent call last):\n")
        assert line["exception"].endswith("RuntimeError: broken")


def test_warning_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A Python warning becomes an event with its source in one field."""
    configure(json=True)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn("old", DeprecationWarning, stacklevel=1)

    (line,) = lines(capsys)
    assert line["message"].endswith("DeprecationWarning: old")
    assert "warnings.warn" in line["exception"]


def test_context_variables_are_in_every_line(capsys: pytest.CaptureFixture[str]) -> None:
    """What is bound for a request or a task is in the lines of every library."""
    configure(json=True)
    with structlog.contextvars.bound_contextvars(task_id="t-7"):
        logging.getLogger("other").warning("inside")
    logging.getLogger("other").warning("outside")

    assert [line.get("task_id") for line in lines(capsys)] == ["t-7", None]


def test_secrets_do_not_reach_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    """Passwords in URLs, Authorization headers and secret fields are masked."""
    configure(json=True)
    get_logger("bridge.a").info(
        "connected to nats://u:pa55@h:4222",
        authorization="Bearer pa55",
        headers={"X-API-Key": "pa55", "Accept": "*/*"},
        urls=["amqp://u:pa55@h//"],
    )
    logging.getLogger("other").error("sent Authorization: Basic pa55 to tls://pa55@h")

    captured = capsys.readouterr().err
    assert "pa55" not in captured
    assert captured.count(MASK) == 6
    assert '"Accept":"*/*"' in captured


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (float("nan"), None),
        ("\udc80", "'\\udc80'"),
        ({1, 2}, [1, 2]),
        (CYCLE, "[[...]]"),
        (b"\x00", "AA=="),
    ],
)
def test_value_that_json_cannot_hold_does_not_cost_the_line(
    value: object, written: object, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such a value is written as text; the rest of the line is untouched."""
    configure(json=True)
    get_logger("bridge.a").info("odd", value=value, fine=1)

    (line,) = lines(capsys)
    assert (line["value"], line["fine"], line["message"]) == (written, 1, "odd")


def test_event_is_readable_for_a_foreign_handler(caplog: pytest.LogCaptureFixture) -> None:
    """Without `configure`, in a worker with logging of its own, an event is a plain line."""
    get_logger("bridge.a").warning("transport.lost", queue="q")

    assert caplog.messages == ["transport.lost queue='q'"]


def test_get_logger_leaves_structlog_to_the_application() -> None:
    """Using our loggers does not configure structlog for the whole process."""
    get_logger("bridge.a").debug("x")

    assert not structlog.is_configured()


def test_console_is_for_people(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """BRIDGE_LOG_FORMAT=console writes short lines without colours into a pipe."""
    monkeypatch.setenv(logs.FORMAT_VARIABLE, "console")
    configure()
    get_logger("bridge.a").info("hello", port=1)

    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d \[info +\] hello +\[bridge\.a\] port=1", line)


def test_unknown_format_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt format says so instead of being ignored."""
    monkeypatch.setenv(logs.FORMAT_VARIABLE, "jsn")

    with pytest.raises(ConfigError, match="'jsn': set it to json or console"):
        configure()


def test_format_is_json_where_stderr_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """In a pipe the default is JSON."""
    configure()
    get_logger("bridge.a").info("hello")

    assert lines(capsys)[0]["message"] == "hello"


def test_relay_logs_each_line_of_a_child(capsys: pytest.CaptureFixture[str]) -> None:
    """Foreign lines get the name given; our own keep time, logger and fields."""
    configure(json=True)
    ours = {
        "timestamp": "2026-01-01T00:00:00.123Z",
        "level": "ERROR",
        "logger": "bridge.worker",
        "message": "100 %s",
        "service": "other",
        "task_id": "t",
    }
    output = b"[7] 2026/11/24 06:14:47.1 [DBG] hidden\n\n[7] 2026/11/24 06:14:47.1 [INF] up\n"
    relay(io.BytesIO(output + json.dumps(ours).encode() + b"\nlast"), "nats-server", child="n")

    first, second, third = lines(capsys)
    assert (first["logger"], first["message"], first["pid"]) == ("nats-server", "up", 7)
    assert second == {**ours, "child": "n"}
    assert (third["logger"], third["message"], third["child"]) == ("nats-server", "last", "n")


@given(st.lists(st.binary()))
def test_relay_survives_any_output(chunks: list[bytes]) -> None:
    """No bytes of a child stop the relay, and none of its lines raise while logged."""
    handler = logging.StreamHandler(io.StringIO())
    handler.setFormatter(logs._formatter(True, "s", {}))
    root = logging.getLogger()
    root.handlers, root.level = [handler], logging.DEBUG
    relay(io.BytesIO(b"\n".join(chunks)), "child")

    for line in handler.stream.getvalue().splitlines():
        assert json.loads(line)["service"] == "s"


FORKING = """
import os
from bridge.logs import configure, get_logger
configure(json=True)
if (pid := os.fork()) == 0:
    get_logger("bridge.child").info("from the child")
    os._exit(0)
os.waitpid(pid, 0)
get_logger("bridge.parent").info("from the parent")
"""


def test_forked_child_can_log() -> None:
    """A process forked after `configure`, as in prefork, writes its own lines."""
    done = subprocess.run(
        [sys.executable, "-c", FORKING], capture_output=True, check=True, timeout=30
    )

    written = [json.loads(line)["message"] for line in done.stderr.splitlines()]
    assert written == ["from the child", "from the parent"]


@pytest.mark.parametrize(
    "text",
    ["http://h:80/x", "see http://h:80, or a@b", "user: x", "ratio=1:2", "", "a = b@c"],
)
def test_mask_text_leaves_ordinary_text(text: str) -> None:
    """Nothing but credentials is changed."""
    assert mask_text(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("nats://u:p/w@x@h:1,nats://t@h2", "nats://u:***@h:1,nats://***@h2"),
        ('{"Authorization": "Bearer abc.d"}', '{"Authorization": "Bearer ***"}'),
        ("GET /x?api_key=abc&n=1", "GET /x?api_key=***&n=1"),
    ],
)
def test_mask_text_hides_credentials(text: str, shown: str) -> None:
    """Users and hosts stay readable, passwords and tokens do not."""
    assert mask_text(text) == shown


def test_mask_value_shows_that_a_secret_is_not_set() -> None:
    """An empty secret stays empty, for somebody who looks for what is missing."""
    assert mask_value("password", "") == ""
    assert mask_value("nats_token", "x") == MASK
    assert mask_value("task_id", "x") == "x"
