from __future__ import annotations

import errno
import os
import subprocess
import sys
from unittest.mock import Mock

import pytest

from engine.contract.errors import OptionError
from engine.contract.locks import only_one

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


@pytest.mark.skipif(sys.platform == "win32", reason="flock is POSIX's")
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_disk_without_locks_refuses_no_work(tmp_path, monkeypatch, number):
    """As file systems of clusters are often mounted; other errors are told."""
    import fcntl

    flock = Mock(side_effect=OSError(number, os.strerror(number)))
    monkeypatch.setattr(fcntl, "flock", flock)
    with only_one(tmp_path / ".a.lock", what="It is written", hint="Wait."):
        flock.assert_called_once()
    flock.side_effect = OSError(errno.EIO, os.strerror(errno.EIO))
    with pytest.raises(OSError), only_one(tmp_path / ".a.lock", what="It is written", hint="Wait."):
        pass
