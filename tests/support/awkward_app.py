"""An app of which much cannot be announced; every task of it runs all the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypedDict

from celery import Celery
from kombu import Queue
from pydantic import BaseModel

if TYPE_CHECKING:
    from decimal import Decimal


class Order(TypedDict):
    """Only type checkers can read its member."""

    price: Decimal


class Job(BaseModel):
    """No JSON Schema tells its field."""

    on_done: Callable[[], None]


def route(name: str, args: Any, kwargs: Any, options: Any, **_: Any) -> str | None:
    """Look at a call's arguments, or send it to a queue that nobody declared."""
    if name == "awkward.tenant":
        return f"tenant-{kwargs['tenant']}"
    return "elsewhere" if name == "awkward.elsewhere" else None


app = Celery("awkward")
app.conf.update(
    task_default_queue="awkward",
    task_queues=[Queue("awkward")],
    task_create_missing_queues=False,
    task_routes=(route,),
)


@app.task(name="awkward.order")
def order(order: Order) -> Any:
    return order["price"]


@app.task(name="awkward.job")
def job(job: Job | None = None) -> None:
    """Take a model without schema."""


@app.task(name="awkward.tenant")
def tenant(tenant: str) -> None:
    """Go to a queue that only a call's arguments tell."""


@app.task(name="awkward.elsewhere")
def elsewhere() -> None:
    """Go to a queue that is not declared."""


def one_of_many(number: int) -> int:
    return number


one_of_many.__doc__ = "Have much to say. " * 30
for each in range(200):
    app.task(name=f"awkward.many{each}")(one_of_many)
