"""Reads a line of a child process' output, whatever program wrote it. Pure."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

#: How the programs we start name their levels.
_LEVELS: Final = {
    "TRC": "DEBUG",
    "DBG": "DEBUG",
    "DEBUG": "DEBUG",
    "D": "DEBUG",
    "INF": "INFO",
    "INFO": "INFO",
    "I": "INFO",
    "WRN": "WARNING",
    "WARNING": "WARNING",
    "W": "WARNING",
    "ERR": "ERROR",
    "ERROR": "ERROR",
    "E": "ERROR",
    "FTL": "CRITICAL",
    "CRITICAL": "CRITICAL",
    "C": "CRITICAL",
}
_FORMATS: Final = (
    # nats-server: [12] 2026/11/24 06:14:47.123456 [INF] Server is ready
    re.compile(r"\[(?P<pid>\d+)\] \d{4}/\d\d/\d\d [\d:.]+(?: UTC)? \[(?P<level>[A-Z]{3})\] "),
    # Celery: [2026-11-24 06:14:47,123: INFO/MainProcess] celery@host ready.
    re.compile(r"\[\d{4}-\d\d-\d\d [\d:,]+: (?P<level>[A-Z]+)/[^\]]*\] "),
    # gunicorn: [2026-11-24 06:14:47 +0000] [12] [INFO] Listening at: http://127.0.0.1:8090
    re.compile(r"\[\d{4}-\d\d-\d\d [\d:]+ [+-]\d{4}\] \[(?P<pid>\d+)\] \[(?P<level>[A-Z]+)\] "),
    # Tornado, in Flower: [I 261124 06:14:47 command:168] Visit me at http://127.0.0.1:5555
    re.compile(r"\[(?P<level>[A-Z]) \d{6} [\d:]+ [^\]]*\] "),
)
_NAMES: Final = ("level", "logger", "message", "timestamp")


def parse_line(line: bytes) -> dict[str, Any]:
    """Return the fields of one line of output; never raises.

    ``message`` and ``level`` (DEBUG, INFO, WARNING, ERROR or CRITICAL) are always there. A
    line in our own JSON gives all of its fields, ``logger`` and ``timestamp`` among them; the
    formats of nats-server, Celery, gunicorn and Tornado give their level and, where it is
    told, ``pid``; any other line is the message of an INFO event.
    """
    if line.startswith(b"{") and (ours := _parse_json(line)) is not None:
        return ours
    text = line.decode(errors="backslashreplace").strip()
    for pattern in _FORMATS:
        if (found := pattern.match(text)) and (level := _LEVELS.get(found["level"])):
            pid = found.groupdict().get("pid")
            fields = {"level": level, "message": text[found.end() :]}
            return fields if pid is None else {**fields, "pid": int(pid)}
    return {"level": "INFO", "message": text}


def _parse_json(line: bytes) -> dict[str, Any] | None:
    """Return the fields if the line is one of ours, else None."""
    try:
        fields = msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    if not all(isinstance(fields.get(name), str) for name in _NAMES):
        return None
    return fields if fields["level"] in _LEVELS.values() else None
