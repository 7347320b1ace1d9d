"""Which Python the environment is made from, and by what: `venv`, `virtualenv` or `uv`.

The calling Python is asked first. When it is too new, too old, or without the venv module (Debian's, or the one inside
ComfyUI's portable builds), others on this machine are, and at last uv, which brings its own.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from .home import WINDOWS, Home
from .problems import Problem
from .processes import clean_environment, output_of, run_child

OLDEST, NEWEST = (3, 10), (3, 14)  # what the pinned PyTorch has builds for
PREFERRED = ("3.12", "3.13", "3.11", "3.14", "3.10")
UV_PIN = "uv==0.13.8"

PROBE = """
import importlib.util, json, platform, struct, sys, sysconfig
has = lambda name: importlib.util.find_spec(name) is not None
print(json.dumps({
    "executable": sys.executable, "version": list(sys.version_info[:3]),
    "implementation": platform.python_implementation(), "bits": struct.calcsize("P") * 8,
    "machine": platform.machine().lower(), "platform": sys.platform,
    "free_threaded": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
    "venv": has("venv") and has("ensurepip"), "virtualenv": has("virtualenv"), "pip": has("pip")}))
"""


@dataclass(frozen=True)
class Interpreter:
    """What a Python says of itself. `venv` means venv and ensurepip, which Debian splits off."""

    executable: str
    version: tuple[int, int, int]
    implementation: str = "CPython"
    bits: int = 64
    machine: str = "x86_64"
    platform: str = "linux"
    free_threaded: bool = False
    venv: bool = True
    virtualenv: bool = False
    pip: bool = False

    @property
    def release(self) -> str:
        return f"{self.version[0]}.{self.version[1]}"


@dataclass(frozen=True)
class Maker:
    """How the environment is made: `kind` venv, virtualenv or uv; `command` ends before the target folder."""

    kind: str
    command: tuple[str, ...]
    interpreter: str
    note: str = ""


def ask(executable: str, environment: Mapping[str, str]) -> Interpreter | None:
    """What a Python says of itself, None when it cannot be run."""
    answer = output_of([executable, "-I", "-c", PROBE], environment=clean_environment(environment))
    try:
        about = json.loads(answer or "")
        return Interpreter(**{**about, "version": tuple(about["version"])})
    except (ValueError, TypeError, KeyError):
        return None


def unsuitable(python: Interpreter) -> str:
    """Why the pinned PyTorch has no build for this Python; empty when it has."""
    if not OLDEST <= python.version[:2] <= NEWEST:
        return f"Python {python.release} is outside 3.{OLDEST[1]} to 3.{NEWEST[1]}"
    if python.implementation != "CPython":
        return f"it is {python.implementation}, not CPython"
    if python.bits != 64:
        return "it is a 32-bit Python"
    if python.free_threaded:
        return "it is a free-threaded build"
    if python.platform == "darwin" and python.machine == "x86_64":
        return "PyTorch has no builds for Intel Macs any more"
    return ""


def calling_python() -> str:
    """The Python behind a virtual environment, else the one that runs this."""
    return str(getattr(sys, "_base_executable", "") or sys.executable)


def _others(environment: Mapping[str, str]) -> list[Interpreter]:
    """Suitable Pythons with a venv module elsewhere on this machine."""
    found = []
    for release in PREFERRED:
        path = shutil.which(f"python{release}", path=environment.get("PATH"))
        if path is None and WINDOWS and shutil.which("py"):
            told = output_of(["py", f"-{release}", "-c", "import sys; print(sys.executable)"], environment=environment)
            path = told.strip() if told else None
        python = ask(path, environment) if path else None
        if python and not unsuitable(python) and python.venv:
            found.append(python)
    return found


def find_uv(environment: Mapping[str, str], home: Home) -> str | None:
    """uv on the PATH, or the one that was once fetched into the home."""
    found = shutil.which("uv", path=environment.get("PATH"))
    if found:
        return found
    fetched = home.tools / "bin" / ("uv.exe" if WINDOWS else "uv")
    return str(fetched) if fetched.exists() else None


def fetch_uv(home: Home, environment: Mapping[str, str], *, on_line: Callable[[str], None]) -> str | None:
    """Get uv with the calling Python's pip, into the home and nowhere else. None when that fails."""
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--upgrade", "--target", str(home.tools), UV_PIN]
    try:
        ended = run_child(command, environment=environment, on_line=on_line)
    except OSError:
        return None
    return find_uv({"PATH": ""}, home) if ended.status == 0 else None


def _with_uv(uv: str, python: str, note: str) -> Maker:
    return Maker("uv", (uv, "venv", "--seed", "--python", python), python, note)


def _without_venv(python: Interpreter) -> Problem:
    """The sentence for Debian and Ubuntu names the package; elsewhere a full Python is the answer."""
    if python.platform == "linux":
        hint = f"On Debian or Ubuntu: sudo apt install python{python.release}-venv. Or install uv or virtualenv."
    else:
        hint = "Install Python 3.12 from python.org, or uv, and run the same command with --python PATH."
    return Problem("venv", f"{python.executable} cannot make environments: it has no venv module (ensurepip).", hint)


def choose_maker(
    home: Home,
    environment: Mapping[str, str],
    *,
    wanted: str = "",
    fetch: Callable[[], str | None] = lambda: None,
) -> Maker:
    """Decide. `wanted` is the person's own choice (`--python`, MUSUBI_PYTHON): never replaced by another Python.

    `fetch` gets uv over the network and returns its path; it is called when nothing on this machine will do.
    """
    executable = wanted or calling_python()
    python = ask(executable, environment)
    if python is None:
        raise Problem("python", f"{executable} does not run.", "Give the path of a Python 3.10 to 3.14 with --python.")
    reason = unsuitable(python)
    if reason and wanted:
        raise Problem("python", f"{executable} will not do: {reason}.", "Give a 64-bit CPython 3.10 to 3.14.")
    if not reason and python.venv:
        return Maker("venv", (python.executable, "-I", "-m", "venv"), python.executable)
    if not reason and python.virtualenv:
        return Maker("virtualenv", (python.executable, "-I", "-m", "virtualenv"), python.executable)

    why = reason or f"{executable} has no venv module"
    uv = find_uv(environment, home)
    if uv is None and not wanted and python.platform + python.machine != "darwinx86_64":
        for other in _others(environment):
            note = f"{why}: using {other.executable}."
            return Maker("venv", (other.executable, "-I", "-m", "venv"), other.executable, note)
    uv = uv or fetch()
    if uv:
        # An embedded Windows Python is no base for environments, so uv finds or brings a whole one.
        base = python.executable if not reason and os.name != "nt" else PREFERRED[0]
        return _with_uv(uv, base, f"{why}: using uv ({uv}).")
    if reason:
        raise Problem(
            "python",
            f"PyTorch has no build for {executable}: {reason}.",
            "Install Python 3.12 (or uv), then run the same command with --python PATH.",
        )
    raise _without_venv(python)


def exists(path: str) -> bool:
    """Whether a remembered interpreter is still there (a name like `3.12`, for uv, always is)."""
    return not os.path.isabs(path) or Path(path).exists()
