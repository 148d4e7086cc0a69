"""``enter.py PARENT CHANNEL GROUP... -- COMMAND...``: enter groups, then become the command, with the same process id.

The command dies with PARENT, the process that starts this.  An error is written to the file descriptor CHANNEL, which
is closed without a byte once the command runs.  This is a file of its own, run without site packages, so that it adds
almost nothing to the memory of the groups.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends, and so with its process."""
    with contextlib.suppress(OSError, AttributeError):  # Linux only
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    parent, channel = int(sys.argv[1]), int(sys.argv[2])
    mark = sys.argv.index("--")
    groups, command = sys.argv[3:mark], sys.argv[mark + 1 :]
    with contextlib.suppress(OSError):  # the prefix may have closed it
        os.set_inheritable(channel, False)
    end_with_parent()
    if os.getppid() != parent:  # it died before the kernel knew
        return
    what = command[0]
    try:
        for group in groups:
            what = f"{group}/cgroup.procs"
            with open(what, "w") as members:
                members.write(str(os.getpid()))
        what = command[0]
        os.execvp(what, command)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.write(channel, f"{what}: {error.strerror}".encode())
        raise SystemExit(127) from error


if __name__ == "__main__":
    main()
