"""The whole service, started once for a file of tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.service import RunningService


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """Two workers with two processes each; a dead worker's tasks are back after 3 seconds."""
    running = RunningService(
        tmp_path_factory.mktemp("service"),
        WORKER_COUNT="2",
        ACK_WAIT_SECONDS="3",
        FLOWER_BASIC_AUTH="operator:secret",
    )
    try:
        running.start()
        yield running
    finally:
        running.clean_up()
