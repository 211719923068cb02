"""Fixtures for every test room: real servers, and an environment nobody else has touched."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.nats import NatsServer

# On a busy machine an example may take longer than hypothesis allows; that is no error of ours.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

#: Settings a developer may have exported; no test may depend on them.
_PREFIXES = ("NATS_", "CELERY_", "FLOWER_", "BRIDGE_", "TASK_WORKER_", "WORKER_", "API_", "WEB_")
_NAMES = frozenset(
    {
        "ACK_WAIT_SECONDS",
        "ALLOW_UNAUTHENTICATED",
        "AUTOSCALE",
        "COOLDOWN_SECONDS",
        "DATA_DIR",
        "DRAIN_SECONDS",
        "ENVIRONMENT",
        "LOG_LEVEL",
        "MANUAL_HOLD_SECONDS",
        "MAX_BODY_BYTES",
        "MAX_CONCURRENT_TASKS",
        "MAX_WORKERS",
        "MIN_WORKERS",
        "RESULT_EXPIRES_SECONDS",
        "SCALE_ANSWER_SECONDS",
        "SCALE_THRESHOLD",
        "SHOW_TRACEBACKS",
        "SHUTDOWN_SECONDS",
        "TARGET_WAIT_SECONDS",
        "TASK_DATA_DIR",
    }
)
_KEPT = frozenset({"NATS_SERVER_BIN"})


@pytest.fixture(scope="session", autouse=True)
def clean_environment() -> None:
    """Remove our settings from the environment, for the tests and the processes they start."""
    for name in list(os.environ):
        if name not in _KEPT and (name in _NAMES or name.startswith(_PREFIXES)):
            del os.environ[name]


@pytest.fixture
def nats_server(tmp_path: Path) -> Iterator[NatsServer]:
    """A nats-server of this test's own, with an empty store."""
    server = NatsServer(tmp_path / "nats")
    server.start()
    yield server
    # Nobody reads its store again, so it need not be written out.
    server.kill()


@pytest.fixture(scope="session")
def shared_nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """One nats-server for tests that use names of their own and never stop it."""
    server = NatsServer(tmp_path_factory.mktemp("shared-nats"))
    server.start()
    yield server
    server.kill()
