"""Bytes to frames and back: any split, any garbage, nothing smuggled."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bridge.wire.protocol import (
    MAX_CONTROL_LINE_BYTES,
    Control,
    Frame,
    Info,
    Message,
    Parser,
    PayloadTooLarge,
    ProtocolError,
    ServerError,
    encode_connect,
    encode_headers,
    encode_publish,
    encode_subscribe,
    encode_unsubscribe,
)

TOKENS = st.text("abcXYZ019_-=$*>", min_size=1, max_size=8)
SUBJECTS = st.lists(TOKENS, min_size=1, max_size=4).map(".".join)
HEADER_NAMES = st.text(
    st.characters(min_codepoint=33, max_codepoint=126, exclude_characters=":"),
    min_size=1,
    max_size=12,
)
HEADER_VALUES = st.text(max_size=30).filter(
    lambda value: not any(c in value for c in "\r\n\0") and value == value.strip(" \t")
)
HEADERS = st.dictionaries(HEADER_NAMES, HEADER_VALUES, min_size=1, max_size=5)

Sent = tuple[bytes, tuple[Any, ...]]


@st.composite
def messages(draw: st.DrawFn) -> Sent:
    """A MSG or HMSG as the server writes it, and what must be read out of it."""
    subject, sid = draw(SUBJECTS), draw(st.integers(0, 99_999))
    reply = draw(st.one_of(st.just(""), SUBJECTS))
    headers = draw(st.one_of(st.just({}), HEADERS))
    payload = draw(st.binary(max_size=40) | st.just(b"MSG a 1 3\r\nPING\r\n"))
    head = encode_headers(headers) if headers else b""
    sizes = f"{len(head)} {len(head) + len(payload)}" if headers else f"{len(payload)}"
    line = " ".join(filter(None, [subject, str(sid), reply, sizes]))
    verb = "HMSG" if headers else "MSG"
    wire = f"{verb} {line}\r\n".encode() + head + payload + b"\r\n"
    return wire, ("message", subject, sid, reply, headers, payload)


OTHERS: list[Sent] = [
    (b"PING\r\n", ("control", b"PING")),
    (b"PONG\r\n", ("control", b"PONG")),
    (b"+OK\r\n", ("control", b"+OK")),
    (b"-ERR 'Authorization Violation'\r\n", ("error", "Authorization Violation")),
    (b'INFO {"max_payload":1024,"nonce":"x\\r\\n"}\r\n', ("info", 1024)),
]
STREAMS = st.lists(messages() | st.sampled_from(OTHERS), max_size=8)


def described(frame: Frame) -> tuple[Any, ...]:
    match frame:
        case Message():
            payload = frame.payload
            return "message", frame.subject, frame.sid, frame.reply, frame.headers, payload
        case Control():
            return "control", frame.verb
        case ServerError():
            return "error", frame.text
        case Info():
            return "info", frame.fields["max_payload"]


def parse(*chunks: bytes) -> list[Frame]:
    parser = Parser()
    return [frame for chunk in chunks for frame in parser.feed(chunk)]


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in pairwise(edges)]


@given(STREAMS, st.lists(st.integers(0, 10_000), max_size=12))
def test_any_split_gives_the_same_frames(stream: list[Sent], places: list[int]) -> None:
    """However the network cuts the stream, the same frames come out in the same order."""
    data = b"".join(wire for wire, _ in stream)

    frames = parse(*cut(data, places))

    assert [described(frame) for frame in frames] == [expected for _, expected in stream]


@given(STREAMS)
def test_stream_in_single_bytes(stream: list[Sent]) -> None:
    """The finest split of all loses nothing either."""
    data = b"".join(wire for wire, _ in stream)

    frames = parse(*(data[i : i + 1] for i in range(len(data))))

    assert [described(frame) for frame in frames] == [expected for _, expected in stream]


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=4))
@example(b"MSG a 1\r\nx\r\n", [])
@example(b"INFO " + b"[" * 200 + b"\r\n", [])
def test_noise_is_frames_or_a_protocol_error(noise: bytes, places: list[int]) -> None:
    """Whatever arrives, the parser raises nothing but ProtocolError."""
    try:
        frames = parse(*cut(noise, places))
    except ProtocolError:
        return
    assert b"\r\n" in noise or frames == []


@given(STREAMS.filter(bool), st.data())
def test_damaged_stream_is_frames_or_a_protocol_error(
    stream: list[Sent], data: st.DataObject
) -> None:
    """A byte changed on the way yields other frames or ProtocolError, no other exception."""
    wire = bytearray(b"".join(wire for wire, _ in stream))
    wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))
    try:
        frames = parse(bytes(wire))
    except ProtocolError:
        return
    assert all(isinstance(frame, Message | Control | Info | ServerError) for frame in frames)


@pytest.mark.parametrize(
    "garbage",
    [
        b"HTTP/1.1 400 Bad Request\r\n",
        b"\r\n",
        b"ping\r\n",
        b"PING \r\n",
        b"MSG\r\n",
        b"MSG a 1\r\nx\r\n",
        b"MSG a 1 b c 1\r\nx\r\n",
        b"MSG a x 1\r\nx\r\n",
        b"MSG a 1 -1\r\n\r\n",
        b"MSG a 1 +1\r\nx\r\n",
        b"MSG a 1 1_0\r\n0123456789\r\n",
        b"MSG a 1 99999999999\r\nx\r\n",
        b"MSG a 1 1\r\nxy\r\n",
        b"MSG \xff 1 1\r\nx\r\n",
        b"HMSG a 1 1\r\nx\r\n",
        b"HMSG a 1 5 1\r\nx\r\n",
        b"HMSG a 1 b c 0 1\r\nx\r\n",
        b"MOSG a 1 1\r\nx\r\n",
        b"INFO\r\n",
        b"INFO [1]\r\n",
        b"INFO {'a': 1}\r\n",
        b'INFO {"a": "\xff"}\r\n',
        b"INFO " + b'{"a":' * 100_000 + b"\r\n",
        b"x" * (MAX_CONTROL_LINE_BYTES + 2),
        b"PING" + b" " * MAX_CONTROL_LINE_BYTES + b"\r\n",
    ],
    ids=lambda garbage: repr(garbage[:24]),
)
def test_garbage_is_refused(garbage: bytes) -> None:
    """What is not the NATS protocol is an error, never a message."""
    with pytest.raises(ProtocolError):
        parse(garbage)


def test_large_payload_is_put_together_once() -> None:
    """An 8 MB payload in small pieces comes out whole, with the frame behind it."""
    payload = bytes(range(256)) * 32_768
    wire = b"MSG big 7 %d\r\n%b\r\nPING\r\n" % (len(payload), payload)

    message, ping = parse(*(wire[i : i + 65_536] for i in range(0, len(wire), 65_536)))

    assert isinstance(message, Message)
    assert (message.sid, message.payload) == (7, payload)
    assert ping == Control(b"PING")


@given(HEADERS, st.binary(max_size=30))
def test_headers_survive_a_round_trip(headers: dict[str, str], payload: bytes) -> None:
    """Any set of legal headers is read as it was written."""
    head = encode_headers(headers)
    body = head + payload

    [message] = parse(b"HMSG a 1 %d %d\r\n%b\r\n" % (len(head), len(body), body))

    assert isinstance(message, Message)
    assert (message.headers, message.payload) == (headers, payload)
    assert (message.status, message.description) == (None, "")


@given(
    st.sampled_from(["name", "value"]),
    st.text(max_size=6),
    st.sampled_from(["\r", "\n", "\0", "\r\nEvil: 1", "\r\n\r\n"]),
    st.text(max_size=6),
)
def test_header_injection_is_refused(place: str, before: str, evil: str, after: str) -> None:
    """CR, LF or NUL in a header's name or value never reaches the wire."""
    text = f"{before}{evil}{after}"
    with pytest.raises(ValueError, match="not a NATS header"):
        encode_headers({text: "value"} if place == "name" else {"Name": text})


