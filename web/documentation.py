"""The OpenAPI document, and a page that renders it without fetching anything from elsewhere."""

from __future__ import annotations

from functools import lru_cache
from importlib import resources as package_files

from flask import Blueprint, Response

from bridge.errors import InvalidParameters
from web import openapi
from web.context import context
from web.responses import document
from web.responses import page as static_page

blueprint = Blueprint("documentation", __name__)

_PARTS = {
    "docs.js": "text/javascript; charset=utf-8",
    "docs.css": "text/css; charset=utf-8",
}


@lru_cache
def _file(name: str) -> bytes:
    return (package_files.files("web") / "static" / name).read_bytes()


@lru_cache
def _document(keys_required: bool) -> bytes:
    return openapi.build(keys_required=keys_required)


@blueprint.get("/openapi.json")
def openapi_document() -> Response:
    return document(_document(context().keys.required))


@blueprint.get("/docs")
def page() -> Response:
    return static_page(_file("docs.html"), "text/html; charset=utf-8")


@blueprint.get("/docs/<name>")
def part(name: str) -> Response:
    if name not in _PARTS:
        raise InvalidParameters(f"There is nothing at /docs/{name}. See /docs.", status=404)
    return static_page(_file(name), _PARTS[name])
