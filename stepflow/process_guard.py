"""The process guard: a process group ends with its supervisor, even when the supervisor is SIGKILLed.

The guard is a small shell in a session of its own. It reads from a pipe whose write end only the supervisor holds: the
line `done` releases it; the end of the file means that the supervisor is gone, and the guard ends the group (SIGTERM, a
second, SIGKILL).

- The guard reaches the children of the guarded process as well, since they belong to its group.
- No Python code runs between fork and exec. A death signal (`PR_SET_PDEATHSIG`) would need that, which is unsafe with
  threads, and would fire when the *thread* that started the process ends.
- Release the guard before the group's number may be reused: it would otherwise end a stranger's group.
"""

from __future__ import annotations

import contextlib
import os
import subprocess

_SCRIPT = 'read -r word; [ "$word" = done ] && exit 0; kill -TERM "-$1"; sleep 1; kill -KILL "-$1"'


class ProcessGuard:
    """The guard of one process group, from its construction to `release`."""

    __slots__ = ("_pipe", "_shell")

    def __init__(self, group: int) -> None:
        """Start the guard of this group. Raises: OSError, the system refused."""
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", _SCRIPT, "stepflow-guard", str(group)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={"PATH": os.defpath},
            start_new_session=True,  # a Ctrl-C at the terminal must not reach the guard before the supervisor
        )
        assert self._shell.stdin is not None
        self._pipe = self._shell.stdin

    def release(self) -> None:
        """Let the guard exit and leave the group alone. Idempotent; does not block."""
        if not self._pipe.closed:
            with contextlib.suppress(BrokenPipeError):
                self._pipe.write(b"done\n")
                self._pipe.close()

    def wait(self) -> None:
        """Reap the guard. Blocks until it has exited, which only `release` or its own death brings about."""
        self._shell.wait()
