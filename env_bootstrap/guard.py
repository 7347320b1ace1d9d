"""Stands between us and an installer: `python -I -S guard.py COMMAND …` runs COMMAND and ends when it ends.

Its stdin is a pipe that the parent holds open. When the pipe closes, the parent is gone (or wants an end), and the
whole process group is ended: nothing outlives a killed `create`, and no second one meets a first one's installer. Works
alike for Ctrl-C, kill -9 and a closed terminal, on every platform. Runs as a script, so it imports nothing of ours.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

GRACE_S = 3.0


def end_all(child: subprocess.Popen[bytes]) -> None:
    """Ask, then kill. On POSIX the group is ours alone (the parent started us in a new session)."""
    if sys.platform == "win32":
        tree = ["taskkill", "/T", "/F", "/PID", str(child.pid)]
        subprocess.run(tree, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        os._exit(1)
    with contextlib.suppress(OSError):
        os.killpg(0, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    while child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(0, signal.SIGKILL)


def main() -> int:
    if os.name != "nt":
        # A handler, not SIG_IGN: an ignored signal would stay ignored in the installer, a handler does not.
        signal.signal(signal.SIGTERM, lambda number, frame: None)
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)

    def watch() -> None:
        # os.read, because a thread blocked inside sys.stdin aborts the interpreter at its normal end.
        while os.read(0, 4096):
            pass
        end_all(child)

    threading.Thread(target=watch, daemon=True).start()
    status = child.wait()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())
