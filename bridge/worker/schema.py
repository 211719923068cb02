"""What a Celery app can run, with a JSON Schema for the keyword arguments of each task. Pure."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable
from typing import Any, get_type_hints

import msgspec

from bridge.records import TaskType

logger = logging.getLogger("nats")

_REF_TEMPLATE = "#/$defs/{name}"
_BUILT_IN_PREFIX = "celery."
#: Of a docstring only the first paragraph is announced.
_MAX_DOC_CHARACTERS = 500


def task_types(app: Any, queues: Iterable[str]) -> list[TaskType]:
    """Return the tasks of `app` that go to one of `queues`; Celery's own are left out."""
    wanted = set(queues)
    found = []
    for name, task in sorted(app.tasks.items()):
        if name.startswith(_BUILT_IN_PREFIX):
            continue
        queue = _queue_of(app, name, task)
        if queue not in wanted:
            continue
        schema = arguments_schema(task.run)
        if schema is None:
            logger.warning("task %s takes positional-only arguments: not offered over REST", name)
            continue
        found.append(
            TaskType(
                name=name,
                queue=queue,
                schema=schema,
                doc=_first_paragraph(task.run.__doc__ or ""),
                ignore_result=bool(task.ignore_result),
            )
        )
    return found


def _queue_of(app: Any, name: str, task: Any) -> str:
    route = app.amqp.router.route(task._get_exec_options(), name, (), {})
    queue = route.get("queue") or app.conf.task_default_queue
    return str(getattr(queue, "name", queue))


def _first_paragraph(doc: str) -> str:
    return " ".join(inspect.cleandoc(doc).split("\n\n")[0].split())[:_MAX_DOC_CHARACTERS]


def arguments_schema(function: Any) -> dict[str, Any] | None:
    """Return the JSON Schema of a call by keyword; None where it cannot be made by keyword.

    Hints that no schema can be made of, and parameters without one, accept anything. Pydantic
    models bring their own schema.
    """
    hints = _hints(function)
    properties: dict[str, Any] = {}
    required: list[str] = []
    definitions: dict[str, Any] = {}
    open_ended = False
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            open_ended = True
        elif parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            return None
        elif parameter.kind is not inspect.Parameter.VAR_POSITIONAL:
            properties[parameter.name] = _schema_of(
                hints.get(parameter.name, Any), parameter.default, definitions
            )
            if parameter.default is inspect.Parameter.empty:
                required.append(parameter.name)
    schema: dict[str, Any] = {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": open_ended,
    }
    if definitions:
        schema["$defs"] = definitions
    return schema


def _hints(function: Any) -> dict[str, Any]:
    try:
        return get_type_hints(function, include_extras=True)
    except Exception as error:
        logger.warning("hints of %s cannot be read: %r", function, error)
        return {}


def _schema_of(hint: Any, default: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    if hasattr(hint, "model_json_schema"):
        schema: dict[str, Any] = hint.model_json_schema(
            ref_template=_REF_TEMPLATE.replace("name", "model")
        )
        definitions.update(schema.pop("$defs", {}))
    else:
        schema = _from_msgspec(hint, definitions)
    if default is not inspect.Parameter.empty:
        try:
            schema = {**schema, "default": msgspec.to_builtins(default)}
        except TypeError:
            logger.debug("default %r has no JSON form", default)
    return schema


def _from_msgspec(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    try:
        (schema,), components = msgspec.json.schema_components([hint], ref_template=_REF_TEMPLATE)
    except TypeError as error:
        logger.warning("no JSON Schema for %r, it accepts anything: %s", hint, error)
        return {}
    for component in components.values():
        # A misspelt key is a mistake at the door, not a surprise in the handler.
        if "properties" in component:
            component.setdefault("additionalProperties", False)
    definitions.update(components)
    return schema
