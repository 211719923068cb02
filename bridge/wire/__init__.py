"""A small blocking NATS client for programs that fork and block: Celery workers and gunicorn."""

from bridge.wire.connection import Connection, PayloadTooLarge
from bridge.wire.jetstream import JetStream, JetStreamError, PubAck
from bridge.wire.kv import Bucket, BucketMirror, KeyExists
from bridge.wire.options import ConnectOptions
from bridge.wire.pool import ConnectionPool
from bridge.wire.protocol import Message

__all__ = [
    "Connection",
    "ConnectOptions",
    "ConnectionPool",
    "Message",
    "PayloadTooLarge",
    "JetStream",
    "JetStreamError",
    "PubAck",
    "Bucket",
    "BucketMirror",
    "KeyExists",
]
