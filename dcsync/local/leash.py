"""Starts a program that receives a signal when its parent dies, so that a killed parent leaves no process running.

Run as a script with the standard library only, which then executes the program (exec). It is a separate script, because
a function between fork and exec is not safe in a process with threads. On Linux the kernel sends the signal; elsewhere
the program is started without it, and the next start ends the orphan.
"""

from __future__ import annotations

import ctypes  # imported now: the target user may not be able to read Python's library
import os
import signal
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1
KEEP = -1


def leashed(
    argv: Sequence[str], *, death_signal: signal.Signals, uid: int | None = None, gid: int | None = None
) -> list[str]:
    """Returns the command that runs `argv` as this user, for a child of the calling process.

    The kernel sends the signal when the thread that started the child ends: start it from the main thread.
    """
    ids = [str(KEEP if number is None else number) for number in (uid, gid)]
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(int(death_signal)), *ids, *argv]


def main(arguments: Sequence[str]) -> None:
    parent, death_signal, uid, gid = (int(word) for word in arguments[:4])
    _become(uid=uid, gid=gid)
    # After the change of user, which would clear it; and before the check of the parent, which may have ended already.
    if sys.platform == "linux":
        _die_with_parent(death_signal)
    if os.getppid() != parent:
        sys.exit("the program's parent has ended")
    for ignored_by_python in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored_by_python, signal.SIG_DFL)
    os.execv(arguments[4], list(arguments[4:]))  # noqa: S606 - no shell, on purpose


def _become(*, uid: int, gid: int) -> None:
    if gid != KEEP:
        os.setgroups([])
        os.setgid(gid)
    if uid != KEEP:
        os.setuid(uid)


def _die_with_parent(death_signal: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0) != 0:
        sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    main(sys.argv[1:])
