"""What a worker announces: JSON Schemas of signatures, and the tasks of its queues."""

from __future__ import annotations

import logging
from typing import Annotated, Any, Literal, TypedDict

import jsonschema_rs
import msgspec
import pytest
from celery import Celery
from kombu import Queue
from msgspec import Meta

from bridge.records import TaskType
from bridge.worker.schema import arguments_schema, task_types


class Window(TypedDict):
    """A nested argument."""

    rows: Annotated[int, Meta(ge=2)]
    label: str


class Point(msgspec.Struct):
    """A nested argument of another kind."""

    x: float
    y: float = 0.0


class Model:
    """What pydantic's models have in common, without pydantic."""

    @staticmethod
    def model_json_schema(ref_template: str) -> dict[str, Any]:
        return {
            "type": "object",
            "properties": {"inner": {"$ref": ref_template.format(model="Inner")}},
            "$defs": {"Inner": {"type": "string"}},
        }


def accepts(schema: dict[str, Any], arguments: dict[str, Any]) -> bool:
    """True when a JSON Schema validator other than ours takes the arguments."""
    return jsonschema_rs.validator_for(schema).is_valid(arguments)


def schema_of(function: Any) -> dict[str, Any]:
    schema = arguments_schema(function)
    assert schema is not None
    jsonschema_rs.meta.validate(schema)
    return schema


def test_hints_decide_what_is_taken() -> None:
    """Types and limits of hinted parameters hold at the door."""

    def task(name: str, count: Annotated[int, Meta(ge=1, le=5)], mode: Literal["a", "b"]) -> None:
        """A task."""

    schema = schema_of(task)

    assert accepts(schema, {"name": "n", "count": 5, "mode": "a"})
    assert not accepts(schema, {"name": 1, "count": 5, "mode": "a"})
    assert not accepts(schema, {"name": "n", "count": 6, "mode": "a"})
    assert not accepts(schema, {"name": "n", "count": 5, "mode": "c"})


def test_only_parameters_without_default_are_required() -> None:
    """A default is announced, and a missing or an unknown argument is refused."""

    def task(needed: int, wait: float = 0.5, tags: tuple[str, ...] = ("x",)) -> None:
        """A task."""

    schema = schema_of(task)

    assert schema["required"] == ["needed"]
    assert schema["properties"]["wait"]["default"] == 0.5
    assert list(schema["properties"]["tags"]["default"]) == ["x"]
    assert accepts(schema, {"needed": 1})
    assert not accepts(schema, {})
    assert not accepts(schema, {"needed": 1, "other": 2})


def test_a_default_without_json_form_is_left_out() -> None:
    """It stays a default; the schema just cannot show it."""

    def task(marker: Any = object) -> None:
        """A task."""

    schema = schema_of(task)

    assert "default" not in schema["properties"]["marker"]
    assert schema["required"] == []


def test_nested_types_are_checked_too() -> None:
    """TypedDicts and structs become definitions that refuse misspelt keys."""

    def task(window: Window, points: list[Point]) -> None:
        """A task."""

    schema = schema_of(task)

    assert accepts(schema, {"window": {"rows": 2, "label": "l"}, "points": [{"x": 1}]})
    assert not accepts(schema, {"window": {"rows": 1, "label": "l"}, "points": []})
    assert not accepts(schema, {"window": {"rows": 2, "labl": "l"}, "points": []})
    assert not accepts(schema, {"window": {"rows": 2, "label": "l"}, "points": [{"y": 1}]})


def test_keyword_arguments_open_the_schema() -> None:
    """What a task takes as `**kwargs` cannot be unknown."""

    def task(first: int, *args: int, **options: Any) -> None:
        """A task."""

    schema = schema_of(task)

    assert set(schema["properties"]) == {"first"}
    assert accepts(schema, {"first": 1, "anything": [None]})


def test_parameters_without_hint_take_anything() -> None:
    """Old Celery code has no hints and still becomes part of the API."""

    def task(a, b=None):  # type: ignore[no-untyped-def]
        return a, b

    schema = schema_of(task)

    assert accepts(schema, {"a": {"deep": [1]}})
    assert not accepts(schema, {"b": 1})


