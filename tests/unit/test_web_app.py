"""The application without NATS: envelopes, refusals, headers, keys."""

from __future__ import annotations

import json
import logging
import os
import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest
from flask import Flask
from flask.testing import FlaskClient

from bridge.envelope import Failure, Success
from bridge.wire import BucketMirror
from config.settings import load
from web.app import create_app
from web.auth import generate
from web.resources import Resources

SUBMIT = "/api/v1/tasks/submit"


@pytest.fixture
def app() -> Flask:
    """An application whose NATS is not there: its resources are never started."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        # Bound and not listening for us any more once closed: connections are refused.
        port = taken.getsockname()[1]
    return _app(port)


def _app(port: int, **environ: str) -> Flask:
    settings = load({"NATS_URL": f"nats://127.0.0.1:{port}", **environ})
    return create_app(settings, Resources(settings), started_epoch=0.0)


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def _failure(response: Any) -> Failure:
    assert response.mimetype == "application/json"
    return msgspec.json.decode(response.data, type=Failure)


def test_health_needs_nothing(client: FlaskClient) -> None:
    """The process says that it is alive though NATS is not."""
    response = client.get("/health")

    body = msgspec.json.decode(response.data, type=Success)
    assert response.status_code == 200
    assert body.data["status"] == "healthy"


def test_status_answers_without_nats(client: FlaskClient) -> None:
    """Without NATS the status is there, has the specified keys, and says that it is degraded."""
    data = client.get("/api/v1/status").json["data"]

    assert {
        "service", "status", "uptime_seconds", "version", "environment", "port", "features",
        "worker_summary", "nats_info", "statistics", "degraded_reason",
    } == set(data)  # fmt: skip
    assert data["status"] == "degraded"
    assert data["nats_info"]["connected"] is False


def test_not_ready_without_nats(client: FlaskClient) -> None:
    """Readiness needs NATS, and its absence is told with a time to try again."""
    response = client.get("/ready")

    assert response.status_code == 503
    assert _failure(response).error_code == "NATS_CONNECTION_ERROR"
    assert response.headers["Retry-After"] == "2"


def test_submission_without_nats_names_nats(client: FlaskClient) -> None:
    """A good request is 503 while NATS is away, and says so."""
    response = client.post(SUBMIT, json={"task_type": "test", "task_data": {}})

    assert (response.status_code, _failure(response).error_code) == (503, "NATS_CONNECTION_ERROR")


@pytest.mark.parametrize(
    ("body", "code", "told"),
    [
        (b"{", "INVALID_PARAMETERS", "not valid JSON"),
        (b'{"task_type": "a", "task_type": "b"}', "INVALID_PARAMETERS", "'task_type' twice"),
        (b'{"task_type": "a", "task_data": {"x": NaN}}', "INVALID_PARAMETERS", "NaN"),
        (b'{"task_type": 1}', "INVALID_TASK_DATA", "task_type:"),
        (b'{"task_type": "a", "nonsense": 1}', "INVALID_TASK_DATA", "nonsense: unknown field"),
        (b"", "INVALID_PARAMETERS", "body is empty"),
    ],
)
def test_bad_body_is_refused(client: FlaskClient, body: bytes, code: str, told: str) -> None:
    """A body that is no JSON or no submission is a 400 that says what is wrong."""
    response = client.post(SUBMIT, data=body, content_type="application/json")

    refused = _failure(response)
    assert (400, code) == (response.status_code, refused.error_code)
    assert told in refused.message


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_other_content_type_is_refused(client: FlaskClient, content_type: str | None) -> None:
    """Only JSON is taken, and the refusal says so."""
    response = client.post(SUBMIT, data=b"{}", content_type=content_type)

    assert response.status_code == 415
    assert "application/json" in _failure(response).message


def test_body_over_the_limit_is_refused_unread(client: FlaskClient) -> None:
    """A body over the limit is 413, whatever it holds."""
    response = client.post(SUBMIT, data=b" " * (1 << 20) + b"{}", content_type="application/json")

    assert response.status_code == 413
    assert "1048576 bytes" in _failure(response).message


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/nothing/<script>", 404),
        ("GET", "/api/v1/tasks", 404),
        ("GET", "/health/", 404),
        ("GET", "/docs/../secret", 404),
        ("GET", "/docs/other.js", 404),
        ("PUT", "/health", 405),
        ("PUT", SUBMIT, 405),
        ("GET", "/api/v1/tasks/x?wait=61", 400),
        ("GET", "/api/v1/tasks/x?wait=nan", 400),
        ("GET", "/api/v1/tasks/x?wait=1&wait=2", 400),
        ("GET", "/api/v1/tasks/x?wat=1", 400),
        ("GET", "/api/v1/status?verbose=1", 400),
        ("DELETE", "/api/v1/tasks/x?terminate=maybe", 400),
        ("GET", "/api/v1/workers/none", 404),
    ],
)
def test_every_refusal_is_an_envelope(
    client: FlaskClient, method: str, path: str, status: int
) -> None:
    """Wrong places, methods and parameters are answered in the envelope, never in HTML."""
    response = client.open(path, method=method)

    assert status == response.status_code
    assert _failure(response).status == "error"


def test_wrong_method_names_the_right_ones(client: FlaskClient) -> None:
    """A 405 carries Allow, and its message says the same."""
    response = client.put("/health")

    assert response.headers["Allow"] == "GET, HEAD, OPTIONS"
    assert "Send GET, HEAD, OPTIONS." in _failure(response).message


def test_unexpected_error_is_logged_once_under_its_id(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug answers 500 with an id and no detail; the log has the traceback under that id."""
    monkeypatch.setattr("web.figures.status", lambda: 1 / 0)

    with caplog.at_level(logging.ERROR):
        response = client.get("/api/v1/status")

    refused = _failure(response)
    [logged] = caplog.records
    assert (response.status_code, refused.error_code) == (500, "INTERNAL_ERROR")
    assert "ZeroDivision" not in refused.message
    assert refused.message.rpartition(" ")[2].rstrip(".") in logged.getMessage()
    assert logged.exc_info is not None


