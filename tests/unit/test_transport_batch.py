"""Which messages can be made from one, and what is told of those that are not stored."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from celery import Celery, Task, signals
from kombu.serialization import dumps

from bridge.bulk import can_be_alike
from bridge.names import Names
from bridge.transport.batch import BatchNotStored
from bridge.transport.headers import encode_message
from bridge.transport.outgoing import addressed
from bridge.transport.template import TaskTemplate

ID = "4cc7438e-afd4-4f8f-a2f3-f46567e7ca77"
OTHER_ID = "00000000-0000-4000-8000-000000000001"


def do_nothing(*args: Any, **kwargs: Any) -> None: ...


@pytest.fixture
def app() -> Celery:
    return Celery("unit", broker="memory://", set_as_current=False)


@pytest.fixture
def task(app: Celery) -> Task:
    return app.task(do_nothing, name="unit.task")


def message_of(app: Celery, protocol: int, serializer: str, args: Any, kwargs: Any) -> Any:
    """A call as it goes to JetStream, made by Celery and our codec."""
    made = app.amqp.task_protocols[protocol](ID, "unit.task", args, kwargs)
    content_type, content_encoding, body = dumps(made.body, serializer)
    properties = {
        **made.properties,
        "content_type": content_type,
        "content_encoding": content_encoding,
    }
    fields, payload = encode_message(body, headers=made.headers, properties=properties)
    return addressed(Names(), "q", made.headers, properties, fields, payload)


def test_template_gives_the_message_celery_would(app: Celery) -> None:
    """Its own id and arguments, and nothing else is changed."""
    names = Names()
    template = TaskTemplate.of(names, message_of(app, 2, "json", (1,), {}), (1,), {})
    assert template is not None

    made = template.message(ID, ("é", None), {"word": "x"}, "('é', None)", "{'word': 'x'}")

    assert made == message_of(app, 2, "json", ("é", None), {"word": "x"})


@pytest.mark.parametrize(("protocol", "serializer"), [(1, "json"), (2, "yaml"), (2, "pickle")])
def test_no_template_of_other_messages(app: Celery, protocol: int, serializer: str) -> None:
    """Where the body is another, each message has to be made by Celery."""
    message = message_of(app, protocol, serializer, (1,), {})

    assert TaskTemplate.of(Names(), message, (1,), {}) is None


class OwnApplyAsync(Task):
    """A base class that does something of its own with every call."""

    def apply_async(self, *args: Any, **kwargs: Any) -> Any:
        return super().apply_async(*args, **kwargs)


def test_ordinary_task_can_be_alike(app: Celery, task: Task) -> None:
    """Options and routes by name are the same for all calls."""
    app.conf.task_routes = {"unit.*": {"queue": "q"}}

    assert can_be_alike(task, {"priority": 3, "countdown": 5, "queue": "q"})


@pytest.mark.parametrize(
    "settings",
    [
        {"task_routes": (lambda name, args, kwargs, options, task=None, **kw: None,)},
        {"task_send_sent_event": True},
    ],
)
def test_settings_that_look_at_each_call(app: Celery, task: Task, settings: Any) -> None:
    """A router that is code may send each call elsewhere; events tell of each one."""
    app.conf.update(settings)

    assert not can_be_alike(task, {})


def test_own_functions_are_called_for_each(
    app: Celery, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a base class, or put there by a library that instruments Celery."""
    assert not can_be_alike(app.task(do_nothing, name="unit.own", base=OwnApplyAsync), {})
    original = Task.apply_async

    def instrumented(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs)

    monkeypatch.setattr(Task, "apply_async", instrumented)
    assert not can_be_alike(task, {})


def test_receivers_of_publish_signals_are_called_for_each(task: Task) -> None:
    """They may change headers and body of each message."""

    def receive(**_: Any) -> None: ...

    signals.before_task_publish.connect(receive)
    try:
        assert not can_be_alike(task, {})
    finally:
        signals.before_task_publish.disconnect(receive)


def test_arguments_shown_as_the_caller_says(task: Task) -> None:
    """`argsrepr` hides secrets: it is the caller's, not made from the arguments."""
    assert not can_be_alike(task, {"argsrepr": "(secret)"})


def test_error_tells_what_to_do_and_survives_pickling() -> None:
    """Both kinds with their reasons, and Celery may carry it from a task to its caller."""
    error = BatchNotStored({"a": "too large"}, {str(n): "time was up" for n in range(9)})

    assert "1 not stored (a: too large): send them again" in str(error)
    assert "9 may be stored or not (0: time was up, " in str(error)
    assert "8:" not in str(error)
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.refused, copy.in_doubt) == (error.refused, error.in_doubt)
