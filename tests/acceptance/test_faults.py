"""Accepted is accepted: servers and workers die in the middle, every task ends."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import psutil

from tests.support.service import RunningService

_TIME_LIMIT_SECONDS = 90.0


def _submit(service: RunningService, count: int, seconds: float = 0.0) -> list[str]:
    """Submit over HTTP and return the ids that were answered with success."""
    request = (
        {"task_type": "sleep", "task_data": {"seconds": seconds}}
        if seconds
        else {"task_type": "noop", "task_data": {}}
    )
    with ThreadPoolExecutor(8) as threads:
        answers = list(
            threads.map(lambda _: service.call("/api/v1/tasks/submit", request), range(count))
        )
    return [answer["data"]["task_id"] for answer in answers if answer["status"] == "success"]


def _final_states(service: RunningService, task_ids: list[str]) -> dict[str, int]:
    """Wait for every task; return how many ended in which state."""
    deadline = time.monotonic() + _TIME_LIMIT_SECONDS
    states: dict[str, int] = {}

    def final(task_id: str) -> str:
        while time.monotonic() < deadline:
            answer = service.call(f"/api/v1/tasks/{task_id}?wait=20")
            if answer["status"] == "success" and answer["data"]["state"] in {"SUCCESS", "FAILURE"}:
                return str(answer["data"]["state"])
        return "NOT ENDED"

    with ThreadPoolExecutor(8) as threads:
        for state in threads.map(final, task_ids):
            states[state] = states.get(state, 0) + 1
    return states


def _processes(service: RunningService, marker: str) -> list[psutil.Process]:
    return [p for p in service.processes() if any(marker in word for word in p.cmdline())]


def test_no_accepted_task_is_lost_when_nats_is_killed(service: RunningService) -> None:
    """SIGKILL to the server right after 1,000 answers: all 1,000 finish once it is back."""
    accepted = _submit(service, 1000)

    _processes(service, "nats-server")[0].kill()

    assert len(accepted) == 1000
    assert _final_states(service, accepted) == {"SUCCESS": 1000}


def test_all_tasks_finish_when_a_worker_is_killed(service: RunningService) -> None:
    """SIGKILL to a worker with all its processes in the middle of 200 tasks."""
    accepted = _submit(service, 200, seconds=0.1)
    victim = next(p for p in _processes(service, "general-worker-1") if p.children())

    for process in [victim, *victim.children(recursive=True)]:
        process.kill()

    assert len(accepted) == 200
    assert _final_states(service, accepted) == {"SUCCESS": 200}
