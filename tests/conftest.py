"""What many tests start from: a prepared demo (clips, small models, job files), and the engine's own front door."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from engine.__main__ import SPINS

os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # started by a shell in the background, which hides Ctrl-C from us and from all processes that tests start
    signal.signal(signal.SIGINT, signal.default_int_handler)

with contextlib.suppress(ImportError):  # a bare machine with a GPU has it not, nor the tests that need it
    import hypothesis

    hypothesis.settings.register_profile("ours", deadline=None)  # on a busy machine, time says nothing of an example
    hypothesis.settings.load_profile("ours")

ROOM_OF_A_WORKER = 4 << 30  # bytes of main memory: the largest tests load whole models, small ones


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """How many processes `-n auto` gives the tests: a core each, which small models gain more from than from threads.

    Where there is a GPU, none beside another: its memory and its time are measured.
    """
    if shutil.which("nvidia-smi"):
        return 0
    workers = min(os.cpu_count() or 1, psutil.virtual_memory().total // ROOM_OF_A_WORKER)
    if workers < 2:
        return 0
    os.environ.setdefault("OMP_NUM_THREADS", str((os.cpu_count() or 1) // workers))
    return int(workers)


@dataclass(frozen=True)
class Result:
    """How an engine command ended, and what it said on the terminal."""

    status: int
    out: str
    err: str

    @property
    def error_lines(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("error:")]


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory):
    """A demo folder with its inputs only, its models random; tests that write make their outputs elsewhere."""
    from engine.demo.prepare import prepare

    return prepare(tmp_path_factory.mktemp("prepared demo"), trained=False)


@pytest.fixture(scope="module")
def cached(prepared, tmp_path_factory: pytest.TempPathFactory):
    """The prepared demo with both caches made."""
    from engine.__main__ import main

    for step in prepared.steps[:2]:
        assert main([*step.command, "--job_dir", str(tmp_path_factory.mktemp("job"))]) == 0
    return prepared


@pytest.fixture
def engine(capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run one engine command in this process: `engine("train", "wan", "--dit", path)`."""
    from engine.__main__ import main

    def run(*words: object) -> Result:
        capfd.readouterr()
        try:
            status = main([str(word) for word in words])
        except SystemExit as stop:  # argparse's way out of --help
            status = stop.code if isinstance(stop.code, int) else 2
        out, err = capfd.readouterr()
        return Result(status, out, err)

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder whose name has a blank and brackets, as people's folders do."""
    path = tmp_path / "my data [v2]"
    path.mkdir()
    return path