def test_positional_only_parameters_cannot_be_called_by_name() -> None:
    """No schema is better than one whose tasks all fail."""

    def task(a: int, /) -> None:
        """A task."""

    assert arguments_schema(task) is None


def test_hints_that_cannot_be_read_cost_nothing_but_checks(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A name imported for type checkers only must not keep a worker from starting."""

    def task(value: Missing) -> None:  # type: ignore[name-defined]  # noqa: F821
        """A task."""

    with caplog.at_level(logging.WARNING, "nats"):
        schema = schema_of(task)

    assert accepts(schema, {"value": 1})
    assert "cannot be read" in caplog.text


def test_types_without_schema_take_anything(caplog: pytest.LogCaptureFixture) -> None:
    """A class of the user's own is no reason to refuse the task."""

    def task(value: logging.Logger, other: int) -> None:
        """A task."""

    with caplog.at_level(logging.WARNING, "nats"):
        schema = schema_of(task)

    assert accepts(schema, {"value": "x", "other": 1})
    assert not accepts(schema, {"value": "x", "other": "y"})
    assert "no JSON Schema" in caplog.text


def test_models_bring_their_own_schema() -> None:
    """A pydantic model's definitions are found from the arguments' schema."""

    def task(model: Model) -> None:
        """A task."""

    schema = schema_of(task)

    assert accepts(schema, {"model": {"inner": "text"}})
    assert not accepts(schema, {"model": {"inner": 5}})


def announced(app: Celery, queues: list[str]) -> list[TaskType]:
    """The types of this file's tasks: Celery shares those of other apps in this process."""
    return [t for t in task_types(app, queues) if app.tasks[t.name].run.__module__ == __name__]


@pytest.fixture
def app() -> Celery:
    """An app with a task in each of two queues."""
    app = Celery("announced", set_as_current=False)
    app.conf.task_routes = {"slow.*": {"queue": "slow"}, "own.*": {"queue": "mine"}}

    @app.task(name="fast.add", shared=False)
    def add(x: int, y: int) -> int:
        """Add two numbers.

        This paragraph is for people who read the code.
        """
        return x + y

    @app.task(name="slow.work", shared=False, bind=True, ignore_result=True)
    def work(self: Any, seconds: float) -> None:
        """Work
        for a while."""

    @app.task(name="own.queue", shared=False)
    def own() -> None:
        """Go elsewhere."""

    app.finalize()
    return app


def test_only_tasks_of_the_consumed_queues_are_announced(app: Celery) -> None:
    """A worker of one queue cannot run what is routed to another."""
    assert [t.name for t in announced(app, ["celery"])] == ["fast.add"]
    assert [t.name for t in announced(app, ["slow"])] == ["slow.work"]
    assert [t.name for t in announced(app, ["mine", "slow"])] == ["own.queue", "slow.work"]
    assert announced(app, []) == []


def test_announced_types_tell_queue_doc_and_result(app: Celery) -> None:
    """The first paragraph of the docstring is the task's description."""
    [add] = announced(app, ["celery"])
    [work] = announced(app, ["slow"])

    assert (add.queue, add.doc, add.ignore_result) == ("celery", "Add two numbers.", False)
    assert (work.queue, work.doc, work.ignore_result) == ("slow", "Work for a while.", True)


def test_bound_tasks_do_not_ask_for_self(app: Celery) -> None:
    """Celery passes the task itself; a client cannot."""
    [work] = announced(app, ["slow"])

    assert set(work.schema["properties"]) == {"seconds"}


def test_declared_queues_are_found_by_name(app: Celery) -> None:
    """A route may name a Queue object instead of a name."""
    app.conf.task_routes = {"slow.*": {"queue": Queue("declared")}}
    app.amqp.flush_routes()

    assert [t.name for t in announced(app, ["declared"])] == ["slow.work"]


def test_tasks_that_need_positions_are_left_out(
    app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    """They run from Celery as always; REST does not offer what it cannot call."""

    @app.task(name="positional", shared=False)
    def positional(a: int, /) -> None:
        """A task."""

    with caplog.at_level(logging.WARNING, "nats"):
        names = [t.name for t in announced(app, ["celery"])]

    assert names == ["fast.add"]
    assert "positional-only" in caplog.text
