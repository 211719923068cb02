"""Ties a process' life to that of its starter, then becomes the wanted command.

Run by path (``python -I -S launch.py STARTER_PID COMMAND ...``), so it must import nothing of
ours. It exists because asking for the parent-death signal between fork and exec, as
``preexec_fn`` would, is not safe in a program with threads. Where the kernel has no such signal
(it is Linux's) the command simply runs.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def _die_with(starter_pid: int) -> None:
    """Have the kernel send SIGTERM to this process when its starter is gone."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    # The starter may have died before the call above: then no signal will ever come.
    if os.getppid() != starter_pid:
        sys.exit("the process that started this one is gone")


def main(argv: list[str]) -> None:
    """Run ``argv[2:]`` in place of this process; ``argv[1]`` is the starter's pid."""
    starter_pid, command = int(argv[1]), argv[2:]
    if sys.platform == "linux":
        _die_with(starter_pid)
    try:
        os.execvp(command[0], command)  # noqa: S606 - replacing this process is the purpose
    except OSError as error:
        sys.exit(f"cannot run {command[0]}: {error.strerror}")


if __name__ == "__main__":
    main(sys.argv)
