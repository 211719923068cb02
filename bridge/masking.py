"""Hides secrets in what is shown to people: log lines, settings, error messages. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

MASK: Final = "***"

_SECRET_KEY = re.compile(
    r"(?:.*[_-])?(?:authorization|password|passwd|secret|token|cookie|api[_-]?key)", re.IGNORECASE
)
_URL_USER = re.compile(r"(://)([^\s/@,:'\"]*)(?:(:)[^\s,'\"]*)?@")
_HEADER = re.compile(
    r"(authorization['\"]?\s*[:=]\s*['\"]?(?:(?:bearer|basic|token)\s+)?)[^\s'\",}]+", re.IGNORECASE
)
_QUERY = re.compile(r"([?&](?:api_?key|token|password)=)[^&\s'\"]+", re.IGNORECASE)


def mask_text(text: str) -> str:
    """Return `text` without the credentials of URLs, Authorization headers and queries.

    Of ``user:password@`` the user stays readable; a lone ``token@`` is hidden whole.
    """
    if "@" in text:
        text = _URL_USER.sub(_mask_user, text)
    if "=" in text or ":" in text:
        text = _QUERY.sub(rf"\1{MASK}", _HEADER.sub(rf"\1{MASK}", text))
    return text


def mask_value(key: str, value: Any) -> Any:
    """Return `value` fit to be shown under the name `key`; mappings and lists are walked."""
    if _SECRET_KEY.fullmatch(key):
        return MASK if value else value
    if isinstance(value, str):
        return mask_text(value)
    if isinstance(value, Mapping):
        return {name: mask_value(str(name), inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [mask_value("", inner) for inner in value]
    return value


def _mask_user(found: re.Match[str]) -> str:
    scheme, user, colon = found.groups()
    return f"{scheme}{user}:{MASK}@" if colon else f"{scheme}{MASK}@"
