"""Children: a clean environment, every line seen, nobody left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from env_bootstrap.processes import GUARD, clean_environment, output_of, run_child

from .conftest import is_alive


@pytest.mark.parametrize(
    "name",
    "PYTHONPATH PYTHONHOME PYTHONUSERBASE VIRTUAL_ENV PIP_TARGET PIP_PREFIX PIP_USER CONDA_PREFIX CONDA_DEFAULT_ENV"
    " _CONDA_ROOT __PYVENV_LAUNCHER__ UV_PYTHON".split(),
)
def test_what_would_lead_elsewhere_is_dropped(name: str) -> None:
    assert name not in clean_environment({name: "x"})


@pytest.mark.parametrize(
    "name",
    "PATH HOME PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_FIND_LINKS PIP_CONFIG_FILE PIP_CERT HTTPS_PROXY https_proxy"
    " NO_PROXY UV_INDEX_URL CUDA_VISIBLE_DEVICES MUSUBI_HOME HF_HOME".split(),
)
def test_indexes_proxies_and_the_rest_are_kept(name: str) -> None:
    assert clean_environment({name: "x"})[name] == "x"


def test_the_child_speaks_utf8_and_sees_no_user_packages() -> None:
    clean = clean_environment({"PYTHONNOUSERSITE": ""})
    assert clean["PYTHONUTF8"] == "1" and clean["PYTHONNOUSERSITE"] == "1"


def test_lines_status_and_bars() -> None:
    lines: list[str] = []
    text = "import sys; sys.stdout.write('one\\r50 %\\rtwo\\n'); sys.stderr.write('three'); sys.exit(5)"
    ended = run_child([sys.executable, "-c", text], environment=os.environ, on_line=lines.append)
    assert ended.status == 5
    assert sorted(lines) == ["50 %", "one", "three", "two"] and sorted(ended.tail) == sorted(lines)


def test_a_child_ended_by_a_signal_says_so() -> None:
    text = "import os; os.kill(os.getpid(), 9)"
    ended = run_child([sys.executable, "-c", text], environment=os.environ, on_line=lambda line: None)
    assert ended.status == 137


def test_an_installer_sees_terminate_as_usual() -> None:
    """The guard handles SIGTERM; what it starts must not inherit that as 'ignored'."""
    text = "import signal; print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)"
    ended = run_child([sys.executable, "-c", text], environment=os.environ, on_line=lambda line: None)
    assert ended.tail == ["True"]


def test_an_interrupt_ends_the_child_and_its_children(tmp_path: Path) -> None:
    text = (
        "import os, subprocess, sys, time\n"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(os.getpid(), p.pid, flush=True); time.sleep(60)"
    )
    seen: list[int] = []

    def interrupt(line: str) -> None:
        seen.extend(int(word) for word in line.split())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_child([sys.executable, "-c", text], environment=os.environ, on_line=interrupt)
    time.sleep(0.05)
    assert len(seen) == 2 and not any(is_alive(process) for process in seen)


def test_nothing_outlives_a_guard_whose_parent_is_gone(tmp_path: Path) -> None:
    text = "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(os.getpid(), flush=True)"
    child = [sys.executable, "-c", text + "; time.sleep(60)"]
    guard = subprocess.Popen(
        [sys.executable, "-I", "-S", str(GUARD), *child],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert guard.stdin and guard.stdout
    process = int(guard.stdout.readline())
    guard.stdin.close()  # what the death of the parent does
    guard.wait(timeout=10)
    time.sleep(0.05)
    assert not is_alive(process)


def test_a_question_to_a_missing_or_failing_program_has_no_answer() -> None:
    assert output_of(["/no/such/program"], environment={}) is None
    assert output_of([sys.executable, "-c", "raise SystemExit(3)"], environment={}) is None
    assert output_of([sys.executable, "-c", "import time; time.sleep(9)"], environment={}, timeout_s=0.2) is None
