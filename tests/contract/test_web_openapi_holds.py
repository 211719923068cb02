"""The service keeps to its own OpenAPI document, whatever a client sends."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, assume, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import load_all_checks
from schemathesis.specs.openapi import checks

from config.settings import load
from tests.support.nats import NatsServer
from tests.support.submission import Room
from web import openapi
from web.app import create_app
from web.resources import Resources

load_all_checks()
_CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.response_headers_conformance,
    checks.negative_data_rejection,
]
_LONG_SECONDS = 30.0


@pytest.fixture(scope="module")
def service(shared_nats: NatsServer) -> Iterator[Any]:
    """The application on a real server with a live worker, as schemathesis calls it."""
    with Room(shared_nats.url) as room:
        room.announce()
        configured = load({"NATS_URL": shared_nats.url})
        resources = Resources(configured)
        resources.start()
        try:
            with resources.workers.changed:
                assert resources.workers.changed.wait_for(
                    resources.live_worker_count, _LONG_SECONDS
                )
            app = create_app(configured, resources, time.time())
            yield schemathesis.openapi.from_wsgi("/openapi.json", app)
        finally:
            resources.stop()
            room.withdraw()


#: Those where something can be wrong with what is sent; a path parameter may be any text.
_REFUSING = [
    endpoint
    for endpoint in openapi.ENDPOINTS
    if endpoint.body is not None or any(each["in"] == "query" for each in endpoint.parameters)
]


#: Last words of addresses that a path parameter must not be: those are other endpoints.
_ADDRESSES = {each.path.rsplit("/", 1)[1] for each in openapi.ENDPOINTS if "{" not in each.path}


def _label(endpoint: openapi.Endpoint) -> str:
    return f"{endpoint.method} {endpoint.path}"


def _ask(service: Any, endpoint: openapi.Endpoint, mode: GenerationMode) -> None:
    operation = service[endpoint.path][endpoint.method.upper()]

    @settings(
        max_examples=15,
        deadline=None,
        suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: schemathesis.Case) -> None:
        # The document excludes these words; the generator takes them up from it all the same.
        assume(_ADDRESSES.isdisjoint(map(str, (case.path_parameters or {}).values())))
        case.call_and_validate(checks=_CHECKS)

    ask()


@pytest.mark.parametrize("endpoint", openapi.ENDPOINTS, ids=_label)
def test_answers_are_those_of_the_document(service: Any, endpoint: openapi.Endpoint) -> None:
    """Status, content type and schema of the answers to good requests are documented."""
    _ask(service, endpoint, GenerationMode.POSITIVE)


@pytest.mark.parametrize("endpoint", _REFUSING, ids=_label)
def test_what_the_document_forbids_is_refused(service: Any, endpoint: openapi.Endpoint) -> None:
    """Requests that break the document are refused, as it says."""
    _ask(service, endpoint, GenerationMode.NEGATIVE)
