"""A certificate authority for one test, made with the openssl program."""

from __future__ import annotations

import subprocess
from pathlib import Path

_VALID_DAYS = "2"


class Authority:
    """Signs certificates for servers and clients; all files are PEM."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self.certificate = directory / "ca.pem"
        self._key = directory / "ca.key"
        _openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-days", _VALID_DAYS, "-subj", "/CN=test authority"),
            *("-keyout", self._key, "-out", self.certificate),
        )

    def issue(self, name: str, alternative_names: str = "") -> tuple[Path, Path]:
        """Return certificate and key files; `alternative_names` as in ``IP:127.0.0.1,DNS:h``."""
        certificate, key = self._directory / f"{name}.pem", self._directory / f"{name}.key"
        extension = ("-addext", f"subjectAltName={alternative_names}") if alternative_names else ()
        _openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-days", _VALID_DAYS, "-subj", f"/CN={name}", *extension),
            *("-addext", "basicConstraints=critical,CA:FALSE"),
            *("-CA", self.certificate, "-CAkey", self._key),
            *("-keyout", key, "-out", certificate),
        )
        return certificate, key


def _openssl(*arguments: str | Path) -> None:
    done = subprocess.run(
        ["openssl", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