@pytest.mark.parametrize("path", ["/health", "/nothing", "/openapi.json", "/docs"])
def test_security_headers_are_everywhere(client: FlaskClient, path: str) -> None:
    """Each answer forbids sniffing, framing, caching and loading from elsewhere."""
    headers = client.get(path).headers

    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    ("body", "code", "told"),
    [
        ({"worker_count": 5}, "NATS_CONNECTION_ERROR", "no NATS server"),
        ({"worker_count": 0}, "INVALID_WORKER_CONFIG", "GET /api/v1/workers/scaling"),
        ({"worker_count": 11}, "INVALID_WORKER_CONFIG", "1 to 10"),
        ({"worker_count": "5"}, "INVALID_WORKER_CONFIG", "worker_count:"),
        ({"workers": 5}, "INVALID_WORKER_CONFIG", "workers: unknown field"),
        ({"concurrency": 6}, "INVALID_WORKER_CONFIG", "1 to 5"),
        ({"worker_count": 5, "hold_seconds": 0}, "INVALID_WORKER_CONFIG", "hold_seconds:"),
        ({"mode": "manual"}, "INVALID_WORKER_CONFIG", 'Send "auto"'),
        ({"mode": "auto", "worker_count": 5}, "INVALID_PARAMETERS", "mode: send it alone"),
        ({"hold_seconds": 5}, "INVALID_PARAMETERS", "worker_count: send it"),
        ({}, "INVALID_PARAMETERS", "worker_count: send it"),
    ],
)
def test_scale_validates_before_it_asks_a_controller(
    client: FlaskClient, body: Any, code: str, told: str
) -> None:
    """A wrong scale request names its fault, also without NATS; a good one needs NATS."""
    refused = _failure(client.post("/api/v1/workers/scale", json=body))

    assert code == refused.error_code
    assert told in refused.message


def test_keys_guard_all_but_probes_and_the_page(app: Flask, tmp_path: Path) -> None:
    """With keys on, only health, readiness and the static page are open."""
    key, line = generate("shop")
    path = tmp_path / "keys"
    path.write_text(line, encoding="utf-8")
    guarded = _app(1, API_KEYS_FILE=str(path))
    client = guarded.test_client()

    for rule in guarded.url_map.iter_rules():
        place = rule.rule.replace("<task_id>", "x").replace("<worker_id>", "x")
        place = place.replace("<name>", "docs.js")
        method = "POST" if "POST" in (rule.methods or ()) else "GET"
        response = client.open(place, method=method)
        is_open = place in {"/health", "/ready", "/docs", "/docs/docs.js"}
        assert is_open == (response.status_code != 401), place
    response = client.get("/api/v1/status", headers={"Authorization": f"Bearer {key}"})
    assert response.status_code == 200
    refused = client.get("/api/v1/status")
    assert (
        _failure(refused).error_code,
        refused.headers["WWW-Authenticate"],
    ) == ("UNAUTHORIZED", "Bearer")


def test_page_loads_nothing_from_elsewhere(client: FlaskClient) -> None:
    """The page and its parts name no other place, and its policy lets none be loaded."""
    page = client.get("/docs")
    parts = b"".join(client.get(f"/docs/{name}").data for name in ("docs.js", "docs.css"))

    assert page.mimetype == "text/html"
    assert b"//" not in page.data.replace(b"<!doctype", b"")
    assert b"http" not in parts
    assert "connect-src 'self'" in page.headers["Content-Security-Policy"]


def test_resources_open_no_connection_before_they_start(app: Flask) -> None:
    """Making an application starts no thread, so that a process may still fork."""
    resources = Resources(load(dict(os.environ)))

    assert isinstance(resources.workers, BucketMirror)
    assert not resources.nats_connected


def test_document_is_json(client: FlaskClient) -> None:
    """The OpenAPI document is served as it is, outside the envelope."""
    document = json.loads(client.get("/openapi.json").data)

    assert document["openapi"] == "3.1.0"
