"""Reading the output of child processes."""

from __future__ import annotations

import logging

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.log_lines import parse_line

OURS = {
    "timestamp": "2026-01-01T00:00:00.123Z",
    "level": "ERROR",
    "logger": "bridge.web",
    "message": "request failed",
    "service": "task-worker",
    "status": 500,
}


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        (
            b"[12] 2026/11/24 06:14:47.123456 [WRN] Slow [consumer]\n",
            {"level": "WARNING", "message": "Slow [consumer]", "pid": 12},
        ),
        (
            b"[12] 2026/11/24 06:14:47.123456 UTC [FTL] bad\n",
            {"level": "CRITICAL", "message": "bad", "pid": 12},
        ),
        (
            b"[2026-11-24 06:14:47,123: ERROR/MainProcess] lost\n",
            {"level": "ERROR", "message": "lost"},
        ),
        (
            b"[2026-11-24 06:14:47 +0000] [7] [INFO] Listening at: http://127.0.0.1:1 (7)\r\n",
            {"level": "INFO", "message": "Listening at: http://127.0.0.1:1 (7)", "pid": 7},
        ),
        (
            b"[W 261124 06:14:47 command:168] Visit me\n",
            {"level": "WARNING", "message": "Visit me"},
        ),
        (b"just text\n", {"level": "INFO", "message": "just text"}),
        (b"[12] 2026/11/24 06:14:47.1 [XXX] odd\n", {"level": "INFO"}),
        (b"caf\xe9\n", {"level": "INFO", "message": "caf\\xe9"}),
        (b'{"level": "INFO"}\n', {"level": "INFO", "message": '{"level": "INFO"}'}),
        (b"{not json\n", {"level": "INFO", "message": "{not json"}),
        (b"", {"level": "INFO", "message": ""}),
    ],
)
def test_parse_line_knows_the_formats_of_our_children(line: bytes, fields: dict[str, str]) -> None:
    """Each program's level is mapped to ours; whatever else comes is a message."""
    assert {"message": parse_line(line)["message"], **fields} == parse_line(line)


def test_parse_line_keeps_every_field_of_our_own_line() -> None:
    """A line that is ours already loses nothing."""
    assert parse_line(msgspec.json.encode(OURS) + b"\n") == OURS


def test_parse_line_takes_a_foreign_level_for_text() -> None:
    """JSON of another program, with levels of its own, is not mistaken for ours."""
    line = msgspec.json.encode({**OURS, "level": "notice"})

    assert parse_line(line) == {"level": "INFO", "message": line.decode()}


LINES = st.one_of(
    st.binary(),
    st.builds(lambda text: b"{" + text, st.binary()),
    st.builds(lambda level, text: f"[1] 2026/11/24 06:14:47.1 [{level}] {text}".encode(),
              st.sampled_from(["INF", "ERR", "abc", "???"]), st.text(st.characters(codec="utf-8"))),
    st.dictionaries(st.sampled_from([*OURS, "x"]), st.one_of(st.none(), st.integers(), st.text(
        st.characters(codec="utf-8")))).map(msgspec.json.encode),
    st.integers(1, 3000).map(lambda depth: b'{"a":' * depth),
)  # fmt: skip


@given(LINES)
def test_parse_line_never_raises_and_always_gives_level_and_message(line: bytes) -> None:
    """Whatever bytes a child writes, there is something to log."""
    fields = parse_line(line)

    assert fields["level"] in {"DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"}
    assert fields["level"] in logging.getLevelNamesMapping()
    assert isinstance(fields["message"], str)
