"""One child process: a session of its own, its output in our log, its end certain."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bridge.logs import get_logger, parse_line, relay

_LAUNCH: Final = Path(__file__).with_name("launch.py")
_TAIL_LINES: Final = 20
#: How long after its end a process' output may take to arrive.
_OUTPUT_SECONDS: Final = 1.0

log = get_logger("bridge.fleet")


@dataclass(frozen=True, kw_only=True)
class ProcessSpec:
    """What to run and how to end it.

    `environ` is the whole environment; `bound` are log fields of every line the process writes.
    `cold_signal` is sent when SIGTERM did not suffice, `cold_seconds` before SIGKILL.
    """

    name: str
    command: Sequence[str]
    environ: Mapping[str, str]
    bound: Mapping[str, Any] = field(default_factory=dict)
    cold_signal: signal.Signals | None = None
    cold_seconds: float = 1.0


class _TapedReader(io.BufferedReader):
    """Keeps the last lines that were read, for whoever asks why the process ended."""

    def __init__(self, raw: io.FileIO) -> None:
        super().__init__(raw)
        self.tape: deque[bytes] = deque(maxlen=_TAIL_LINES)

    def readline(self, size: int | None = -1, /) -> bytes:
        line = super().readline(size)
        if line.strip():
            self.tape.append(line)
        return line


class Child:
    """A started process. Use `Child.start`; await `wait` or `stop` to be rid of it."""

    def __init__(
        self, spec: ProcessSpec, process: asyncio.subprocess.Process, output: _TapedReader
    ) -> None:
        self.spec = spec
        self._process = process
        self._output = output
        self._terminated = False
        # A thread, since reading a pipe line by line blocks; a daemon, since a grandchild that
        # left the session may hold the pipe open after everything else has ended.
        self._reader = threading.Thread(
            target=self._relay, name=f"output of {spec.name}", daemon=True
        )
        self._reader.start()
        self._ending = asyncio.create_task(self._clear_up(), name=f"end of {spec.name}")

    @classmethod
    async def start(cls, spec: ProcessSpec) -> Child:
        """Start `spec`. Raises OSError when the system cannot create a process."""
        read_end, write_end = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", str(_LAUNCH), str(os.getpid())),
                *spec.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=write_end,
                stderr=write_end,
                env=dict(spec.environ),
                start_new_session=True,
            )
        except BaseException:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        return cls(spec, process, _TapedReader(io.FileIO(read_end)))

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.returncode is None

    @property
    def stopped(self) -> bool:
        """Whether the process was stopped (SIGSTOP) and not let go on."""
        flags = os.WSTOPPED | os.WNOHANG | os.WNOWAIT  # look only: others wait for its end
        with contextlib.suppress(ChildProcessError):  # it has ended, and somebody knows already
            return self.running and os.waitid(os.P_PID, self.pid, flags) is not None
        return False

    def tail(self) -> list[str]:
        """Return the messages of the last lines the process wrote, oldest first."""
        return [parse_line(line)["message"] for line in list(self._output.tape)]

    async def wait(self) -> int:
        """Wait until the process and all of its session ended; return its exit status.

        A negative status is the number of the signal that ended it.
        """
        return await asyncio.shield(self._ending)

    async def _clear_up(self) -> int:
        """Runs once for each process: later its pid may be another's."""
        status = await self._process.wait()
        # What the process left behind in its session would be an orphan.
        self._signal_group(signal.SIGKILL)
        await asyncio.to_thread(self._reader.join, _OUTPUT_SECONDS)
        return status

    async def stop(self, grace_seconds: float | None) -> int:
        """Ask the process to end (SIGTERM), make it end after `grace_seconds` (None: never).

        May be called again with less grace while an earlier call still waits.
        """
        if not self._terminated:
            self._terminated = True
            self._signal(signal.SIGTERM)
        try:
            return await asyncio.wait_for(self.wait(), grace_seconds)
        except TimeoutError:
            log.warning("process did not end in time", process=self.spec.name, pid=self.pid)
        return await self._end_cold()

    async def kill(self) -> int:
        """End the process and its whole session at once."""
        if self.running:
            self._signal_group(signal.SIGKILL)
        return await self.wait()

    async def _end_cold(self) -> int:
        if self.spec.cold_signal is not None:
            self._signal(self.spec.cold_signal)
            with contextlib.suppress(TimeoutError):  # SIGKILL below is the answer to it
                return await asyncio.wait_for(self.wait(), self.spec.cold_seconds)
        return await self.kill()

    def _signal(self, number: signal.Signals) -> None:
        if self.running:
            self._process.send_signal(number)

    def _signal_group(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # the whole group is gone: as wanted
            os.killpg(self.pid, number)

    def _relay(self) -> None:
        with self._output:
            relay(self._output, self.spec.name, **self.spec.bound)
