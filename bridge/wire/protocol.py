"""NATS client protocol: bytes to frames and back. Pure, no I/O.

Source: the client protocol of the NATS documentation and ADR-4 (headers).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

import msgspec

logger = logging.getLogger("nats")

CRLF: Final = b"\r\n"
PING: Final = b"PING\r\n"
PONG: Final = b"PONG\r\n"
_HEADER_VERSION: Final = b"NATS/1.0"
#: A control line longer than this is not NATS; INFO of a large cluster stays far below.
MAX_CONTROL_LINE_BYTES: Final = 1024 * 1024

#: NATS sizes are int32, and no connection has more subscriptions.
_MAX_DIGITS: Final = 10

_HEADER_NAME = re.compile(r"[!-9;-~]+")
_BAD_VALUE = re.compile(r"[\r\n\x00]|^[ \t]|[ \t]$")
_BAD_SUBJECT = re.compile(r"[\x00-\x20\x7f]|^$")


class ProtocolError(ValueError):
    """The peer sent something that is not the NATS protocol."""


class PayloadTooLarge(ValueError):
    """A message is larger than the server takes; it was not sent. Sizes in bytes."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(
            f"the message has {size} bytes and the NATS server takes {limit}: send less, or raise "
            "max_payload in the server's configuration"
        )
        self.size = size
        self.limit = limit


class Message:
    """One message as it came in.

    `status` and `description` are set on JetStream's status messages, which carry no payload
    (404 no messages, 408 request timeout, 503 no responders, 100 heartbeat). The server passes
    on whatever a publisher calls headers: a malformed block is logged and counts as none.
    """

    __slots__ = ("_decoded", "_raw_headers", "payload", "reply", "sid", "subject")

    def __init__(
        self, subject: str, sid: int, reply: str, raw_headers: bytes, payload: bytes
    ) -> None:
        self.subject = subject
        self.sid = sid
        self.reply = reply
        self.payload = payload
        self._raw_headers = raw_headers
        self._decoded: tuple[int | None, str, dict[str, str]] | None = None

    def _head(self) -> tuple[int | None, str, dict[str, str]]:
        # Decoded on first use: most replies are read for their payload only.
        if self._decoded is None:
            try:
                self._decoded = decode_headers(self._raw_headers)
            except ProtocolError as error:
                logger.warning("headers of a message on %s ignored: %s", self.subject, error)
                self._decoded = None, "", {}
        return self._decoded

    @property
    def headers(self) -> dict[str, str]:
        return self._head()[2]

    @property
    def status(self) -> int | None:
        return self._head()[0]

    @property
    def description(self) -> str:
        return self._head()[1]

    def __repr__(self) -> str:
        return f"<Message {self.subject} {self.status or ''} {len(self.payload)} bytes>"


class Info(msgspec.Struct, frozen=True):
    """INFO: what the server says of itself."""

    fields: dict[str, Any]


class Control(msgspec.Struct, frozen=True):
    """PING, PONG or +OK."""

    verb: bytes


class ServerError(msgspec.Struct, frozen=True):
    """-ERR: the server's complaint, without its quotes."""

    text: str


Frame = Message | Info | Control | ServerError


