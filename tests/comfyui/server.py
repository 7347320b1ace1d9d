"""A real ComfyUI on a free port, with one pack in a base folder of its own. Ends with the test, whatever happens.

COMFYUI_PATH names the checkout; COMFYUI_PYTHON its interpreter (else the one that runs the tests); MUSUBI_HOME the
engine's environment (needed by tests that run the engine).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

PACK = Path(__file__).resolve().parents[2]
START_S = 180.0
NAME = "musubi-tuner"


def comfyui_path() -> Path | None:
    """The checkout, None where COMFYUI_PATH names none."""
    given = os.environ.get("COMFYUI_PATH", "")
    return Path(given) if given and (Path(given) / "main.py").is_file() else None


def link_pack(base: Path) -> None:
    """Put this pack into a base folder, as a git clone in custom_nodes would be."""
    (base / "custom_nodes").mkdir(parents=True)
    (base / "custom_nodes" / NAME).symlink_to(PACK, target_is_directory=True)


def fake_pack(base: Path, files: Callable[[Path], None]) -> None:
    """Put the pack that only plays into a base folder, with our page and texts; `files` makes its video and picture."""
    folder = base / "custom_nodes" / NAME
    shutil.copytree(Path(__file__).parent / "fake_pack", folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("web", "locales"):
        (folder / name).symlink_to(PACK / name, target_is_directory=True)
    files(folder / "files")


class Server:
    """One ComfyUI. Use it in a `with`, or start and stop it by hand; `flags` go to ComfyUI."""

    def __init__(self, base: Path, *, flags: Sequence[str] = (), variables: dict[str, str] | None = None):
        self.base, self._flags, self._variables = base, tuple(flags), variables or {}
        self.log = base / "comfyui.log"
        self.port = _free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it and wait until it answers."""
        for folder in ("models/loras", "input", "output", "user/default", "custom_nodes"):
            (self.base / folder).mkdir(parents=True, exist_ok=True)
        checkout = comfyui_path()
        python = os.environ.get("COMFYUI_PYTHON", sys.executable)
        words = [
            python, "main.py", "--cpu", "--base-directory", str(self.base), "--port", str(self.port),
            "--disable-api-nodes", "--database-url", "sqlite:///:memory:", *self._flags,
        ]  # fmt: skip
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                words, cwd=checkout, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, **self._variables},
            )  # fmt: skip
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RuntimeError(f"ComfyUI ended at its start:\n{self.said()[-3000:]}")
            try:
                self.get("/system_stats")
                return
            except OSError:
                time.sleep(0.3)
        raise RuntimeError(f"ComfyUI did not answer within {START_S:.0f} s:\n{self.said()[-3000:]}")

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """As kill -9 does: nothing can be tidied up."""
        self._end(signal.SIGKILL)

    def _end(self, number: int) -> None:
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(timeout=20)
        self.process = None

    def said(self) -> str:
        """Everything on its console so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    # -------------------------------------------------------------------------------------------------- its answers

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=30) as reply:
            return json.loads(reply.read() or "null")

    def post(self, path: str, data: Any, *, method: str = "POST") -> Any:
        """The answer; a refusal too is returned, as its JSON."""
        request = urllib.request.Request(
            self.url + path, json.dumps(data).encode(), {"Content-Type": "application/json"}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                return json.loads(reply.read() or "null")
        except urllib.error.HTTPError as refusal:
            return json.loads(refusal.read() or "null")

    def queue(self, prompt: dict[str, Any]) -> str:
        """Queue a prompt in the API's form; its id."""
        answer = self.post("/prompt", {"prompt": prompt, "client_id": "tests"})
        if "prompt_id" not in answer:
            raise AssertionError(f"The prompt was refused: {json.dumps(answer)[:2000]}")
        return str(answer["prompt_id"])

    def ended(self, prompt: str, seconds: float) -> dict[str, Any]:
        """The history entry of a prompt, when it has come to its end."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            history = self.get(f"/history/{prompt}")
            if prompt in history:
                entry: dict[str, Any] = history[prompt]
                return entry
            time.sleep(0.2)
        raise AssertionError(f"The prompt did not end within {seconds:.0f} s.")

    def runs(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.get("/musubi/runs")["runs"]
        return found

    def until(self, true: Callable[[], Any], seconds: float, what: str) -> Any:
        """Look ten times a second until something is true; what it was."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            value = true()
            if value:
                return value
            time.sleep(0.1)
        raise AssertionError(f"Waited {seconds:.0f} s in vain for {what}. Runs: {self.runs()[:2]}")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
