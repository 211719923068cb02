"""Many calls of one task: each stored as `apply_async` stores it, at a fraction of its time.

What is the same for all calls (options, route, most of the message) Celery works out once, for
the first; the others are made from its message. See docs/handlers.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

from celery import Task, signals
from celery.app import amqp as celery_amqp
from celery.app import base as celery_base
from celery.app import task as celery_task
from celery.app.routes import MapRoute
from celery.result import AsyncResult
from celery.utils.saferepr import saferepr
from kombu.exceptions import EncodeError
from kombu.utils.uuid import uuid

from bridge.transport.batch import BatchNotStored, PublishBatch
from bridge.transport.template import TaskTemplate
from bridge.wire import PayloadTooLarge

#: args and kwargs of one call
Call = tuple[Sequence[Any], Mapping[str, Any]]

_NOT_SENT = "not sent, for the connection broke before its turn"


def apply_many(task: Task, calls: Iterable[Call], **options: Any) -> list[AsyncResult]:
    """Call `task` with each args and kwargs of `calls`; return once every message is stored.

    `options` are those of `Task.apply_async` but for `task_id` and `producer`, and hold for all
    calls; `countdown` and `expires` count from the first. Works on every broker, in time on a
    `nats://` one.

    Raises TypeError before anything is sent where arguments do not fit the task, kombu's
    OperationalError where no broker can be reached, and BatchNotStored, at the end, where some
    calls were not stored or may not be: all others are, and its `results` are those of all calls.
    """
    calls = list(calls)
    check_arguments = getattr(task, "__header__", None) if task.typing else None
    if check_arguments is not None:
        for args, kwargs in calls:
            check_arguments(*args, **kwargs)
    sending = _Sending(task, options)
    try:
        with task.app.producer_or_acquire() as producer, producer.batch() as batch:
            for args, kwargs in calls:
                sending.call(producer, batch, args, kwargs)
    except BatchNotStored as error:
        sending.note(error)
    if sending.refused or sending.in_doubt:
        raise BatchNotStored(sending.refused, sending.in_doubt, sending.results)
    return sending.results


class _Sending:
    """The calls of one `apply_many` on their way, and what became of them."""

    def __init__(self, task: Task, options: Mapping[str, Any]) -> None:
        self.results: list[AsyncResult] = []
        #: task id -> reason, as in BatchNotStored
        self.refused: dict[str, str] = {}
        self.in_doubt: dict[str, str] = {}
        self._task = task
        self._app = task.app
        self._options = options
        self._can_be_alike = can_be_alike(task, options)
        self._template: TaskTemplate | None = None
        #: the result of the call that the template is from
        self._first: AsyncResult = None

    def note(self, error: BatchNotStored) -> None:
        """Remember which messages of a window are not stored."""
        self.refused |= error.refused
        self.in_doubt |= error.in_doubt

    def call(
        self, producer: Any, batch: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        """Put one call into the batch, where the connection still stands."""
        task_id = uuid()
        result = None
        try:
            if self.in_doubt:
                self.refused[task_id] = _NOT_SENT
            elif self._template is not None:
                result = self._add(producer, batch.state.session, task_id, args, kwargs)
            else:
                result = self._task.apply_async(
                    args, kwargs, task_id=task_id, producer=producer, **self._options
                )
                self._learn(batch.state.session, result, args, kwargs)
        except (PayloadTooLarge, EncodeError) as error:
            self.refused[task_id] = str(error)
        except BatchNotStored as error:
            self.note(error)
        self.results.append(self._app.AsyncResult(task_id) if result is None else result)

    def _learn(
        self, session: Any, result: AsyncResult, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        """Make the message just sent by Celery the template of the next ones, if it can be."""
        if not self._can_be_alike:
            return
        self._can_be_alike = False
        if isinstance(session, PublishBatch) and len(session.last) == 1:
            names, [message] = session.channel.broker.names, session.last
            self._template = TaskTemplate.of(names, message, args, kwargs)
            self._first = result

    def _add(
        self,
        producer: Any,
        session: PublishBatch,
        task_id: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> AsyncResult:
        """Do what `Celery.send_task` does for each call."""
        assert self._template is not None
        app = self._app
        levels = app.conf.task_repr_maxlevels
        message = self._template.message(
            task_id,
            args,
            kwargs,
            saferepr(args, app.amqp.argsrepr_maxsize, maxlevels=levels),
            saferepr(kwargs, app.amqp.kwargsrepr_maxsize, maxlevels=levels),
        )
        if not self._first.ignored:
            app.backend.on_task_call(producer, task_id)
        session.add(task_id, message)
        result = type(self._first)(task_id)
        result.ignored = self._first.ignored
        parent = app.current_worker_task if self._options.get("add_to_parent", True) else None
        if parent:
            parent.add_trail(result)
        return result


def can_be_alike(task: Task, options: Mapping[str, Any]) -> bool:
    """True where nothing looks at a single call, so that all messages can be made from one.

    Not so with a router that is code, with receivers of Celery's publish signals, task-sent
    events, pydantic arguments, arguments shown as the caller says, or where somebody (an app, a
    library that instruments Celery) has put a function of their own in the way.
    """
    app = task.app
    receivers = (signals.before_task_publish, signals.after_task_publish, signals.task_sent)
    return (
        all(isinstance(route, MapRoute) for route in app.amqp.routes)
        and not any(signal.receivers for signal in receivers)
        and not app.conf.task_send_sent_event
        and task._dump_pydantic_arguments is None
        and options.keys().isdisjoint({"argsrepr", "kwargsrepr"})
        and _is_of(celery_task, task.apply_async, task.shadow_name)
        and _is_of(celery_base, app.send_task)
        and _is_of(celery_amqp, app.amqp.create_task_message, app.amqp.send_task_message)
    )


def _is_of(module: ModuleType, *functions: Any) -> bool:
    # Not by name, which a decorator may have copied.
    return all(getattr(f, "__globals__", None) is vars(module) for f in functions)
