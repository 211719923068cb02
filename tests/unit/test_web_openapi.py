"""The OpenAPI document: it tells of every endpoint, and of nothing else."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema_rs
import pytest

from config.settings import load
from web import openapi
from web.app import create_app
from web.resources import Resources

_OUTSIDE = {("get", "/openapi.json"), ("get", "/docs"), ("get", "/docs/{name}")}


def _document(keys_required: bool = False) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(openapi.build(keys_required=keys_required))
    return document


def test_document_and_routes_agree() -> None:
    """Each route is described and each description has its route."""
    settings = load({})
    app = create_app(settings, Resources(settings), started_epoch=0.0)
    routes = {
        (method.lower(), re.sub(r"<(.+?)>", r"{\1}", rule.rule))
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    described = {(method, path) for path, item in _document()["paths"].items() for method in item}

    assert routes - _OUTSIDE == described


def test_every_reference_leads_somewhere() -> None:
    """No schema points at one that is not there."""
    text = openapi.build(keys_required=True).decode()
    schemas = _document()["components"]["schemas"]

    for name in re.findall(r'"#/components/schemas/([^"]+)"', text):
        assert name in schemas


@pytest.mark.parametrize(
    ("body", "valid"),
    [
        ({"task_type": "test", "task_data": {"message": "hello"}}, True),
        ({"task_type": "test", "task_data": {}, "priority": "high", "timeout": 300}, True),
        ({"task_type": "test", "task_data": {}, "priority": "urgent"}, False),
        ({"task_type": "test", "task_data": {}, "other": 1}, False),
        ({"task_data": {}}, False),
    ],
)
def test_submission_schema_is_that_of_the_decoder(body: Any, valid: bool) -> None:
    """The published schema takes the specification's examples and refuses what is refused."""
    components = _document()["components"]
    schema = {"$ref": "#/components/schemas/Submission", "components": components}

    assert valid == jsonschema_rs.validator_for(schema, offline=True).is_valid(body)


def test_keys_are_described_where_they_are_required() -> None:
    """With keys on, operations ask for one, except the probes."""
    document = _document(keys_required=True)

    assert document["security"] == [{"bearer": []}, {"apiKey": []}]
    assert document["paths"]["/health"]["get"]["security"] == []
    assert "401" in document["paths"]["/api/v1/status"]["get"]["responses"]
    assert "security" not in _document()
