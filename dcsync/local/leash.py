"""Starts a program that gets a signal when its parent dies, so that a killed parent leaves nothing running.

Run as a script, with the standard library only: it becomes the program by exec, and costs nothing afterwards. A small
program of its own rather than a function run between fork and exec, which is not safe in a process with threads.
On Linux the kernel sends the signal; elsewhere the program is started without it, and the next start finds the orphan.
"""

from __future__ import annotations

import ctypes  # imported now: the user we become may not be able to read Python's library
import os
import signal
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1
KEEP = -1


def leashed(
    argv: Sequence[str], *, death_signal: signal.Signals, uid: int | None = None, gid: int | None = None
) -> list[str]:
    """The command that runs `argv` as this user, for a child of the calling process.

    The leash hangs on the thread that starts the child, not only on its process: call from the main thread.
    """
    ids = [str(KEEP if number is None else number) for number in (uid, gid)]
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(int(death_signal)), *ids, *argv]


def main(arguments: Sequence[str]) -> None:
    parent, death_signal, uid, gid = (int(word) for word in arguments[:4])
    _become(uid=uid, gid=gid)
    # After the change of user, which would clear it; and before the look at the parent, which may have ended already.
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
