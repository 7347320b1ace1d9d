"""A running engine as a node sees it: a process, its events, its stdin."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from engine.contract.events import Artifact, Done, Event, Failed, Hello, Metric, read
from tests.faults.kit import environment

LIMIT_S = 60.0


class EngineChild:
    """`python -m engine …` with `--events`. `heard` are the events so far; a line that is none is an error at once."""

    def __init__(self, *words: object, folder: Path, code: str = "", **told: str) -> None:
        front_door = ["-c", code] if code else ["-m", "engine"]
        self.heard: list[Event] = []
        self.errors = folder / "stderr.txt"
        with open(self.errors, "w", encoding="utf-8") as stream:
            self.process = subprocess.Popen(
                [sys.executable, *front_door, *map(str, words), "--events"],
                cwd=folder,
                env=environment(PYTHONUNBUFFERED="1", **told),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
                encoding="utf-8",
            )

    def __enter__(self) -> EngineChild:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None and not stream.closed:
                stream.close()

    def until(self, reached: Callable[[Event], bool]) -> Event:
        """Read on until such an event."""
        for event in self._events():
            if reached(event):
                return event
        raise AssertionError(f"it ended without: {self.heard[-3:]} {self.errors.read_text()[-2000:]}")

    def step(self, number: int) -> None:
        """Read on until this step was trained."""
        self.until(lambda event: isinstance(event, Metric) and event.step >= number)

    def tell(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        """Read to the end of the stream, check it, and return the exit status."""
        for _ in self._events():
            pass
        status = self.process.wait(LIMIT_S)
        assert isinstance(self.heard[0], Hello) and not any(isinstance(event, Hello) for event in self.heard[1:])
        assert isinstance(self.heard[-1], (Done, Failed)), self.heard[-1]
        assert not any(isinstance(event, (Done, Failed)) for event in self.heard[:-1])
        return status

    @property
    def last(self) -> Event:
        return self.heard[-1]

    @property
    def steps(self) -> list[int]:
        return [event.step for event in self.heard if isinstance(event, Metric)]

    def artifacts(self, kind: str) -> list[Path]:
        return [Path(event.path) for event in self.heard if isinstance(event, Artifact) and event.kind == kind]

    def _events(self):
        assert self.process.stdout is not None
        deadline = time.monotonic() + LIMIT_S
        for line in self.process.stdout:
            event = read(line)  # ValueError for anything else
            self.heard.append(event)
            yield event
            assert time.monotonic() < deadline, f"it takes more than {LIMIT_S:g} s: {self.heard[-1]}"


def train_words(prepared, out: Path, *more: object) -> list[object]:
    """A training on the demo's models and caches that would go on for a long time."""
    (step,) = (step for step in prepared.steps if step.verb == "train")
    words = [*step.command, "--output_dir", out, "--logging_dir", out / "logs", "--max_train_steps", 100_000]
    return [*words, "--save_every_n_steps", 100_000, *more]
