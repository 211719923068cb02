"""What the specification shows, over HTTP, against the real processes."""

from __future__ import annotations

import csv
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import tasks
from tests.support.service import RunningService

_TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
_MARKET_DATA = Path(tasks.__file__).parent / "data" / "market_data.csv"
_EXAMPLE = {
    "task_type": "data_processing",
    "task_data": {
        "input": "market_data.csv",
        "operation": "analyze",
        "parameters": {"window": 60, "threshold": 0.05},
    },
    "priority": "high",
    "timeout": 300,
}


def _expected() -> dict[str, Any]:
    """The analysis, computed another way: exact fractions over the whole window each time."""
    with _MARKET_DATA.open(newline="") as lines:
        rows = [(row["date"], Fraction(row["price"])) for row in csv.DictReader(lines)]
    found = []
    for end in range(60, len(rows) + 1):
        mean = sum((price for _, price in rows[end - 60 : end]), Fraction()) / 60
        date, price = rows[end - 1]
        if abs(price - mean) / mean > Fraction(5, 100):
            found.append((date, float(price), float(mean)))
    return {"rows": len(rows), "first": rows[0][0], "last": rows[-1][0], "deviations": found}


def test_the_example_request_gives_the_right_analysis(service: RunningService) -> None:
    """Submitted as printed, waited for, and equal to an independent computation."""
    accepted = service.call("/api/v1/tasks/submit", _EXAMPLE)["data"]

    view = service.call(f"/api/v1/tasks/{accepted['task_id']}?wait=30")["data"]

    expected = _expected()
    result = view["result"]
    assert (accepted["queue"], accepted["priority"]) == ("celery", 6)
    assert view["state"] == "SUCCESS"
    assert result["row_count"] == expected["rows"] > 60
    assert (result["first_date"], result["last_date"]) == (expected["first"], expected["last"])
    got = [(d["date"], d["price"], round(d["mean"], 9)) for d in result["deviations"]]
    assert got == [(d, p, round(m, 9)) for d, p, m in expected["deviations"]]
    assert len(got) > 10


def test_the_shortest_request_works(service: RunningService) -> None:
    """A task needs no more than its type and its data."""
    accepted = service.call(
        "/api/v1/tasks/submit", {"task_type": "test", "task_data": {"message": "hello"}}
    )

    view = service.call(f"/api/v1/tasks/{accepted['data']['task_id']}?wait=10")["data"]

    assert (view["state"], view["result"]) == ("SUCCESS", "hello")


def test_status_has_the_exact_shape_of_the_specification(service: RunningService) -> None:
    """Every key of the printed answer is there, and nothing else beside them."""
    service.wait_for_workers(2)
    envelope = service.call("/api/v1/status")

    data = envelope["data"]
    assert list(envelope) == ["status", "message", "data", "timestamp"]
    assert envelope["message"] == "Service status retrieved successfully"
    assert _TIMESTAMP.fullmatch(envelope["timestamp"])
    assert {"service", "status", "uptime_seconds", "version", "environment", "port"} <= set(data)
    assert data["features"]["distributed_tasks"] is True
    assert set(data["worker_summary"]) >= {
        "total_workers",
        "running_workers",
        "worker_type",
        "max_concurrent_per_worker",
        "total_max_concurrent",
    }
    assert data["worker_summary"]["running_workers"] == 2
    assert data["worker_summary"]["total_max_concurrent"] == 4
    assert data["nats_info"]["connected"] is True
    assert set(data["statistics"]) >= {
        "tasks_processed",
        "tasks_failed",
        "current_active_tasks",
        "average_task_duration",
    }


def test_workers_are_listed_and_found(service: RunningService) -> None:
    """The list, the states and the statistics name the same two workers."""
    listed = service.call("/api/v1/workers")["data"]
    states = service.call("/api/v1/workers/status")["data"]
    figures = service.call("/api/v1/workers/stats")["data"]
    missing = service.call("/api/v1/workers/nobody-worker-7")

    text = [str(part) for part in (listed, states, figures)]
    assert all("general-worker-1" in t and "general-worker-2" in t for t in text)
    assert (missing["status"], missing["error_code"]) == ("error", "WORKER_NOT_FOUND")


def test_a_scale_request_is_answered_in_the_envelope(service: RunningService) -> None:
    """The printed request is understood; a wrong one names its fault."""
    answer = service.call("/api/v1/workers/scale", {"worker_count": 2})
    wrong = service.call("/api/v1/workers/scale", {"worker_count": 4000})

    assert answer["status"] == "success"
    assert wrong["error_code"] in {"INVALID_PARAMETERS", "INVALID_WORKER_CONFIG"}
    assert "worker_count" in wrong["message"]
