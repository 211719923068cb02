"""The Redis that the comparison needs: Debian's redis-server, nothing kept, a free port."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from types import TracebackType

_READY = re.compile(r"Ready to accept connections")
_STOP_TIMEOUT_SECONDS = 10.0


class RedisServer:
    """`with RedisServer(directory, port) as url:`"""

    def __init__(self, directory: Path, port: int) -> None:
        self.port = port
        self.url = f"redis://127.0.0.1:{port}"
        self._directory = directory
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> RedisServer:
        binary = shutil.which("redis-server")
        if binary is None:
            raise FileNotFoundError(
                "redis-server is not installed: Celery's tests write down in it what ran, so it is "
                "needed without the comparison too (Debian: apt-get install redis-server)"
            )
        self._directory.mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(
            [binary, "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""],
            cwd=self._directory,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        lines = []
        for line in self._process.stdout:
            lines.append(line)
            if _READY.search(line):
                return self
        self.__exit__(None, None, None)
        raise RuntimeError("redis-server did not start:\n" + "".join(lines[-20:]))

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        process = self._process
        if process is not None and process.stdout is not None:
            process.terminate()
            # Redis keeps writing as it ends: read, or it could block on a full pipe.
            process.communicate(timeout=_STOP_TIMEOUT_SECONDS)
