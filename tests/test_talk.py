"""What a job says is kept: for programs in `events.jsonl`, in words and with the time in `log.txt`. And it obeys."""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest

from engine.contract.events import Artifact, Control, Done, Event, Log, Metric, Stage, Warning_
from engine.talk import JobFolder, event_writer, signals_ask

SAID: list[Event] = [
    Stage(name="Loading the VAE", message="vae.pth"),
    Log(message="6 clips"),
    Log(message="inner workings", level="debug"),
    Metric(step=1, values={"loss/current": 1.0}),
    Warning_(message="left out"),
    Artifact(kind="LoRA", path="a.safetensors"),
    Done(message="1 step"),
]


@pytest.fixture
def level() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    before = root.level
    yield root
    root.setLevel(before)


@pytest.mark.parametrize(
    ("kept", "lines"),
    [
        ("INFO", ["INFO Loading the VAE vae.pth", "INFO 6 clips", "WARNING left out", "INFO saved LoRA: a.safetensors",
                  "INFO done 1 step"]),
        ("WARNING", ["WARNING left out"]),
    ],
)  # fmt: skip
def test_the_log_tells_the_job_in_words(kept: str, lines: list[str], level: logging.Logger, tmp_path: Path) -> None:
    level.setLevel(kept)
    folder = JobFolder(tmp_path, "")
    assert [folder.record(event) for event in SAID] == [""] * len(SAID)
    folder.close()
    told = (tmp_path / "log.txt").read_text(encoding="utf-8").splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line) for line in told)
    assert [line[20:] for line in told] == lines


@pytest.mark.parametrize("number", [errno.EPIPE, errno.EINVAL])
def test_a_reader_that_went_away_ends_no_job(number: int) -> None:
    """A killed ComfyUI: Windows has EINVAL for its pipe. The job saves, as the end of stdin asks it to."""
    stream = Mock()
    stream.write.side_effect = OSError(number, os.strerror(number))
    event_writer(stream)(Log(message="6 clips"))
    stream.write.assert_called_once()


def test_a_name_that_is_no_utf_8_is_kept_in_the_record(level: logging.Logger, tmp_path: Path) -> None:
    level.setLevel("INFO")
    folder = JobFolder(tmp_path, "")
    assert folder.record(Warning_(message=b"caf\xe9.mp4 is damaged".decode("utf-8", "surrogateescape"))) == ""
    folder.close()
    assert all(r"\udce9.mp4" in file.read_text("utf-8") for file in (tmp_path / "log.txt", tmp_path / "events.jsonl"))


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="needs SIGUSR1")
def test_signals_ask_to_save_and_for_samples_and_the_job_goes_on() -> None:
    """Schedulers of clusters send SIGUSR1 some time before they take the machine away."""
    control, said = Control(), list[Event]()
    with signals_ask(control, said.append):
        for number, take in ((signal.SIGUSR1, control.take_save), (signal.SIGUSR2, control.take_sample)):
            os.kill(os.getpid(), number)
            deadline = time.monotonic() + 10
            while not take():
                assert time.monotonic() < deadline
                time.sleep(0.001)
    assert not control.stop_requested and said == []
    assert not control.take_save() and not control.take_sample()


AT_A_TERMINAL = """
import sys, time
from pathlib import Path
from engine.contract.events import Hello, Meter
from engine.talk import conversation

with conversation(Hello(), events=False, folder=None) as (say, control):
    meter = Meter(say, total=10**6, unit="steps", label="Training")
    while not control.stop_requested:
        meter.advance()
        time.sleep(0.01)
    for _ in range(100):  # what is said now reaches nobody
        meter.advance()
    meter.close()
    Path(sys.argv[1]).write_text("saved")
"""


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs SIGHUP")
def test_a_job_whose_terminal_is_closed_saves_and_ends(tmp_path: Path) -> None:
    import fcntl
    import struct
    import termios

    ours, theirs = os.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))  # with no width no bar is drawn

    def take_terminal() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever started the tests may have gone without (nohup)

    child = subprocess.Popen(
        [sys.executable, "-c", AT_A_TERMINAL, str(tmp_path / "lora")],
        cwd=Path(__file__).parents[1], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        preexec_fn=take_terminal,
    )  # fmt: skip
    os.close(theirs)
    seen = b""
    while b"Training" not in seen:
        seen += os.read(ours, 4096)
    os.close(ours)
    assert child.wait(timeout=60) == 0
    assert (tmp_path / "lora").read_text() == "saved"


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs SIGHUP")
def test_what_nohup_started_outlives_its_terminal() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        control = Control()
        with signals_ask(control, lambda event: None):
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.05)
        assert not control.stop_requested
    finally:
        signal.signal(signal.SIGHUP, before)
