from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from unittest.mock import Mock

import pytest

from engine.contract.errors import OptionError
from engine.contract.locks import hold, is_held, let_go, only_one

HOLDER = """
import pathlib, sys
from engine.contract.locks import only_one
with only_one(pathlib.Path(sys.argv[1]), what="It is held", hint="Wait."):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock until it ends."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "out" / ".a.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_second_is_refused_and_told_who_holds_it(tmp_path, holder):
    with pytest.raises(OptionError, match=f"It is written by another run, process {holder.pid}, since 20") as refused:
        with only_one(tmp_path / "out" / ".a.lock", what="It is written", hint="Wait."):
            pass
    assert refused.value.hint == "Wait."
    with only_one(tmp_path / "out" / ".b.lock", what="It is written", hint="Wait."):
        pass  # another name is free


def test_a_killed_holder_holds_nothing(tmp_path, holder):
    holder.kill()
    holder.wait()
    with only_one(tmp_path / "out" / ".a.lock", what="It is written", hint="Wait."):
        pass
    with only_one(tmp_path / "out" / ".a.lock", what="It is written", hint="Wait."):
        pass  # and it can be held again


def test_whether_it_is_held_is_seen_without_taking_it(tmp_path, holder):
    lock = tmp_path / "out" / ".a.lock"
    assert is_held(lock) and lock.read_text().startswith(f"process {holder.pid}")
    holder.kill()
    holder.wait()
    assert not is_held(lock) and not is_held(tmp_path / "out" / ".b.lock")
    held = hold(lock, "us")
    assert held is not None and is_held(lock) and hold(lock, "others") is None and lock.read_text() == "us"
    let_go(held)
    assert not is_held(lock)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_what_was_given_back_no_forked_child_holds(tmp_path):
    """A library's workers have the file open as well, and may live on."""
    held = hold(tmp_path / ".a.lock", "us")
    child = os.fork()
    if not child:
        signal.pause()
    try:
        let_go(held)
        assert not is_held(tmp_path / ".a.lock")
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.skipif(sys.platform == "win32", reason="flock is POSIX's")
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_disk_without_locks_refuses_no_work(tmp_path, monkeypatch, number):
    """As file systems of clusters are often mounted; other errors are told."""
    import fcntl

    flock = Mock(side_effect=OSError(number, os.strerror(number)))
    monkeypatch.setattr(fcntl, "flock", flock)
    with only_one(tmp_path / ".a.lock", what="It is written", hint="Wait."):
        flock.assert_called_once()
    assert not is_held(tmp_path / ".a.lock"), "nobody seems at work"
    flock.side_effect = OSError(errno.EIO, os.strerror(errno.EIO))
    with pytest.raises(OSError), only_one(tmp_path / ".a.lock", what="It is written", hint="Wait."):
        pass