@pytest.mark.parametrize("name", ["", "a b", "a:b", "é", "a\t"])
def test_header_names_that_readers_would_misread_are_refused(name: str) -> None:
    """A name with a space, a colon or beyond ASCII would come out as another."""
    with pytest.raises(ValueError, match="not a NATS header name"):
        encode_headers({name: "value"})


@pytest.mark.parametrize("value", [" a", "a ", "\ta", "a\t"])
def test_header_values_that_readers_would_strip_are_refused(value: str) -> None:
    """White space at an end would be lost on the way."""
    with pytest.raises(ValueError, match="not a NATS header value"):
        encode_headers({"Name": value})


@given(st.sampled_from(list("\r\n\0 \t\x7f\x0b")), st.text(max_size=4), st.text(max_size=4))
def test_subject_injection_is_refused(evil: str, before: str, after: str) -> None:
    """White space and control characters in a subject never reach the wire."""
    subject = f"{before}{evil}{after}"
    with pytest.raises(ValueError, match="not a NATS subject"):
        encode_publish(subject, b"")
    with pytest.raises(ValueError, match="not a NATS subject"):
        encode_publish("a", b"", reply=subject)
    with pytest.raises(ValueError, match="not a NATS subject"):
        encode_subscribe(subject, 1)


def test_empty_subject_is_refused() -> None:
    """Without a subject the payload's size would be taken for one."""
    with pytest.raises(ValueError, match="not a NATS subject"):
        encode_publish("", b"")


