"""A worker's own log lines go through the processes above it unchanged."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest

from bridge import logs

LINE = (
    b'{"timestamp":"2026-01-01T00:00:00.000Z","level":"INFO","logger":"celery",'
    b'"message":"task finished","service":"shop","worker_id":"w-1","status":"success"}\n'
)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What a process configured for JSON writes; logging is as before afterwards."""
    root, stream = logging.getLogger(), io.StringIO()
    before = root.handlers, root.level
    monkeypatch.setattr("sys.stderr", stream)
    logs.configure(json=True)
    yield stream
    root.handlers, root.level = before
    logging.captureWarnings(False)


def test_own_line_is_passed_on_as_it_stands(written: io.StringIO) -> None:
    """A line in our form costs no second rendering and loses nothing."""
    logs.relay(io.BytesIO(LINE), "w-1", worker_id="w-1")

    assert written.getvalue() == LINE.decode()


def test_own_line_that_lacks_a_bound_field_gets_it(written: io.StringIO) -> None:
    """What only the parent knows is added."""
    logs.relay(io.BytesIO(LINE), "w-1", host="h")

    assert '"host":"h"' in written.getvalue()


def test_line_below_the_level_is_dropped(written: io.StringIO) -> None:
    """The parent's level holds for passed lines too."""
    logs.relay(io.BytesIO(LINE.replace(b"INFO", b"DEBUG")), "w-1", worker_id="w-1")

    assert written.getvalue() == ""
