"""Reads a result as Celery stored it, whatever the app's serializer. Pure; it never unpickles."""

from __future__ import annotations

import bz2
import json
import lzma
import zlib
from typing import Any

import msgspec
from celery.backends.base import COMPRESSED_PAYLOAD_MAGIC

from bridge.records import JSON_CONTENT_TYPE, RESULT_CONTENT_TYPE, RESULT_META
from bridge.submission.view import ResultMeta
from bridge.wire import Message

#: A result may be so large once it is decompressed (64 MB); NATS bounds what others take.
MAX_DECOMPRESSED_BYTES = 64 * 1024 * 1024

#: kombu's content type of a compression -> what makes a decompressor that stops at a size
_DECOMPRESSORS: dict[str, Any] = {
    "application/x-gzip": zlib.decompressobj,
    "application/x-bz2": bz2.BZ2Decompressor,
    "application/x-lzma": lzma.LZMADecompressor,
}
_decode = msgspec.json.Decoder(ResultMeta).decode


class _NotShown(Exception):
    """The value stays where it is; the text tells a client why, and what to do."""


def read_result(message: Message) -> ResultMeta:
    """Return what a stored result tells; `result_note` is set where its value is not told."""
    described = message.headers.get(RESULT_META)
    if described is None:
        return decode_meta(message.payload)
    try:
        return decode_meta(_json_of(message))
    except _NotShown as reason:
        return msgspec.structs.replace(decode_meta(described.encode()), result_note=str(reason))


def decode_meta(payload: bytes) -> ResultMeta:
    """Decode a result that is JSON, as Python writes it."""
    try:
        return _decode(payload)
    except msgspec.DecodeError:
        # NaN, Infinity and half a surrogate pair are JSON to Python alone.
        value = json.loads(payload, parse_constant=lambda _: None)
    return _decode(json.dumps(value, ensure_ascii=False).encode(errors="replace"))


def _json_of(message: Message) -> bytes:
    content_type = message.headers.get(RESULT_CONTENT_TYPE)
    if content_type != JSON_CONTENT_TYPE:
        raise _NotShown(
            f"The value is stored as {content_type}. Read it with Celery, or set result_serializer "
            "to json in the app."
        )
    payload = message.payload
    if not payload.startswith(COMPRESSED_PAYLOAD_MAGIC):
        return payload
    method, _, body = payload[len(COMPRESSED_PAYLOAD_MAGIC) :].partition(b"\0")
    return _decompressed(method.decode(), body)


def _decompressed(method: str, body: bytes) -> bytes:
    make = _DECOMPRESSORS.get(method)
    if make is None:
        raise _NotShown(
            f"The value is compressed as {method}. Read it with Celery, or set result_compression "
            "to zlib in the app."
        )
    data: bytes = make().decompress(body, MAX_DECOMPRESSED_BYTES + 1)
    if len(data) > MAX_DECOMPRESSED_BYTES:
        raise _NotShown(
            f"The value is larger than {MAX_DECOMPRESSED_BYTES:,} bytes once it is decompressed. "
            "Read it with Celery."
        )
    return data
