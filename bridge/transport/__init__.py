"""kombu transport for `nats://`."""

from bridge.transport import declared
from bridge.transport.transport import TlsTransport, Transport

__all__ = ["Transport", "TlsTransport"]

declared.install()