def test_what_is_sent_looks_as_the_protocol_says() -> None:
    """Each kind of frame, byte by byte."""
    assert encode_publish("a.b", b"hi") == b"PUB a.b 2\r\nhi\r\n"
    assert encode_publish("a", b"hi", reply="r") == b"PUB a r 2\r\nhi\r\n"
    assert encode_publish("a", b"hi", {"K": "v"}, "r") == (
        b"HPUB a r 18 20\r\nNATS/1.0\r\nK: v\r\n\r\nhi\r\n"
    )
    assert encode_subscribe("a.>", 3) == b"SUB a.> 3\r\n"
    assert encode_unsubscribe(3) == b"UNSUB 3\r\n"
    assert encode_connect({"name": "a\r\nb"}) == b'CONNECT {"name":"a\\r\\nb"}\r\n'


@given(st.one_of(st.just({}), HEADERS), st.binary(max_size=50))
def test_size_limit_counts_headers_in_bytes(headers: dict[str, str], payload: bytes) -> None:
    """The limit is met exactly where the server meets it: at headers and payload, encoded."""
    size = len(encode_headers(headers) if headers else b"") + len(payload)
    if not size:
        return

    assert encode_publish("a", payload, headers, max_payload=size)
    with pytest.raises(PayloadTooLarge, match="max_payload") as caught:
        encode_publish("a", payload + b"x", headers, max_payload=size)
    assert (caught.value.size, caught.value.limit) == (size + 1, size)


def message_with(head: bytes) -> Message:
    [message] = parse(b"HMSG a 1 %d %d\r\n%b\r\n" % (len(head), len(head), head))
    assert isinstance(message, Message)
    return message


@pytest.mark.parametrize(
    ("head", "status", "description"),
    [
        (b"NATS/1.0 503\r\n\r\n", 503, ""),
        (b"NATS/1.0 404 No Messages\r\n\r\n", 404, "No Messages"),
        (b"NATS/1.0\r\n\r\n", None, ""),
    ],
)
def test_status_of_a_message(head: bytes, status: int | None, description: str) -> None:
    """JetStream's status messages tell code and description."""
    message = message_with(head)

    assert (message.status, message.description) == (status, description)


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 200\r\n\r\n", b"NATS/1.0\r\nno colon\r\n\r\n", b"NATS/1.0 x1\r\n\r\n"]
)
def test_foreign_headers_cost_only_themselves(
    head: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """A block some publisher made up is logged and ignored; its reader goes on."""
    message = message_with(head)

    assert (message.headers, message.status) == ({}, None)
    assert "headers of a message on a ignored" in caplog.text
