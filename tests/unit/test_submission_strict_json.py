"""Strict JSON: accepted exactly where a slow reference accepts, and refused with the place."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.errors import InvalidParameters
from bridge.submission.strict_json import MAX_DEPTH, decode

_SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
)
_TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
_VALUES = st.recursive(
    _SCALARS | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=8,
)


class _Refused(Exception):
    pass


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if sorted(set(keys)) != sorted(keys):
        raise _Refused
    return dict(pairs)


def _constant(_: str) -> Any:
    raise _Refused


def _walk(value: Any, depth: int) -> None:
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, bool):
        return
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            raise _Refused
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise _Refused
    elif isinstance(value, list | dict):
        if depth == MAX_DEPTH:
            raise _Refused
        for inner in value if isinstance(value, list) else [*value, *value.values()]:
            _walk(inner, depth + 1)


def _reference(body: bytes) -> Any:
    """Read with the standard library, then look at every value; None where it is refused."""
    try:
        value = json.loads(body.decode(), object_pairs_hook=_pairs, parse_constant=_constant)
        _walk(value, 0)
    except (ValueError, RecursionError, _Refused):
        return None
    return [value]


def _ours(body: bytes) -> Any:
    try:
        return [decode(body)]
    except InvalidParameters:
        return None


@given(_VALUES, st.booleans(), st.sampled_from([None, 1]))
def test_valid_json_is_read_as_the_standard_library_reads_it(
    value: Any, ascii_only: bool, indent: int | None
) -> None:
    """Whatever value is written as JSON, reading agrees with the reference."""
    body = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()

    assert repr(_reference(body)) == repr(_ours(body))


@given(_VALUES, st.data())
def test_damaged_json_is_refused_exactly_where_the_reference_refuses(
    value: Any, data: st.DataObject
) -> None:
    """A document with a piece replaced by something nasty is judged like by the reference."""
    body = json.dumps(value).encode()
    place = data.draw(st.integers(0, len(body)))
    nasty = data.draw(
        st.sampled_from(
            [b"", b'"', b"\\", b"\\ud800", b"\\ud83d\\ude00", b'"\\\\ud800"', b"NaN", b"-Infinity",
             b"1e999", b"1" * 30, b"\xff", b"{", b"]", b",", b'"a":1,', b"\x00", b"\xef\xbb\xbf",
             b"18446744073709551616", b"18446744073709551615", b"-9223372036854775809"]
        )
    )  # fmt: skip
    body = body[:place] + nasty + body[place + data.draw(st.integers(0, 2)) :]

    assert repr(_reference(body)) == repr(_ours(body))


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b'{"a": 1, "b": {"a": 2, "a": 3}}', "'a' twice"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "-Infinity"),
        (b'{"a": "\xff"}', "byte 7"),
        (b'{"a": "\\ud800"}', "\\ud800, at character 7"),
        (b'{"a": "\\ude00\\ud83d"}', "\\ude00"),
        (b'{"a": 1', "line 1, column 8"),
        (b"", "The body is empty"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (b'{"a": 18446744073709551616}', "64 bits"),
        (b'{"a": 1e400}', "64-bit float"),
        (b'{"a": ' + b"9" * 5000 + b"}", "64 bits"),
        (b"[" * 65 + b"]" * 65, "64 levels (at character 64)"),
        (b"[" * 100_000, "64 levels"),
    ],
)
def test_refusal_names_the_place(body: bytes, told: str) -> None:
    """Each kind of bad document is refused with a message that says what and where."""
    with pytest.raises(InvalidParameters) as refused:
        decode(body)

    assert told in str(refused.value)


def test_brackets_in_strings_do_not_count_as_depth() -> None:
    """A text full of brackets is not deep."""
    text = "[" * 200 + '\\"{'

    assert [text] == decode(json.dumps([text]).encode())


def test_deepest_allowed_nesting_is_read() -> None:
    """Exactly MAX_DEPTH levels are taken."""
    body = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH

    assert json.loads(body) == decode(body)
