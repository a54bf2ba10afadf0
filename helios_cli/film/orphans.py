"""Ends child processes with this one, however it ends: after SIGKILL it cannot end them itself.

A shell reads their numbers from a pipe of ours. When this process is gone, so is its end of the pipe, and the shell
kills what is left. (PR_SET_PDEATHSIG would need code between fork and exec, and goes by threads, not processes.)
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading

WATCHER = """
alive=
while read -r change pid; do
    if [ "$change" = + ]; then alive="$alive $pid"; continue; fi
    kept=
    for one in $alive; do [ "$one" = "$pid" ] || kept="$kept $one"; done
    alive=$kept
done
for one in $alive; do kill -s KILL -- "-$one"; done 2>/dev/null
"""

_lock = threading.Lock()
_watcher: tuple[int, subprocess.Popen[bytes]] | None = None
"""With the process that it is for: one that was forked from here needs its own."""


def watch(pid: int) -> None:
    """From now on the process `pid`, and the group it leads, end with this process."""
    _tell(f"+ {pid}\n")


def forget(pid: int) -> None:
    """The process has ended: its number may become another one's."""
    _tell(f"- {pid}\n")


def _tell(change: str) -> None:
    with _lock, contextlib.suppress(OSError):  # without a shell, or where it was killed, there is no more to be done
        os.write(_started().stdin.fileno(), change.encode())


def _started() -> subprocess.Popen[bytes]:
    global _watcher
    if _watcher is None or _watcher[0] != os.getpid():
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        shell = subprocess.Popen(
            ["/bin/sh", "-c", WATCHER], stdin=subprocess.PIPE, start_new_session=True, cwd="/", bufsize=0, **quiet
        )
        _watcher = os.getpid(), shell
    return _watcher[1]
