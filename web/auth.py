"""API keys: one line `name:sha256-hex` each in a file; the keys themselves are nowhere kept."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from pathlib import Path

from bridge.errors import ConfigError, Unauthorized

_LINE = re.compile(r"([A-Za-z0-9_.@-]{1,64}):([0-9a-f]{64})")
_KEY_BYTES = 32


def generate(name: str = "client") -> tuple[str, str]:
    """Return a new key for a client, and the line that lets it in.

    Raises ConfigError when `name` cannot stand in the file.
    """
    key = secrets.token_urlsafe(_KEY_BYTES)
    line = f"{name}:{_digest(key)}"
    if not _LINE.fullmatch(line):
        raise ConfigError(f"{name!r} cannot name a key: use letters, digits and . _ @ - only")
    return key, line


class ApiKeys:
    """The keys of one file; an empty set lets everybody in."""

    def __init__(self, digests: dict[str, str] | None = None) -> None:
        self._digests = digests or {}

    @classmethod
    def load(cls, path: str) -> ApiKeys:
        """Read the keys file; "" means that no keys are asked for.

        Raises ConfigError when the file cannot be read, holds no key or a line that is none.
        """
        if not path:
            return cls()
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"cannot read the API keys in {path}: {error}. Correct API_KEYS_FILE."
            ) from error
        digests: dict[str, str] = {}
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            match = _LINE.fullmatch(line.strip())
            if match is None:
                raise ConfigError(
                    f"{path}, line {number}: not name:sha256. Make a line with "
                    "`python -m bridge apikey`."
                )
            if match[1] in digests:
                raise ConfigError(f"{path}, line {number}: {match[1]!r} stands there twice.")
            digests[match[1]] = match[2]
        if not digests:
            raise ConfigError(f"{path} holds no API key. Make one with `python -m bridge apikey`.")
        return cls(digests)

    @property
    def required(self) -> bool:
        return bool(self._digests)

    def client(self, authorization: str | None, api_key: str | None) -> str:
        """Return the name of the client whose key the request carries.

        `authorization` and `api_key` are the values of these headers (X-API-Key). Raises
        Unauthorized. Takes the same time whichever key is given.
        """
        scheme, _, bearer = (authorization or "").partition(" ")
        given = bearer.strip() if scheme.lower() == "bearer" else api_key or ""
        digest = _digest(given)
        found = [
            name for name, known in self._digests.items() if hmac.compare_digest(known, digest)
        ]
        if not found:
            raise Unauthorized(
                "No known API key came: send one as `Authorization: Bearer <key>` or `X-API-Key`."
            )
        return found[0]


def _digest(key: str) -> str:
    # A key is 256 random bits, so a fast hash is enough; a slow one is for guessable secrets.
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
