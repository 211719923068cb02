"""NATS's decentralised logins for one test: operator, account and user, each signed by the last.

The form is that of `nsc`; made here with the `nkeys` package, since a test needs only one chain.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import nkeys


class Identity:
    """A new key pair of one kind, for instance ``nkeys.PREFIX_BYTE_USER``."""

    def __init__(self, kind: int) -> None:
        self.seed: str = nkeys.encode_seed(os.urandom(32), kind).decode()
        self._pair = nkeys.from_seed(bytearray(self.seed.encode()))
        self.public: str = self._pair.public_key.decode()

    def sign(self, subject: Identity, claims: dict[str, Any], expires_at: int = 0) -> str:
        """Return a JWT in which this identity says `claims` of `subject`."""
        body: dict[str, Any] = {
            "iat": int(time.time()),
            "iss": self.public,
            "sub": subject.public,
            "name": "test",
            "nats": {"version": 2, **claims},
        }
        if expires_at:
            body["exp"] = expires_at
        digest = hashlib.sha256(json.dumps(body).encode()).digest()
        body["jti"] = base64.b32encode(digest).rstrip(b"=").decode()
        signed = f"{_part({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{_part(body)}"
        signature = base64.urlsafe_b64encode(self._pair.sign(signed.encode())).rstrip(b"=")
        return f"{signed}.{signature.decode()}"


def _part(content: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=").decode()


class Operator:
    """Vouches for one account, which has JetStream; `server_config` makes a server trust it."""

    def __init__(self) -> None:
        operator = Identity(nkeys.PREFIX_BYTE_OPERATOR)
        system = Identity(nkeys.PREFIX_BYTE_ACCOUNT)
        self._account = account = Identity(nkeys.PREFIX_BYTE_ACCOUNT)
        unlimited = {"subs": -1, "data": -1, "payload": -1, "conn": -1, "leaf": -1}
        exchange = {"imports": -1, "exports": -1, "wildcards": True}
        stored = {"mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1}
        of_system = {"type": "account", "limits": {**unlimited, **exchange}}
        of_account = {"type": "account", "limits": {**unlimited, **exchange, **stored}}
        of_operator = {"type": "operator", "system_account": system.public}
        self.server_config = (
            f"operator: {operator.sign(operator, of_operator)}\n"
            "resolver: MEMORY\n"
            "resolver_preload: {\n"
            f"  {account.public}: {operator.sign(account, of_account)}\n"
            f"  {system.public}: {operator.sign(system, of_system)}\n"
            "}\n"
        )

    def write_credentials(self, path: Path, expires_at: int = 0) -> Path:
        """Write the .creds file of a new user of the account."""
        user = Identity(nkeys.PREFIX_BYTE_USER)
        claims = {"type": "user", "subs": -1, "data": -1, "payload": -1}
        jwt = self._account.sign(user, claims, expires_at)
        path.write_text(
            f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{user.seed}\n------END USER NKEY SEED------\n"
        )
        return path
