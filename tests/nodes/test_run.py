"""The bridge against engines that misbehave: each is survived, and nothing of it is left."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from .conftest import PACK, PATIENCE_S, alive, part, until

run = part("nodes.run")
events = part("engine.contract.events")
CHILD = PACK / "tests" / "children" / "misbehaving.py"


class Started:
    """A misbehaving engine, and what it said."""

    def __init__(self, kind: str, folder: Path, argv: tuple[str, ...] = ()):
        self.events: list[Any] = []
        self.log = folder / "log.txt"
        program = run.Program(
            argv=argv or (sys.executable, str(CHILD), kind, str(folder)),
            environment=os.environ,
            folder=folder,
            log=self.log,
        )
        self.began = time.monotonic()
        self.child = run.Child(program, self.events.append)

    def end(self, timeout_s: float = 2 * PATIENCE_S) -> Any:
        ended = self.child.wait(timeout_s)
        assert ended is not None, "still running"
        return ended

    def cancelled(self) -> tuple[Any, float]:
        """Cancel once it has said hello; how it ended and how long that took."""
        assert until(lambda: self.events), "it said nothing"
        began = time.monotonic()
        self.child.cancel()
        return self.end(), time.monotonic() - began

    def messages(self) -> list[str]:
        return [event.message for event in self.events if isinstance(event, events.Log)]


def test_a_good_engine_is_heard_whole(tmp_path: Path) -> None:
    started = Started("good", tmp_path)
    ended = started.end()
    assert (ended.status, ended.last.message) == (0, "all good")
    assert [event.values["loss/current"] for event in started.events if isinstance(event, events.Metric)] == [
        1.0, 0.5, 1 / 3,
    ]  # fmt: skip
    assert "== work" in started.log.read_text()


def test_stop_is_passed_on(tmp_path: Path) -> None:
    started = Started("obedient", tmp_path)
    started.child.send("stop")
    assert started.end().last.stopped


@pytest.mark.parametrize("kind", ["obedient", "deaf", "stubborn"])
def test_cancel_ends_it_within_five_seconds_whatever_it_does(tmp_path: Path, kind: str) -> None:
    ended, took_s = Started(kind, tmp_path).cancelled()
    assert ended.cancelled
    assert took_s < PATIENCE_S
    assert (ended.status == 0) == (kind == "obedient")


def test_cancel_ends_an_engine_that_never_spoke(tmp_path: Path) -> None:
    started = Started("silent", tmp_path)
    started.child.cancel()
    assert started.end().status != 0
    assert time.monotonic() - started.began < PATIENCE_S


@pytest.mark.skipif(run.WINDOWS, reason="process groups are POSIX's")
@pytest.mark.parametrize("kind", ["grandchild", "orphaning"])
def test_no_grandchild_is_left(tmp_path: Path, kind: str) -> None:
    started = Started(kind, tmp_path)
    if kind == "grandchild":
        started.cancelled()
    else:
        assert started.end().last.message == "all good"  # the pipes that it holds open are not waited for
    grandchild = int((tmp_path / "grandchild").read_text())
    assert until(lambda: not alive(grandchild))


@pytest.mark.parametrize(
    ("kind", "status"),
    [("crash", -11), ("killed", -9), ("forgetful", 0), ("option", 2), ("memory", 3), ("disk", 4), ("bug", 70)],
)
def test_every_way_to_end_is_told(tmp_path: Path, kind: str, status: int) -> None:
    ended = Started(kind, tmp_path).end()
    assert ended.status == status
    assert (ended.last is not None) == (kind in ("option", "memory", "disk", "bug"))


def test_the_last_words_of_a_crash_are_kept(tmp_path: Path) -> None:
    started = Started("crash", tmp_path)
    assert started.end().tail[-1] == "Segmentation of everything"
    assert "Segmentation of everything" in started.log.read_text()


def test_lines_of_megabytes_are_left_out_and_the_rest_is_heard(tmp_path: Path) -> None:
    started = Started("long_line", tmp_path)
    ended = started.end(20)
    assert ended.last.message == "all good"
    assert started.messages() == ["still here"]
    assert started.log.stat().st_size < 10_000


def test_a_flood_is_survived(tmp_path: Path) -> None:
    started = Started("flood", tmp_path)
    assert started.end(20).last.message == "all good"
    assert started.messages()[-1] == "line 19999"
    assert len(started.child.wait(0).tail) == run.TAIL_LINES


def test_half_lines_and_a_missing_last_newline(tmp_path: Path) -> None:
    started = Started("half_lines", tmp_path)
    assert started.end().last.message == "no newline"
    assert started.messages() == ["in pieces"]


def test_bytes_that_are_no_utf8(tmp_path: Path) -> None:
    started = Started("not_utf8", tmp_path)
    assert started.end().last.message == "all good"
    assert started.messages() == ["caf\ufffd"]


def test_no_line_stops_the_listening(tmp_path: Path) -> None:
    """An engine that nobody listens to waits for ever, when its pipe is full."""
    started = Started("nonsense", tmp_path)
    assert started.end().last.message == "all good"
    assert started.messages() == ["caf\udce9"] and "caf?" in started.log.read_text()
    assert started.child.wait(0).tail[-1] == "a line of a library"


def test_stray_bars_become_progress_and_stay_out_of_the_log(tmp_path: Path) -> None:
    started = Started("bars", tmp_path)
    started.end()
    progress = [event for event in started.events if isinstance(event, events.Progress)]
    assert (progress[-1].done, progress[-1].total, progress[-1].label, progress[-1].rate) == (4, 4, "Loading", 2.0)
    assert started.log.read_text().count("Loading") <= 1


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        Started("", tmp_path, argv=(str(tmp_path / "missing"),)).end()


def test_a_full_disk_ends_the_log_not_the_job(tmp_path: Path) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    program = run.Program(
        argv=(sys.executable, str(CHILD), "good"), environment=os.environ, folder=tmp_path, log=Path("/dev/full")
    )
    assert run.Child(program, lambda event: None).wait(PATIENCE_S).last.message == "all good"


PARENT = """
import sys, time
sys.path.insert(0, {pack!r})
from tests.nodes.conftest import part
run = part("nodes.run")
import os
from pathlib import Path
program = run.Program(argv=(sys.executable, {child!r}, "obedient"), environment=os.environ, folder=Path({folder!r}))
child = run.Child(program, lambda event: print("heard", flush=True))
time.sleep(60)
"""


@pytest.mark.skipif(run.WINDOWS, reason="SIGKILL is POSIX's")
def test_a_killed_comfyui_leaves_no_engine(tmp_path: Path) -> None:
    """Stdin closes with the parent, so the engine stops by itself."""
    code = PARENT.format(pack=str(PACK), child=str(CHILD), folder=str(tmp_path))
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=PACK)
    assert parent.stdout and parent.stdout.readline() == "heard\n"
    engines = [process.pid for process in psutil.Process(parent.pid).children()]
    assert len(engines) == 1
    parent.kill()
    parent.wait()
    assert until(lambda: not alive(engines[0]))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Fetching: 40%|####      | 4/10 [00:02<00:03,  1.92it/s]", ("Fetching", 4, 10, "it", 1.92, 3.0)),
        (" 12%|█▎        | 1.2k/10.0k [01:02<07:03, 20.8B/s]", ("", 1200, 10000, "B", 20.8, 423.0)),
        ("a b: 100%|##########| 3/3 [1:00:02<00:00, 4.00s/it]", ("a b", 3, 3, "it", 0.25, 0.0)),
        ("  0%|          | 0/7 [00:00<?, ?it/s]", ("", 0, 7, "it", None, None)),
    ],
)
def test_bars_are_read(line: str, expected: tuple[Any, ...]) -> None:
    found = run.bar_progress(line)
    assert (found.label, found.done, found.total, found.unit, found.rate, found.eta_s) == expected


@pytest.mark.parametrize("line", ["", "50% done", "a|b|c", " " * 100_000 + "%|", "x" * 50_000 + "%|"])
def test_what_is_no_bar_is_found_out_fast(line: str) -> None:
    began = time.process_time()
    assert run.bar_progress(line) is None
    assert time.process_time() - began < 0.5


def test_lines_are_cut_the_same_wherever_the_chunks_end() -> None:
    data = "one\r\ntwo\rthree\n\nvier ü\n".encode()
    for size in range(1, len(data) + 1):
        lines = run.Lines(longest=100, bars=True)
        found = [line for start in range(0, len(data), size) for line in lines.feed(data[start : start + size])]
        assert [text for text, _ in found + lines.end()] == ["one", "two", "three", "vier ü"], size
        assert [bar for _, bar in found] == [False, True, False, False], size
