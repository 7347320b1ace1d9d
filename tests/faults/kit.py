"""What the fault tests are made with: processes killed in the middle of a write, and disks without room."""

from __future__ import annotations

import errno
import multiprocessing.process
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

from engine.contract import files

ROOT = Path(__file__).resolve().parents[2]
HOLD_S = 60.0
LEFTOVERS = ".part-*"

needs_kill = pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")


def pausing(flag: str | Path) -> Callable[[], None]:
    """A function that lets the file `flag` appear and then waits to be killed."""

    def wait() -> None:
        Path(flag).touch()
        time.sleep(HOLD_S)
        os._exit(9)  # nobody came to kill it

    return wait


def hold(flag: str | Path, ending: str, how: str) -> None:
    """Called in a child: from here on the first write of a file or folder whose name ends so takes for ever.

    "half": half of its bytes are on disk (what is written in one piece); "renaming": all of it, under its temporary
    name. The file `flag` appears when that point is reached.
    """

    wait = pausing(flag)
    targets: dict[Path, Path] = {}
    beside, replace, write_bytes = files._beside, os.replace, Path.write_bytes

    def noted(path: Path) -> Path:
        temporary = beside(path)
        targets[temporary] = path
        return temporary

    def half(path: Path, data: bytes) -> int:
        if str(targets.get(path, "")).endswith(ending):
            write_bytes(path, data[: len(data) // 2])
            wait()
        return write_bytes(path, data)

    def renaming(source: str | Path, target: str | Path) -> None:
        if str(target).endswith(ending):
            wait()
        replace(source, target)

    if how == "half":
        files._beside, Path.write_bytes = noted, half  # type: ignore[assignment, method-assign]
    else:
        os.replace = renaming


def environment(**more: str) -> dict[str, str]:
    """For a child that runs the engine of this tree."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def kill_at(folder: Path, script: str, *arguments: object) -> None:
    """Run a script (its first argument is the flag's path) and kill -9 it when the flag appears."""
    flag = folder / "flag"
    flag.unlink(missing_ok=True)
    words = [sys.executable, "-c", script, str(flag), *map(str, arguments)]
    child = subprocess.Popen(words, cwd=folder, env=environment())
    try:
        wait_for(flag.exists, child)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    flag.unlink()


def forked(work: Callable[..., None], *arguments: object) -> multiprocessing.process.BaseProcess:
    """Start a function in a child. What all of them need is imported once, by the server that they are forked from."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.writers", "tests.faults.caching_child", "engine.tasks.train"])
    child = context.Process(target=work, args=arguments)
    child.start()
    return child


def kill_in(folder: Path, work: Callable[..., None], *arguments: object) -> None:
    """As `kill_at`, for a function."""
    flag = folder / "flag"
    flag.unlink(missing_ok=True)
    child = forked(work, str(flag), *map(str, arguments))
    try:
        deadline = time.monotonic() + HOLD_S
        while not flag.exists():
            assert child.is_alive(), f"the child ended early, with {child.exitcode}"
            assert time.monotonic() < deadline, f"not reached in {HOLD_S:g} s"
            time.sleep(0.01)
    finally:
        child.kill()
        child.join()
    flag.unlink()


def wait_for(reached, child: subprocess.Popen, *, limit_s: float = HOLD_S) -> None:
    """Wait until `reached()`, as long as the child lives."""
    deadline = time.monotonic() + limit_s
    while not reached():
        assert child.poll() is None, f"the child ended early, with {child.returncode}"
        assert time.monotonic() < deadline, f"not reached in {limit_s:g} s"
        time.sleep(0.02)


@contextmanager
def small_disk(folder: Path, *, kib: int) -> Iterator[Path]:
    """A folder on a disk of its own that holds so little. Skips the test where it cannot be had."""
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("a small tmpfs cannot be mounted: needs root")
    mounted = subprocess.run(words, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a small tmpfs cannot be mounted: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def enlarge(disk: Path, *, kib: int) -> None:
    """Let a small disk hold so much."""
    subprocess.run(["mount", "-o", f"remount,size={kib}k", str(disk)], check=True)


def no_room_after(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """From the write after `count` on, files take only half of what is written in one piece, then the disk is full."""
    write_bytes, done = Path.write_bytes, iter(range(1_000_000))

    def write(path: Path, data: bytes) -> int:
        if next(done) < count:
            return write_bytes(path, data)
        write_bytes(path, data[: len(data) // 2])
        full()

    monkeypatch.setattr(Path, "write_bytes", write)


def full(*_: object, **__: object) -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
