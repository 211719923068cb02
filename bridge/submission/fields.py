"""Reads a document's fields into a struct; what does not fit is told with what would. Pure."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

from bridge.errors import BridgeError

_Struct = TypeVar("_Struct", bound=msgspec.Struct)

_SHOWN_CHARACTERS = 64
_AT_FIELD = re.compile(r"(.*) - at `\$\.(\w+)`", re.DOTALL)
_MISSING_FIELD = re.compile(r"Object missing required field `(\w+)`")
_UNKNOWN_FIELD = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)


def read_fields(document: Any, kind: type[_Struct], refusal: type[BridgeError]) -> _Struct:
    """Return a decoded JSON document as a `kind`, a flat struct whose fields are described.

    Raises `refusal`: the message names the field and says what may stand there.
    """
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        raise refusal(_explain(str(error), _descriptions(kind))) from error


def _descriptions(kind: type[msgspec.Struct]) -> dict[str, str]:
    [reference], components = msgspec.json.schema_components([kind], ref_template="{name}")
    properties = components[reference["$ref"]]["properties"]
    return {name: schema["description"] for name, schema in properties.items()}


def _explain(reason: str, descriptions: dict[str, str]) -> str:
    if match := _UNKNOWN_FIELD.fullmatch(reason):
        name = match[1][:_SHOWN_CHARACTERS]
        return f"{name}: unknown field. Remove it; known are {', '.join(descriptions)}."
    if match := _MISSING_FIELD.fullmatch(reason):
        field, reason = match[1], "required field is missing"
    elif match := _AT_FIELD.fullmatch(reason):
        reason, field = match.groups()
    else:
        return f"body: {_inside(reason)}. Send an object; its fields are {', '.join(descriptions)}."
    return f"{field}: {_inside(reason)}. Send {_inside(descriptions[field])}"


def _inside(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]
