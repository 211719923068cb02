"""Remembers which task an Idempotency-Key submitted, across restarts of everything."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import msgspec

from bridge.errors import InvalidParameters
from bridge.names import Names
from bridge.records import IdempotencyRecord
from bridge.submission.request import Submission
from bridge.wire import Bucket, JetStream, KeyExists

MAX_KEY_CHARACTERS = 255


class Claim(NamedTuple):
    """The task id that belongs to a key, and whether an earlier request made it."""

    task_id: str
    earlier: bool


def check_key(key: str) -> str:
    """Return `key` when it can be used. Raises InvalidParameters."""
    if not 0 < len(key) <= MAX_KEY_CHARACTERS or not key.isascii() or not key.isprintable():
        raise InvalidParameters(
            f"Idempotency-Key: send 1 to {MAX_KEY_CHARACTERS} printable ASCII characters, for "
            "instance a UUID."
        )
    return key


def claim(js: JetStream, names: Names, key: str, submission: Submission, task_id: str) -> Claim:
    """Bind `key` to `task_id`, or return the task id it is bound to already.

    Raises InvalidParameters with status 409 when the key was used for another request.
    """
    bucket = Bucket(js, names.bucket("idempotency"))
    bucket_key = hashlib.sha256(key.encode()).hexdigest()
    record = IdempotencyRecord(task_id=task_id, body_sha256=fingerprint(submission))
    try:
        bucket.create(bucket_key, msgspec.json.encode(record))
    except KeyExists:
        pass
    else:
        return Claim(task_id, earlier=False)
    stored = bucket.get(bucket_key)
    if stored is None:
        # It expired between the two calls: now the key is free.
        bucket.put(bucket_key, msgspec.json.encode(record))
        return Claim(task_id, earlier=False)
    earlier = msgspec.json.decode(stored, type=IdempotencyRecord)
    if earlier.body_sha256 != record.body_sha256:
        raise InvalidParameters(
            "Idempotency-Key: this key was used for another request. Use a new key for each task.",
            status=409,
        )
    return Claim(earlier.task_id, earlier=True)


def fingerprint(submission: Submission) -> str:
    """SHA-256 (hex) of the request, the same however its JSON was written."""
    return hashlib.sha256(msgspec.json.encode(submission, order="deterministic")).hexdigest()
