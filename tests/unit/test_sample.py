"""What `up` prints when it is ready."""

from __future__ import annotations

import pytest

from bridge.sample import report
from config.settings import load


def test_foreign_app_is_asked_for_its_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    """Our example task would be refused there, so the list of task types comes first."""
    report(load({"CELERY_APP": "shop:app", "API_PORT": "8091"}))

    printed = capsys.readouterr().out
    assert "curl http://127.0.0.1:8091/api/v1/tasks/types\n" in printed
    assert "/api/v1/tasks/submit" not in printed


def test_own_app_gets_an_example_that_can_be_pasted(capsys: pytest.CaptureFixture[str]) -> None:
    """With API keys no sample runs, and each command has a place for the key."""
    report(load({"API_KEYS_FILE": "keys", "API_HOST": "0.0.0.0"}))

    commands = [line for line in capsys.readouterr().out.splitlines() if "curl" in line]
    assert len(commands) == 4
    assert all("Authorization: Bearer YOUR_KEY" in command for command in commands)
    assert '{"task_type": "test", "task_data": {"message": "hello"}}' in commands[0]
    assert "http://127.0.0.1:8090/api/v1/tasks/submit" in commands[0]
