"""Stands for `env_bootstrap ACTION --events`: FAKE_BOOTSTRAP says whether it works, fails or goes on until stopped."""

from __future__ import annotations

import json
import os
import sys
import time


def say(event: str, **values: object) -> None:
    print(json.dumps({"event": event, **values}), flush=True)


def main() -> int:
    say("hello", protocol=1, version="", job="environment")
    say("stage", name="torch", message=f"{sys.argv[1]}: torch")
    say("progress", done=40, total=100, unit="%", label="unpacking")
    if os.environ.get("FAKE_BOOTSTRAP") == "fails":
        say("failed", kind="network", message="No connection.", hint="Connect, and try again.")
        return 1
    if os.environ.get("FAKE_BOOTSTRAP") == "waits":
        while b"stop" not in os.read(0, 100):
            time.sleep(0.01)
        say("done", message="Stopped.", stopped=True)
        return 0
    say("done", message="ready")
    return 0


if __name__ == "__main__":
    sys.exit(main())