class Parser:
    """Cuts a byte stream into frames; any split of the stream gives the same frames."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._have = 0
        #: bytes that must be there before parsing can go on; spares re-joining large payloads
        self._need = 0

    def feed(self, data: bytes) -> list[Frame]:
        """Return the frames that `data` completes. Raises ProtocolError."""
        self._chunks.append(data)
        self._have += len(data)
        if self._have < self._need:
            return []
        buffer = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        frames: list[Frame] = []
        position = 0
        self._need = 0
        while True:
            end = buffer.find(CRLF, position)
            # The last byte may be the first half of the line's end.
            if (end if end >= 0 else len(buffer) - 1) - position > MAX_CONTROL_LINE_BYTES:
                raise ProtocolError("control line without end")
            if end < 0:
                break
            next_position = self._frame(buffer, position, end, frames)
            if next_position == position:
                break
            position = next_position
        rest = buffer[position:]
        self._chunks = [rest] if rest else []
        self._have = len(rest)
        if self._need:
            self._need -= position
        return frames

    def _frame(self, buffer: bytes, start: int, end: int, frames: list[Frame]) -> int:
        """Append the frame at `start`; return where the next begins, `start` if incomplete."""
        first = buffer[start]
        if first in b"MH":
            return self._message(buffer, start, end, frames)
        line = buffer[start:end]
        if line in {b"PING", b"PONG", b"+OK"}:
            frames.append(Control(line))
        elif line.startswith(b"-ERR"):
            frames.append(ServerError(line[4:].strip().strip(b"'").decode(errors="replace")))
        elif line.startswith(b"INFO "):
            try:
                frames.append(Info(msgspec.json.decode(line[5:], type=dict[str, Any])))
            except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
                raise ProtocolError(f"INFO is not JSON: {error}") from error
        else:
            raise ProtocolError(f"unknown operation {line[:40]!r}")
        return end + 2

    def _message(self, buffer: bytes, start: int, end: int, frames: list[Frame]) -> int:
        words = buffer[start:end].split()
        with_headers = len(words) > 4 and words[0] == b"HMSG"
        try:
            # HMSG subject sid [reply] header-size size; MSG lacks the header size.
            if not with_headers and words[0] != b"MSG":
                raise ProtocolError("unknown operation")
            if len(words) - with_headers not in {4, 5}:
                raise ProtocolError("wrong number of fields")
            total = _size(words[-1])
            header_size = _size(words[-2]) if with_headers else 0
            if header_size > total:
                raise ProtocolError("headers larger than the whole")
            subject, sid = words[1].decode(), _size(words[2])
            reply = words[3].decode() if len(words) - with_headers == 5 else ""
        except ValueError as error:
            raise ProtocolError(f"{error}: {buffer[start:end][:80]!r}") from error
        body = end + 2
        stop = body + total
        if len(buffer) < stop + 2:
            self._need = stop + 2
            return start
        if buffer[stop : stop + 2] != CRLF:
            raise ProtocolError("payload does not end where its size says")
        split = body + header_size
        frames.append(Message(subject, sid, reply, buffer[body:split], buffer[split:stop]))
        return stop + 2


def _size(digits: bytes) -> int:
    # int() alone would take "+1" and "1_0", and sizes no server can mean.
    if not digits.isdigit() or len(digits) > _MAX_DIGITS:
        raise ProtocolError("not a number of messages or bytes")
    return int(digits)


def encode_connect(fields: Mapping[str, Any]) -> bytes:
    return b"CONNECT " + msgspec.json.encode(fields) + CRLF


def encode_subscribe(subject: str, sid: int) -> bytes:
    _check_subject(subject)
    return f"SUB {subject} {sid}\r\n".encode()


def encode_unsubscribe(sid: int) -> bytes:
    return f"UNSUB {sid}\r\n".encode()


def encode_publish(
    subject: str,
    payload: bytes,
    headers: Mapping[str, str] | None = None,
    reply: str = "",
    max_payload: int = 0,
) -> bytes:
    """Return a PUB or HPUB frame.

    Raises ValueError on a subject or header that would break it, PayloadTooLarge when headers
    and payload together exceed `max_payload` bytes (0: no limit), since the server would cut
    the connection, and with it everything in flight.
    """
    _check_subject(subject)
    target = subject
    if reply:
        _check_subject(reply)
        target = f"{subject} {reply}"
    head = encode_headers(headers) if headers else b""
    size = len(head) + len(payload)
    if max_payload and size > max_payload:
        raise PayloadTooLarge(size, max_payload)
    if not head:
        return b"PUB %b %d\r\n%b\r\n" % (target.encode(), size, payload)
    return b"HPUB %b %d %d\r\n%b%b\r\n" % (target.encode(), len(head), size, head, payload)


def _check_subject(subject: str) -> None:
    if _BAD_SUBJECT.search(subject):
        raise ValueError(f"not a NATS subject: {subject!r}")


def encode_headers(headers: Mapping[str, str]) -> bytes:
    """Return the header block. Raises ValueError where a reader would see something else.

    Refused: names with spaces or colons, values with CR, LF or NUL (injection) and values with
    white space at an end, which readers strip.
    """
    lines = ["NATS/1.0"]
    for name, value in headers.items():
        _check_header_name(name)
        # Most values need no closer look, which takes as long as all else here.
        if (not value.isprintable() or value.strip() != value) and _BAD_VALUE.search(value):
            raise ValueError(f"not a NATS header value: {name}: {value!r}")
        lines.append(f"{name}: {value}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


@lru_cache(maxsize=1024)  # the same few come with every message
def _check_header_name(name: str) -> None:
    if not _HEADER_NAME.fullmatch(name):
        raise ValueError(f"not a NATS header name: {name!r}")


def decode_headers(raw: bytes) -> tuple[int | None, str, dict[str, str]]:
    """Return status, description and fields of a header block. Raises ProtocolError."""
    if not raw:
        return None, "", {}
    first, *lines = raw.split(CRLF)
    if not first.startswith(_HEADER_VERSION):
        raise ProtocolError(f"unknown header version {first[:20]!r}")
    fields: dict[str, str] = {}
    for line in lines:
        if not line:
            continue
        name, colon, value = line.partition(b":")
        if not colon:
            raise ProtocolError(f"malformed header line {line[:80]!r}")
        fields[name.decode(errors="replace")] = value.strip(b" \t").decode(errors="replace")
    code, _, description = first[len(_HEADER_VERSION) :].strip().partition(b" ")
    if not code:
        return None, "", fields
    if not code.isdigit() or len(code) > _MAX_DIGITS:
        raise ProtocolError(f"malformed header status {first[:40]!r}")
    return int(code), description.decode(errors="replace"), fields
