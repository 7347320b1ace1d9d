"""A world for each test: a home, a fake Python, and a way to run commands in this process or in one of their own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from env_bootstrap import cli, maker
from env_bootstrap.home import PACK, Home

FAKE = Path(__file__).with_name("fake_python.py")
PROBE = {
    "version": [3, 11, 7],
    "implementation": "CPython",
    "bits": 64,
    "machine": "x86_64",
    "platform": "linux",
    "free_threaded": False,
    "venv": True,
    "virtualenv": False,
    "pip": True,
}
LIGHT = {"install": [{"metadata": {"version": "2.13.0+cpu"}, "download_info": {"url": "file:///w/torch.whl"}}]}
NVIDIA_SMI = 'case "$*" in *query*) echo "580.1, NVIDIA X, 8.9";; *) echo "CUDA Version: 13.0";; esac\n'
HEAVY_URL = "https://files.example.org/torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl"
HEAVY = {"install": [{"metadata": {"version": "2.13.0"}, "download_info": {"url": HEAVY_URL}}]}


class World:
    """`home` is where MUSUBI_HOME points; `environment` is what a command sees."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = Home(folder / "a home")
        self.scenario: dict[str, Any] = {"probe": dict(PROBE), "report": LIGHT}
        self.python = self.tool("python")
        (folder / "path").mkdir()
        self.environment = {
            "PATH": f"{folder / 'path'}:/usr/bin:/bin",
            "HOME": str(folder),
            "MUSUBI_HOME": str(self.home.path),
            "MUSUBI_PYTHON": str(self.python),
        }
        self.set()

    def set(self, **changes: Any) -> None:
        """Change how the fake Python behaves."""
        self.scenario.update(changes)
        (self.folder / "scenario.json").write_text(json.dumps(self.scenario))

    def tool(self, name: str) -> Path:
        """A program of this name that is played by the fake."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I "{FAKE}" "{self.folder}" "$0" "$@"\n')
        path.chmod(0o755)
        return path

    def script(self, name: str, text: str) -> Path:
        """A shell script on the PATH."""
        path = self.folder / "path" / name
        path.write_text("#!/bin/sh\n" + text)
        path.chmod(0o755)
        return path

    def calls(self) -> list[dict[str, Any]]:
        path = self.folder / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def installs(self) -> list[list[str]]:
        """The arguments of each real `install`, by pip or uv, in order."""
        lines = [call["argv"] for call in self.calls()]
        return [line[line.index("install") + 1 :] for line in lines if "install" in line and "--dry-run" not in line]

    def forget_calls(self) -> None:
        (self.folder / "calls.jsonl").unlink(missing_ok=True)

    def main(self, *argv: str) -> int:
        """Run a command in this process."""
        return cli.main(list(argv), environment=self.environment)

    def start(self, *argv: str, pack: Path = PACK, **options: Any) -> subprocess.Popen[str]:
        """Start a command in a process of its own."""
        command = [sys.executable, "-m", "env_bootstrap", *argv]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, **options}
        environment = {**self.environment, "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.Popen(command, cwd=pack, env=environment, text=True, **options)

    def stamp(self) -> dict[str, Any]:
        return dict(json.loads(self.home.stamp.read_text()))

    def packages(self) -> Path:
        found = self.home.site_packages()
        assert found is not None
        return found

    def wait_for(self, path: Path, *, timeout_s: float = 10.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not path.exists():
            assert time.monotonic() < deadline, f"{path} never came"
            time.sleep(0.01)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(maker, "fetch_uv", lambda *arguments, **options: None)  # it would use the network
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield World(tmp_path)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def copied_pack(tmp_path: Path) -> Path:
    """A pack in a folder with spaces, with an engine of a few lines."""
    pack = tmp_path / "my pack"
    shutil.copytree(PACK / "env_bootstrap", pack / "env_bootstrap", ignore=shutil.ignore_patterns("__pycache__"))
    (pack / "engine").mkdir()
    (pack / "engine" / "__init__.py").write_text("")
    (pack / "engine" / "__main__.py").write_text(
        "import json, os, sys, time\n"
        "print(json.dumps({'argv': sys.argv[1:], 'cwd': os.getcwd(), 'env': dict(os.environ)}), flush=True)\n"
        "if 'wait' in sys.argv: time.sleep(30)\n"
        "sys.exit(7 if 'fail' in sys.argv else 0)\n"
    )
    return pack


def is_alive(process: int) -> bool:
    """Whether a process runs (one that ended and was not collected does not)."""
    try:
        os.kill(process, 0)
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z" if os.path.isdir("/proc/self") else True
    except (ProcessLookupError, FileNotFoundError):
        return False
