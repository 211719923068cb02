"""The Celery app of `tasks`: how it is found, what it runs, how it is set."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import jsonschema_rs
import msgspec
import pytest
from celery import Task
from celery.app.utils import find_app

import tasks
from config.settings import Settings
from tasks.app import app

NAMES = {"test", "noop", "sleep", "fail", "flaky", "progress", "data_processing"}


@pytest.fixture(scope="module", autouse=True)
def _handlers() -> None:
    for module in app.conf.include:
        importlib.import_module(module)


def own_tasks() -> dict[str, Task]:
    return {name: task for name, task in app.tasks.items() if not name.startswith("celery.")}


def schema_of(task: Task) -> dict[str, Any]:
    """JSON Schema of a handler's arguments, from nothing but its signature."""
    hints = get_type_hints(task.run, include_extras=True)
    fields = [
        (name, hints[name])
        if parameter.default is parameter.empty
        else (name, hints[name], parameter.default)
        for name, parameter in inspect.signature(task.run).parameters.items()
    ]
    return msgspec.json.schema(msgspec.defstruct("Arguments", fields, forbid_unknown_fields=True))


@pytest.mark.parametrize("name", ["tasks", "tasks.app", "tasks.app:app"])
def test_app_is_found_by_celerys_option(name: str) -> None:
    """``celery -A NAME`` finds the app under each name a user would try."""
    assert find_app(name) is app


def test_results_are_kept_as_long_as_the_service_is_told() -> None:
    """RESULT_EXPIRES_SECONDS reaches the app; a day is the service's default, too."""
    code = "from tasks.app import app; print(app.conf.result_expires)"
    kept = {}
    for given in ("", "60.0"):
        environ = {**os.environ, "RESULT_EXPIRES_SECONDS": given}
        kept[given] = float(subprocess.check_output([sys.executable, "-c", code], env=environ))

    assert kept == {"": Settings().result_expires_seconds, "60.0": 60.0}


def test_app_has_exactly_the_documented_task_types() -> None:
    """The short names are the task types; none is missing and none came in by accident."""
    assert set(own_tasks()) == NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_handler_is_documented_in_one_line(name: str) -> None:
    """The API shows a handler's docstring, so each has one, of one line."""
    doc = inspect.getdoc(own_tasks()[name].run)

    assert doc
    assert "\n" not in doc


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("test", {"message": "hello"}),
        ("noop", {}),
        ("sleep", {"seconds": 0.5}),
        ("fail", {"message": "no"}),
        ("flaky", {"failures": 2}),
        ("progress", {"steps": 3}),
        ("progress", {"steps": 3, "pause_seconds": 0}),
        (
            "data_processing",
            {
                "input": "market_data.csv",
                "operation": "analyze",
                "parameters": {"window": 60, "threshold": 0.05},
            },
        ),
    ],
)
def test_schema_from_the_signature_accepts(name: str, arguments: dict[str, Any]) -> None:
    """A schema derived from the hints alone accepts the documented arguments."""
    jsonschema_rs.validate(schema_of(own_tasks()[name]), arguments)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("test", {"message": 1}),
        ("noop", {"message": "hello"}),
        ("sleep", {"seconds": -1}),
        ("sleep", {"seconds": 3601}),
        ("flaky", {"failures": 0.5}),
        ("progress", {"steps": 0}),
        ("data_processing", {"input": "a.csv", "operation": "analyze"}),
        (
            "data_processing",
            {
                "input": "a.csv",
                "operation": "guess",
                "parameters": {"window": 60, "threshold": 0.05},
            },
        ),
        (
            "data_processing",
            {
                "input": "a.csv",
                "operation": "analyze",
                "parameters": {"window": 1, "threshold": 0.05},
            },
        ),
    ],
)
def test_schema_from_the_signature_refuses(name: str, arguments: dict[str, Any]) -> None:
    """The bounds in the hints reach the schema, so the API can refuse at the door."""
    with pytest.raises(jsonschema_rs.ValidationError):
        jsonschema_rs.validate(schema_of(own_tasks()[name]), arguments)


def test_only_json_is_accepted() -> None:
    """No worker of this app ever unpickles a message."""
    assert app.conf.accept_content == ["json"]


def test_task_is_acknowledged_when_it_has_ended() -> None:
    """What a dead worker held must run again, or an accepted task could be lost."""
    for task in own_tasks().values():
        assert task.acks_late
        assert task.reject_on_worker_lost


def test_task_that_kills_its_process_is_not_tried_for_ever() -> None:
    """Loss of the pool process counts as a retry, soon and a limited number of times."""
    for task in own_tasks().values():
        assert task.retry_on_worker_lost
        assert task.max_retries is not None
        assert task.default_retry_delay == 1


def test_environment_names_broker_and_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Celery's own variables go before the default NATS server."""
    monkeypatch.setenv("CELERY_BROKER_URL", "nats://broker:4222")
    monkeypatch.setenv("CELERY_RESULT_BACKEND", "nats://results:4222")

    assert app.conf.broker_url == "nats://broker:4222"
    assert app.conf.result_backend == "nats://results:4222"


def test_default_is_the_local_nats_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a setting the app speaks to NATS on this machine."""
    monkeypatch.delenv("CELERY_BROKER_URL", raising=False)
    monkeypatch.delenv("CELERY_RESULT_BACKEND", raising=False)

    assert app.conf.broker_url == app.conf.result_backend == "nats://localhost:4222"


def test_handlers_import_nothing_of_the_bridge() -> None:
    """They stay ordinary Celery tasks, as anyone's existing ones are."""
    ours = re.compile(r"^\s*(?:from|import)\s+(?:bridge|web|config)\b", re.MULTILINE)

    for path in Path(tasks.__file__).parent.glob("*.py"):
        assert not ours.search(path.read_text(encoding="utf-8")), path
