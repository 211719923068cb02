"""JSON read strictly: what two readers could understand differently is refused. Pure.

RFC 8259 leaves duplicate keys, lone surrogates, NaN and the size of numbers to the reader.
A task is read twice, here and in a worker, so both must see the same thing.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections import Counter
from typing import Any, Final

from bridge.errors import InvalidParameters

MAX_DEPTH: Final = 64
_INT_MIN: Final = -(2**63)
_INT_MAX: Final = 2**64 - 1

# One escape at a time from the left, so that `\\ud800` (a backslash, then text) is no surrogate.
# Group 1 is half a pair without its other half.
_ESCAPE = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    r"|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', re.DOTALL)


def decode(body: bytes) -> Any:
    """Return the value that `body` (UTF-8 JSON) holds.

    Raises:
        InvalidParameters: it is empty, not JSON, not UTF-8, repeats a key, holds a lone surrogate,
            NaN, Infinity, a number beyond 64 bits, or nests deeper than MAX_DEPTH; the message
            names the place.
    """
    if not body:
        raise InvalidParameters("The body is empty: send a JSON object.")
    if body.startswith(codecs.BOM_UTF8):
        raise InvalidParameters("The body begins with a byte order mark: send it without.")
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise InvalidParameters(
            f"The body is not UTF-8: byte {error.start} cannot be read. Send JSON in UTF-8."
        ) from error
    _check_depth(text)
    _check_surrogates(text)
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise InvalidParameters(
            f"The body is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}."
        ) from error


def _check_depth(text: str) -> None:
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    depth = 0
    for match in _STRING_OR_BRACKET.finditer(text):
        found = match[0]
        if found in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise InvalidParameters(
                    f"The body nests deeper than {MAX_DEPTH} levels (at character "
                    f"{match.start()}). Flatten it."
                )
        elif found in "]}":
            depth -= 1


def _check_surrogates(text: str) -> None:
    if "\\u" not in text:
        return
    for match in _ESCAPE.finditer(text):
        if match[1]:
            raise InvalidParameters(
                f"The body holds half a surrogate pair, \\{match[1]}, at character "
                f"{match.start()}: that is no character. Send the pair or the character itself."
            )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        [(twice, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise InvalidParameters(f"The body has the key {twice!r} twice in one object: send one.")
    return value


def _refuse_constant(literal: str) -> Any:
    raise InvalidParameters(f"The body holds {literal}, which is not JSON. Send null or a number.")


def _bounded_int(literal: str) -> int:
    # 20 digits and a sign: beyond that int() itself would be slow or refuse.
    value = int(literal) if len(literal) <= 21 else _INT_MAX + 1
    if not _INT_MIN <= value <= _INT_MAX:
        raise InvalidParameters(
            f"The body holds the integer {literal[:24]}, which does not fit 64 bits. "
            "Send it as a string."
        )
    return value


def _finite_float(literal: str) -> float:
    value = float(literal)
    if not math.isfinite(value):
        raise InvalidParameters(
            f"The body holds the number {literal[:24]}, which does not fit a 64-bit float. "
            "Send it as a string."
        )
    return value


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique,
    parse_constant=_refuse_constant,
    parse_int=_bounded_int,
    parse_float=_finite_float,
)
