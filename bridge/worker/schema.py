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
#: JSON Schema of a call that nothing is known of
ANYTHING: dict[str, Any] = {"type": "object"}


def task_types(app: Any, queues: Iterable[str]) -> list[TaskType]:
    """Return the tasks of `app` that go to one of `queues`; Celery's own are left out."""
    wanted = set(queues)
    found = []
    for name, task in sorted(app.tasks.items()):
        if name.startswith(_BUILT_IN_PREFIX):
            continue
        queue = _queue_of(app, name, task)
        if queue is not None and queue in wanted:
            task_type = _task_type(name, queue, task)
            if task_type is not None:
                found.append(task_type)
    return found


def _queue_of(app: Any, name: str, task: Any) -> str | None:
    try:
        route = app.amqp.router.route(task._get_exec_options(), name, (), {})
    except Exception as error:
        # Routers are the user's own code, and may need a call's arguments.
        logger.warning(
            "task %s: its queue cannot be told without a call (%r): not offered over REST. "
            "Route it by its name alone if it should be.",
            name,
            error,
        )
        return None
    queue = route.get("queue") or app.conf.task_default_queue
    return str(getattr(queue, "name", queue))


def _task_type(name: str, queue: str, task: Any) -> TaskType | None:
    bare = TaskType(name=name, queue=queue, schema=ANYTHING, ignore_result=bool(task.ignore_result))
    try:
        schema = arguments_schema(task.run, name)
        if schema is None:
            logger.warning("task %s takes positional-only arguments: not offered over REST", name)
            return None
        doc = _first_paragraph(task.run.__doc__ or "")
        described = msgspec.structs.replace(bare, schema=schema, doc=doc)
        msgspec.json.encode(described)
    except Exception as error:
        # Signatures and docstrings are the user's own, and no reason for a worker not to start.
        logger.warning(
            "task %s cannot be described (%r): over REST it accepts any arguments. Correct its "
            "signature or docstring if they should be checked.",
            name,
            error,
        )
        return bare
    return described


def _first_paragraph(doc: str) -> str:
    return " ".join(inspect.cleandoc(doc).split("\n\n")[0].split())[:_MAX_DOC_CHARACTERS]


def arguments_schema(function: Any, task: str) -> dict[str, Any] | None:
    """Return the JSON Schema of a call by keyword; None where it cannot be made by keyword.

    `task` is its name in the log.

    Hints that no schema can be made of, and parameters without one, accept anything. Pydantic
    models bring their own schema.
    """
    hints = _hints(function, task)
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
            hint = hints.get(parameter.name, Any)
            properties[parameter.name] = {
                **_schema_of(hint, definitions, f"task {task}, argument {parameter.name}"),
                **_default(parameter.default),
            }
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


def _hints(function: Any, task: str) -> dict[str, Any]:
    try:
        return get_type_hints(function, include_extras=True)
    except Exception as error:
        logger.warning(
            "task %s: its type hints cannot be read (%r), its arguments accept anything. Import "
            "what they name outside `if TYPE_CHECKING` if they should be checked.",
            task,
            error,
        )
        return {}


def _schema_of(hint: Any, definitions: dict[str, Any], where: str) -> dict[str, Any]:
    make = _from_model if hasattr(hint, "model_json_schema") else _from_msgspec
    try:
        schema, components = make(hint)
    except Exception as error:
        # Whatever msgspec, Pydantic and the user's own classes raise.
        logger.warning(
            "%s: no JSON Schema for %r (%r), it accepts anything. Correct the hint or those of "
            "its fields if it should be checked.",
            where,
            hint,
            error,
        )
        return {}
    definitions.update(components)
    return schema


def _from_model(hint: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    schema = hint.model_json_schema(ref_template=_REF_TEMPLATE.replace("name", "model"))
    return schema, schema.pop("$defs", {})


def _from_msgspec(hint: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    (schema,), components = msgspec.json.schema_components([hint], ref_template=_REF_TEMPLATE)
    for component in components.values():
        # A misspelt key is a mistake at the door, not a surprise in the handler.
        if "properties" in component:
            component.setdefault("additionalProperties", False)
    return schema, components


def _default(value: Any) -> dict[str, Any]:
    if value is inspect.Parameter.empty:
        return {}
    try:
        return {"default": msgspec.json.decode(msgspec.json.encode(value))}
    except Exception:
        logger.debug("default %r has no JSON form", value)
        return {}
