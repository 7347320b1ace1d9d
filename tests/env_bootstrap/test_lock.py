"""One at a time, whoever dies."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from env_bootstrap.home import PACK
from env_bootstrap.lock import holder, locked
from env_bootstrap.problems import Problem

HOLD = """
import sys, time
from pathlib import Path
from env_bootstrap.lock import locked
with locked(Path(sys.argv[1]), command="create"):
    print("held", flush=True)
    time.sleep(60)
"""


def hold(path: Path) -> subprocess.Popen[str]:
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], cwd=PACK, stdout=subprocess.PIPE, text=True)
    assert child.stdout and child.stdout.readline() == "held\n"
    return child


def test_a_second_one_is_told_who_holds_it_and_gives_up_in_time(tmp_path: Path) -> None:
    path, told = tmp_path / "lock", []
    child = hold(path)
    try:
        with pytest.raises(Problem) as caught, locked(path, command="repair", timeout_s=0.3, waiting=told.append):
            pass
        assert f"process {child.pid}" in caught.value.message and "'create'" in caught.value.message
        assert len(told) == 1 and str(child.pid) in told[0]
    finally:
        child.kill()
        child.wait()


def test_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    child = hold(tmp_path / "lock")
    child.send_signal(signal.SIGKILL)
    child.wait()
    with locked(tmp_path / "lock", command="create", timeout_s=1.0):
        assert "process" in holder(tmp_path / "lock")


def test_a_second_one_waits_for_the_first(tmp_path: Path) -> None:
    path, order = tmp_path / "lock", []

    def second() -> None:
        with locked(path, command="second"):
            order.append("second")

    with locked(path, command="first"):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.4)
        order.append("first")
    thread.join(timeout=5)
    assert order == ["first", "second"]


def test_a_lock_file_deleted_under_a_waiter_does_not_let_two_in(tmp_path: Path) -> None:
    path, inside = tmp_path / "lock", threading.Event()

    def second() -> None:
        with locked(path, command="second"):
            inside.set()
            with pytest.raises(Problem), locked(path, command="third", timeout_s=0):
                pass

    with locked(path, command="remove"):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.1)
        path.unlink()
    thread.join(timeout=5)
    assert inside.is_set()


def test_a_lock_without_a_readable_text_still_has_a_message(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("garbage")
    assert holder(tmp_path / "lock") == "another process"


def test_an_impossible_place_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Problem) as caught, locked(tmp_path / "file" / "lock", command="create"):
        pass
    assert caught.value.kind == "home" and "MUSUBI_HOME" in caught.value.hint
