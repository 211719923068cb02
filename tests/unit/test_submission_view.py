"""Task states and views: what is stored is told truthfully."""

from __future__ import annotations

from typing import Any

import pytest

from bridge.errors import ErrorCode
from bridge.records import ActiveTask, TaskRecord
from bridge.submission.result import decode_meta
from bridge.submission.view import Known, ResultMeta, TaskFailure, revoked_meta, state_of, view_of

_NOW = 1_800_000_000.0


def _record(**fields: Any) -> TaskRecord:
    return TaskRecord(
        task_id="i",
        task_type="t",
        queue="q",
        priority=5,
        submitted_at="2027-01-15T07:59:00.000Z",
        **fields,
    )


def _active(started: float = _NOW - 1) -> ActiveTask:
    return ActiveTask(task_id="i", task_type="t", worker_id="w1", started_epoch=started)


def _meta(status: str, **fields: Any) -> ResultMeta:
    return ResultMeta(status=status, **fields)


@pytest.mark.parametrize(
    ("known", "state"),
    [
        (Known(record=_record()), "QUEUED"),
        (Known(record=_record(eta_epoch=_NOW + 5)), "SCHEDULED"),
        (Known(record=_record(eta_epoch=_NOW - 5)), "QUEUED"),
        (Known(record=_record(), active=_active()), "STARTED"),
        (Known(record=_record(), meta=_meta("PENDING")), "QUEUED"),
        (Known(record=_record(), meta=_meta("STARTED")), "STARTED"),
        (Known(record=_record(), meta=_meta("PROGRESS"), active=_active()), "PROGRESS"),
        (Known(record=_record(), meta=_meta("RETRY", started_epoch=_NOW - 9)), "RETRY"),
        (
            Known(
                record=_record(),
                meta=_meta("RETRY", started_epoch=_NOW - 9),
                active=_active(_NOW - 9),
            ),
            "RETRY",
        ),
        (
            Known(record=_record(), meta=_meta("RETRY", started_epoch=_NOW - 9), active=_active()),
            "STARTED",
        ),
        (Known(record=_record(), meta=_meta("SUCCESS"), active=_active()), "SUCCESS"),
        (Known(meta=_meta("FAILURE")), "FAILURE"),
        (Known(record=_record(eta_epoch=_NOW + 5), meta=_meta("REVOKED")), "REVOKED"),
    ],
)
def test_state(known: Known, state: str) -> None:
    """The state follows from record, result and running tasks together."""
    assert state == state_of(known, _NOW)


def test_success_shows_result_and_times() -> None:
    """A finished task tells its result, worker, times and runtime."""
    meta = _meta(
        "SUCCESS",
        result={"rows": 3},
        worker="w1",
        retries=2,
        started_epoch=_NOW - 2.5,
        date_done="2027-01-15T08:00:00+00:00",
    )

    view = view_of("i", Known(record=_record(), meta=meta), _NOW)

    assert view.result == {"rows": 3}
    assert (view.worker, view.retries, view.runtime_seconds) == ("w1", 2, 2.5)
    assert view.started_at == "2027-01-15T07:59:57.500Z"
    assert view.finished_at == "2027-01-15T08:00:00.000Z"
    assert view.error is None


@pytest.mark.parametrize(
    "done", ["2027-01-15T08:00:00", "2027-01-15T08:00:00Z", "2027-01-15T10:00:00+02:00"]
)
def test_end_time_is_utc_whatever_form_celery_wrote(done: str) -> None:
    """Celery's time without an offset is UTC."""
    view = view_of("i", Known(meta=_meta("SUCCESS", date_done=done)), _NOW)

    assert view.finished_at == "2027-01-15T08:00:00.000Z"


@pytest.mark.parametrize("shown", [True, False])
def test_failure_shows_error_and_traceback_only_on_demand(shown: bool) -> None:
    """A failed task tells type and message, and the traceback only where that is switched on."""
    meta = _meta(
        "FAILURE",
        result={"exc_type": "ValueError", "exc_message": ["no", 5], "exc_module": "builtins"},
        traceback="Traceback ...",
    )

    view = view_of("i", Known(record=_record(), meta=meta), _NOW, show_tracebacks=shown)

    expected = TaskFailure(
        error_code=ErrorCode.TASK_EXECUTION_ERROR,
        type="ValueError",
        message="no, 5",
        traceback="Traceback ..." if shown else None,
    )
    assert expected == view.error
    assert view.result is None


def test_state_of_its_own_shows_what_it_carries() -> None:
    """A task that reports progress shows it as meta."""
    meta = _meta("PROGRESS", result={"current": 1, "total": 4})

    view = view_of("i", Known(record=_record(), meta=meta), _NOW)

    assert view.meta == {"current": 1, "total": 4}


def test_running_task_shows_who_runs_it() -> None:
    """A running task of which no result is stored yet tells worker and start."""
    view = view_of("i", Known(record=_record(), active=_active()), _NOW)

    assert (view.worker, view.started_at) == ("w1", "2027-01-15T07:59:59.000Z")


def test_cancelled_task_reads_like_one_that_celery_revoked() -> None:
    """The result that a cancellation writes is read back as Celery's own REVOKED."""
    meta = decode_meta(revoked_meta("i", _NOW))

    view = view_of("i", Known(record=_record(), meta=meta), _NOW)

    assert view.state == "REVOKED"
    assert view.error is not None
    assert (view.error.type, view.error.message) == ("TaskRevokedError", "revoked")
    assert view.finished_at == "2027-01-15T08:00:00.000Z"
