"""Makes `nats://` a kombu transport (ADR 0005).

kombu has no entry points for transports and refuses dotted names in URLs, but it loads the
entry points of its serializers on import. Ours registers the alias and no serializer.
"""

from __future__ import annotations

from kombu.transport import TRANSPORT_ALIASES

TRANSPORT_ALIASES.setdefault("nats", "bridge.transport:Transport")
TRANSPORT_ALIASES.setdefault("tls", "bridge.transport:TlsTransport")

#: encoder, decoder, content type: kombu skips encoders and decoders that are None
NO_SERIALIZER = (None, None, "application/x-nats-bridge")
