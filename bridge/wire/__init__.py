"""A small blocking NATS client for programs that fork and block: Celery workers and gunicorn."""

from bridge.wire.connection import SILENCE_SECONDS, Connection
from bridge.wire.jetstream import JetStream, JetStreamError, PubAck
from bridge.wire.kv import Bucket, KeyExists
from bridge.wire.mirror import BucketMirror
from bridge.wire.options import ConnectOptions
from bridge.wire.pool import ConnectionPool
from bridge.wire.protocol import Message, PayloadTooLarge

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
    "SILENCE_SECONDS",
]
