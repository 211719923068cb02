"""Stored results of any serializer: what is JSON is shown, what is not is told and never run."""

from __future__ import annotations

import bz2
import json
import lzma
import pickle
import zlib
from collections.abc import Callable

import pytest
from celery.backends.base import COMPRESSED_PAYLOAD_MAGIC

from bridge.submission import result as results
from bridge.submission.result import read_result
from bridge.submission.view import Known, view_of
from bridge.wire import Message
from bridge.wire.protocol import encode_headers

_NOW = 1_800_000_000.0
_META = b'{"status": "SUCCESS", "result": [1, "\\u00fc"], "traceback": null}'


def _message(payload: bytes, status: str = "", content_type: str = "") -> Message:
    """A stored result; with a content type it has the headers of what is not plain JSON."""
    headers = {
        "Content-Type": content_type,
        "Celery-meta": json.dumps({"status": status, "retries": 2}),
    }
    return Message("results", 1, "", encode_headers(headers) if content_type else b"", payload)


def _compressed(method: str, body: bytes) -> bytes:
    return COMPRESSED_PAYLOAD_MAGIC + method.encode() + b"\0" + body


class Explosive:
    """Fails the test that unpickles it."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return pytest.fail, ("the payload was unpickled",)


@pytest.mark.parametrize(
    ("method", "compress"),
    [
        ("application/x-gzip", zlib.compress),
        ("application/x-bz2", bz2.compress),
        ("application/x-lzma", lzma.compress),
    ],
)
def test_compressed_json_is_shown(method: str, compress: Callable[[bytes], bytes]) -> None:
    """Every compression that Celery always has is undone."""
    meta = read_result(_message(_compressed(method, compress(_META)), "", "application/json"))

    assert (meta.status, meta.result, meta.result_note) == ("SUCCESS", [1, "ü"], None)


def test_pickles_are_told_and_never_read() -> None:
    """State and what else the header has are told, with a note in place of the value."""
    message = _message(pickle.dumps(Explosive()), "SUCCESS", "application/x-python-serialize")

    view = view_of("i", Known(meta=read_result(message)), _NOW)

    assert (view.state, view.result, view.retries) == ("SUCCESS", None, 2)
    assert view.result_note is not None
    assert "application/x-python-serialize" in view.result_note


def test_state_of_its_own_has_the_note_too() -> None:
    """Where the content of a task's own state cannot be shown, the same is told."""
    message = _message(b"\x80", "PROGRESS", "application/x-msgpack")

    view = view_of("i", Known(meta=read_result(message)), _NOW)

    assert (view.state, view.meta) == ("PROGRESS", None)
    assert view.result_note is not None


@pytest.mark.parametrize(
    ("method", "body", "told"),
    [
        ("application/zstd", b"?", "application/zstd"),
        ("application/x-gzip", zlib.compress(_META + b" " * 1000), "larger than 500 bytes"),
    ],
)
def test_what_cannot_be_decompressed_is_told(
    monkeypatch: pytest.MonkeyPatch, method: str, body: bytes, told: str
) -> None:
    """An unknown compression, or a payload that swells absurdly, hides the value only."""
    monkeypatch.setattr(results, "MAX_DECOMPRESSED_BYTES", 500)

    meta = read_result(_message(_compressed(method, body), "SUCCESS", "application/json"))

    assert (meta.status, meta.result) == ("SUCCESS", None)
    assert meta.result_note is not None
    assert told in meta.result_note


@pytest.mark.parametrize(
    ("written", "shown"),
    [(float("nan"), None), ([float("-inf"), 1], [None, 1]), ("\ud800x", "?x")],
)
def test_what_only_python_calls_json_is_shown(written: object, shown: object) -> None:
    """A result of NaN or half a character, which Celery stores without complaint, has an answer."""
    payload = json.dumps({"status": "SUCCESS", "result": written}).encode()

    assert read_result(_message(payload)).result == shown
