"""What `up` shows when all is ready: the sample task's answer and commands to try."""

from __future__ import annotations

import json
from typing import Any, Final

import click

from bridge import probe
from bridge.errors import ServiceUnavailable
from config.settings import Settings

#: The app of this distribution, whose handlers the sample needs.
OWN_APP: Final = "tasks.app:app"
SAMPLE: Final[dict[str, Any]] = {
    "task_type": "data_processing",
    "task_data": {
        "input": "market_data.csv",
        "operation": "analyze",
        "parameters": {"window": 60, "threshold": 0.05},
    },
    "priority": "high",
    "timeout": 300,
}
HELLO: Final[dict[str, Any]] = {"task_type": "test", "task_data": {"message": "hello"}}
_WAIT_SECONDS: Final = 20
#: Rows of the sample's result that are printed.
_SHOWN_ROWS: Final = 3


def report(settings: Settings) -> None:
    """Submit the sample through the REST API, print its answer and what to try next.

    Raises ServiceUnavailable when the sample is refused or does not end well.
    """
    own = settings.celery_app == OWN_APP
    if own and not settings.api_keys_file:
        click.echo(json.dumps(_shortened(_run_sample(settings)), indent=2))
    click.echo(_commands(settings, HELLO if own else None))


def _run_sample(settings: Settings) -> dict[str, Any]:
    accepted = _call(settings, "/api/v1/tasks/submit", json.dumps(SAMPLE).encode())
    task_id = accepted["data"]["task_id"]
    finished = _call(settings, f"/api/v1/tasks/{task_id}?wait={_WAIT_SECONDS}")
    if finished["data"]["state"] != "SUCCESS":
        raise ServiceUnavailable(f"the sample task did not succeed: {json.dumps(finished)}")
    return finished


def _call(settings: Settings, path: str, body: bytes | None = None) -> dict[str, Any]:
    try:
        status, answer = probe.http_request(
            settings.host, settings.port, path, body=body, timeout_seconds=_WAIT_SECONDS + 5
        )
    except OSError as error:
        raise ServiceUnavailable(f"the API did not answer {path}: {error}") from error
    if status != 200:
        raise ServiceUnavailable(f"the API answered {path} with {status}: {answer.decode()}")
    envelope: dict[str, Any] = json.loads(answer)
    return envelope


def _shortened(envelope: dict[str, Any]) -> dict[str, Any]:
    """Return the envelope with only the first rows of each list in the result."""
    result = envelope["data"].get("result")
    if not isinstance(result, dict):
        return envelope
    shown = {
        name: [*value[:_SHOWN_ROWS], f"... {len(value) - _SHOWN_ROWS} more"]
        if isinstance(value, list) and len(value) > _SHOWN_ROWS
        else value
        for name, value in result.items()
    }
    return {**envelope, "data": {**envelope["data"], "result": shown}}


def _commands(settings: Settings, example: dict[str, Any] | None) -> str:
    """Return what to try next; without an `example` task the list of those there are."""
    base = f"http://{_url_host(settings.host)}:{settings.port}"
    key = " -H 'Authorization: Bearer YOUR_KEY'" if settings.api_keys_file else ""
    first = f"curl{key} {base}/api/v1/tasks/types"
    if example is not None:
        body = f"-H 'Content-Type: application/json' -d '{json.dumps(example)}'"
        first = f"curl{key} {body} {base}/api/v1/tasks/submit"
    lines = [
        "",
        "Ready. Try:",
        f"  {first}",
        f"  curl{key} '{base}/api/v1/tasks/TASK_ID?wait=10'",
        f"  curl{key} {base}/api/v1/status",
        f"  curl{key} {base}/api/v1/workers/status",
        f"API described at {base}/docs",
    ]
    if settings.flower.enabled:
        lines.append(f"Flower at http://{_url_host(settings.flower.host)}:{settings.flower.port}")
    return "\n".join([*lines, "Ctrl-C stops all of it.", ""])


def _url_host(host: str) -> str:
    host = probe.reachable_host(host)
    return f"[{host}]" if ":" in host else host
