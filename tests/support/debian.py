"""Programs of Debian's that tests and benchmarks use."""

from __future__ import annotations

import os
import shutil
import subprocess


class Missing(RuntimeError):
    """A program is not installed, and may not be installed here."""


def debian_program(name: str, package: str) -> str:
    """Return the path of a program, installed by apt-get where that can be done.

    Raises Missing, with what to do.
    """
    found = shutil.which(name)
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        for arguments in (["update", "-qq"], ["install", "-qq", "-y", package]):
            subprocess.run(["apt-get", *arguments], stdout=subprocess.DEVNULL, check=False)
        found = shutil.which(name)
    if found is None:
        raise Missing(f"{name} is not installed: apt-get install {package}")
    return found
