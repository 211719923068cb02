"""What a worker announces: JSON Schemas of signatures, and the tasks of its queues."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict

import jsonschema_rs
import msgspec
import pydantic
import pytest
from celery import Celery
from kombu import Queue
from msgspec import Meta

from bridge.records import TaskType
from bridge.worker.schema import arguments_schema, task_types

if TYPE_CHECKING:
    from decimal import Decimal


class Window(TypedDict):
    """A nested argument."""

    rows: Annotated[int, Meta(ge=2)]
    label: str


class Point(msgspec.Struct):
    """A nested argument of another kind."""

    x: float
    y: float = 0.0


class Order(TypedDict):
    """A nested argument with a member that only type checkers can read."""

    price: Decimal


@dataclass
class Invoice:
    """The same as a dataclass."""

    total: Decimal


class Job(pydantic.BaseModel):
    """A model with fields that no JSON Schema can tell."""

    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
    name: str
    on_done: Callable[[], None]
    log: logging.Logger


class Settings(pydantic.BaseModel):
    """A model as most are."""

    rows: int


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
    schema = arguments_schema(function, "name")
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

    assert arguments_schema(task, "name") is None


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


@pytest.mark.parametrize("hint", [Order, Invoice, list[Order], Job, "Job | None"])
def test_types_whose_schema_cannot_be_made_take_anything(
    hint: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A field's hint that only type checkers can read, or without JSON form, costs its check."""

    def task(value: Any, other: int) -> None:
        """A task."""

    task.__annotations__["value"] = hint
    with caplog.at_level(logging.WARNING, "nats"):
        schema = schema_of(task)

    assert accepts(schema, {"value": {"price": 1}, "other": 1})
    assert not accepts(schema, {"value": 1, "other": "y"})
    assert "argument value" in caplog.text


def test_pydantic_models_are_checked() -> None:
    """What a real model refuses is refused at the door."""

    def task(settings: Settings) -> None:
        """A task."""

    schema = schema_of(task)

    assert accepts(schema, {"settings": {"rows": 1}})
    assert not accepts(schema, {"settings": {"rows": "many"}})


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


def test_tasks_whose_route_depends_on_their_arguments_are_left_out(
    app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    """A router that reads the arguments of a call cannot be asked before there is one."""

    def by_tenant(name: str, args: Any, kwargs: Any, options: Any, **_: Any) -> str | None:
        return f"tenant-{kwargs['tenant']}" if name == "slow.work" else None

    app.conf.task_routes = (by_tenant,)
    app.amqp.flush_routes()

    with caplog.at_level(logging.WARNING, "nats"):
        names = [t.name for t in announced(app, ["celery"])]

    assert names == ["fast.add", "own.queue"]
    assert "task slow.work" in caplog.text
    assert "KeyError('tenant')" in caplog.text


def test_tasks_of_a_queue_that_the_app_does_not_know_are_left_out(
    app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    """Where no queues are made up, a route to one that is not declared leads nowhere."""
    app.conf.task_create_missing_queues = False
    app.conf.task_queues = [Queue("celery"), Queue("slow")]

    with caplog.at_level(logging.WARNING, "nats"):
        names = [t.name for t in announced(app, ["celery", "slow"])]

    assert names == ["fast.add", "slow.work"]
    assert "task own.queue" in caplog.text


def test_a_task_that_cannot_be_described_is_offered_as_it_is(
    app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    """A default value or a docstring without JSON form keeps nothing else from being told."""

    @app.task(name="odd.default", shared=False)
    def odd(points: Any = {(1, 2): "x"}) -> None:  # noqa: B006
        """A task."""

    @app.task(name="odd.text", shared=False)
    def text() -> None:
        """A task."""

    text.run.__doc__ = "\ud800"

    with caplog.at_level(logging.WARNING, "nats"):
        odd_types = [t for t in announced(app, ["celery"]) if t.name.startswith("odd.")]

    assert [t.name for t in odd_types] == ["odd.default", "odd.text"]
    assert all(accepts(t.schema, {"points": 1}) for t in odd_types)
    assert msgspec.json.encode(odd_types)
    assert "task odd.text" in caplog.text
