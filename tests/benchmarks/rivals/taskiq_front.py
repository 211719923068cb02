"""Rival: FastAPI with taskiq-nats, each task a JetStream message.

    uvicorn --workers 2 --no-access-log taskiq_front:front
    taskiq worker taskiq_front:broker

NATS_URL names the server.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException
from nats.js.api import RetentionPolicy, StreamConfig
from pydantic import BaseModel
from taskiq import AsyncTaskiqDecoratedTask
from taskiq_nats import PullBasedJetStreamBroker

broker = PullBasedJetStreamBroker(
    os.environ.get("NATS_URL", "nats://localhost:4222"),
    # A work queue, as our own tasks are kept; the default would keep finished tasks for ever.
    stream_config=StreamConfig(retention=RetentionPolicy.WORK_QUEUE),
    pull_consume_batch=100,
)


@broker.task(task_name="noop")
async def noop() -> None:
    """Do nothing."""


TASKS: dict[str, AsyncTaskiqDecoratedTask[..., Any]] = {"noop": noop}


class Submission(BaseModel):
    """What a client posts."""

    task_type: str
    task_data: dict[str, Any] = {}


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Hold one NATS connection per server process."""
    await broker.startup()
    yield
    await broker.shutdown()


front = FastAPI(lifespan=lifespan)


@front.post("/submit")
async def submit(submission: Submission) -> dict[str, Any]:
    """Queue one task, answered after its PubAck; answers its id."""
    task = TASKS.get(submission.task_type)
    if task is None:
        raise HTTPException(400, "unknown task_type")
    sent = await task.kiq(**submission.task_data)
    return {"status": "success", "data": {"task_id": sent.task_id}}
