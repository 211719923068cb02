"""What CONNECT says about who we are: password, token, nkey or credentials file."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import nkeys

from bridge.errors import ConfigError
from bridge.wire.options import ConnectOptions

_BLOCK = re.compile(r"-+BEGIN ([A-Z ]+)-+\s+(\S+)\s+-+END [A-Z ]+-+")


def login_fields(options: ConnectOptions, nonce: str) -> dict[str, Any]:
    """Return the fields of CONNECT that authenticate. Raises ConfigError on unreadable files."""
    if options.credentials_file:
        jwt, seed = read_credentials(options.credentials_file)
        return {"jwt": jwt, "sig": _sign(seed, nonce)}
    if options.nkey_seed_file:
        seed = _read(options.nkey_seed_file).strip()
        public_key = _key_pair(seed).public_key.decode()
        return {"nkey": public_key, "sig": _sign(seed, nonce)}
    if options.token:
        return {"auth_token": options.token}
    if options.user:
        return {"user": options.user, "pass": options.password or ""}
    return {}


def read_credentials(path: str) -> tuple[str, str]:
    """Return user JWT and seed of a ``.creds`` file."""
    blocks = dict(_BLOCK.findall(_read(path)))
    try:
        return blocks["NATS USER JWT"], blocks["USER NKEY SEED"]
    except KeyError as missing:
        raise ConfigError(
            f"{path} is no NATS credentials file (no {missing} block): name the .creds file of a "
            "NATS user in NATS_CREDENTIALS_FILE"
        ) from None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the NATS login cannot be read from {path} ({error}): check NATS_CREDENTIALS_FILE "
            "or NATS_NKEY_SEED_FILE"
        ) from error


def _key_pair(seed: str) -> Any:
    try:
        return nkeys.from_seed(bytearray(seed.encode()))
    except (nkeys.NkeysError, ValueError) as error:
        raise ConfigError(
            f"the NATS nkey seed is not valid ({error!r}): it starts with SU and is not the "
            "public key"
        ) from error


def _sign(seed: str, nonce: str) -> str:
    signature = _key_pair(seed).sign(nonce.encode())
    return base64.urlsafe_b64encode(signature).rstrip(b"=").decode()
