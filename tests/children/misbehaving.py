"""Engines that misbehave: `python misbehaving.py KIND [FOLDER]`. Each breaks one thing that a bridge might rely on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time


def say(event: str, **values: object) -> None:
    sys.stdout.write(json.dumps({"event": event, **values}) + "\n")
    sys.stdout.flush()


def hello() -> None:
    say("hello", protocol=1, version="test", job="")


def done() -> None:
    say("done", message="all good", stopped=False)


def wait_for_stop() -> None:
    """As a good engine: until `stop` comes, or stdin ends."""
    for line in sys.stdin:
        if "stop" in line:
            break
    say("done", message="saved", stopped=True)


def good() -> None:
    hello()
    say("stage", name="work", message="")
    for step in range(1, 4):
        say("progress", done=step, total=3, unit="step", rate=10.0, eta_s=0.1, label="")
        say("metric", step=step, values={"loss/current": 1.0 / step})
    done()


def obedient() -> None:
    hello()
    wait_for_stop()


def deaf() -> None:
    """Reads no command; ends by SIGTERM."""
    hello()
    while True:
        time.sleep(0.05)


def stubborn() -> None:
    """Neither commands nor SIGTERM end it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    hello()
    while True:
        time.sleep(0.05)


def silent() -> None:
    time.sleep(60)


def crash() -> None:
    hello()
    sys.stderr.write("Traceback (most recent call last):\n  somewhere\nSegmentation of everything\n")
    sys.stderr.flush()
    os.kill(os.getpid(), signal.SIGSEGV)


def killed() -> None:
    hello()
    os.kill(os.getpid(), signal.SIGKILL)


def forgetful() -> None:
    """Ends well without having said `done`."""
    hello()


def fails(status: int, kind: str) -> None:
    hello()
    say("failed", kind=kind, message="--blocks_to_swap is too small.", hint="Raise --blocks_to_swap to 20.")
    sys.exit(status)


def speechless(status: int) -> None:
    sys.stderr.write("something odd\n")
    sys.exit(status)


def long_line() -> None:
    """A line of 20 MB on both streams, then good behaviour."""
    hello()
    sys.stderr.write("x" * 20_000_000 + "\n")
    sys.stdout.write("y" * 20_000_000 + "\n")
    say("log", message="still here", level="info")
    done()


def flood() -> None:
    """Megabytes of lines, half of them no events."""
    hello()
    for number in range(20_000):
        sys.stdout.write(f"not an event {number} {'z' * 60}\n")
        say("log", message=f"line {number}", level="info")
    done()


def half_lines() -> None:
    """Events in pieces, and a last line without an end."""
    hello()
    text = json.dumps({"event": "log", "message": "in pieces", "level": "info"}) + "\n"
    for character in text:
        sys.stdout.write(character)
        sys.stdout.flush()
        time.sleep(0.001)
    sys.stdout.write(json.dumps({"event": "done", "message": "no newline", "stopped": False}))
    sys.stdout.flush()


def not_utf8() -> None:
    hello()
    sys.stdout.buffer.write(b'{"event": "log", "message": "caf\xe9", "level": "info"}\n\xff\xfe\x00\n')
    sys.stdout.buffer.flush()
    done()


def nonsense() -> None:
    """Lines that are almost events, almost a bar, and no text; then more than a pipe holds."""
    hello()
    say("log", message="caf\udce9", level="info")
    sys.stdout.write('{"event": ["log"]}\n' + "[" * 100_000 + "\n")
    sys.stderr.write("Loading:  25%|####      | 1.2.3/4 [00:01<00:03,  2.00it/s]\n")
    sys.stderr.write("a line of a library\n" * 20_000)
    sys.stderr.flush()
    done()


def bars() -> None:
    """What tqdm draws on stderr."""
    hello()
    for step in range(5):
        sys.stderr.write(f"\rLoading:  {step * 25:3d}%|####      | {step}/4 [00:0{step}<00:0{4 - step},  2.00it/s]")
        sys.stderr.flush()
        time.sleep(0.02)
    sys.stderr.write("\n")
    done()


def with_grandchild(folder: str, *, leaves: bool) -> None:
    """Starts a program that would live for a minute and holds the pipes open; then ends, or waits for stop."""
    code = "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", code])
    with open(os.path.join(folder, "grandchild"), "w") as file:
        file.write(str(child.pid))
    hello()
    if leaves:
        done()
        os._exit(0)
    wait_for_stop()


KINDS = {
    "good": good, "obedient": obedient, "deaf": deaf, "stubborn": stubborn, "silent": silent, "crash": crash,
    "killed": killed, "forgetful": forgetful, "long_line": long_line, "flood": flood, "half_lines": half_lines,
    "not_utf8": not_utf8, "nonsense": nonsense, "bars": bars,
    "option": lambda: fails(2, "option"), "memory": lambda: fails(3, "memory"), "disk": lambda: fails(4, "disk"),
    "bug": lambda: fails(70, "bug"), "speechless": lambda: speechless(70),
    "grandchild": lambda: with_grandchild(sys.argv[2], leaves=False),
    "orphaning": lambda: with_grandchild(sys.argv[2], leaves=True),
}  # fmt: skip

if __name__ == "__main__":
    KINDS[sys.argv[1]]()
