"""Plays a Python that can make environments, and the Python with pip inside one, for tests of env_bootstrap.

`world/scenario.json` says how it behaves, `world/calls.jsonl` keeps what it was asked. It "installs" a package by
writing a folder and the lists that pip leaves beside it. Called as `fake_python.py WORLD SELF ARGUMENTS…`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

WORLD, SELF, ARGUMENTS = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
SCENARIO = json.loads((WORLD / "scenario.json").read_text())
PACKAGES = SELF.parent.parent / "lib" / "python3.11" / "site-packages"


def install(name: str, version: str, *, half: bool = False) -> None:
    folder, about = PACKAGES / name, PACKAGES / f"{name}-{version}.dist-info"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "__init__.py").write_text("value = 1\n")
    about.mkdir(exist_ok=True)
    (about / "METADATA").write_text(f"Name: {name}\n")
    if half:
        return
    (about / "INSTALLER").write_text("pip\n")
    record = f"{name}/__init__.py,sha256=x,10\n{name}/__pycache__/a.pyc,,\n{name}-{version}.dist-info/RECORD,,\n"
    (about / "RECORD").write_text(record)


def wanted() -> list[str]:
    lines, words = [], iter(ARGUMENTS[ARGUMENTS.index("install") + 1 :])
    for word in words:
        if word == "-r":
            lines += Path(next(words)).read_text().splitlines()
        elif word in ("-c", "--index-url", "--progress-bar", "--report", "--python"):
            next(words)
        elif not word.startswith("-"):
            lines.append(word)
    return [line for line in lines if line and not line.startswith("#") and '< "3.11"' not in line]


def pip_install() -> int:
    asked = " ".join(ARGUMENTS)
    if "--dry-run" in ARGUMENTS:
        Path(ARGUMENTS[ARGUMENTS.index("--report") + 1]).write_text(json.dumps(SCENARIO.get("report", {})))
        return 0
    for number, rule in enumerate(SCENARIO.get("install", [])):
        used = WORLD / f"rule-{number}-used"
        if rule["match"] not in asked or (rule.get("once") and used.exists()):
            continue
        used.touch()
        if "half" in rule:
            install(rule["half"], "0.0", half=True)
        print("\n".join(rule.get("lines", [])), flush=True)
        (WORLD / "busy.tmp").write_text(str(os.getpid()))
        os.replace(WORLD / "busy.tmp", WORLD / "busy")
        time.sleep(rule.get("sleep", 0))
        if rule.get("status"):
            return int(rule["status"])
    for line in wanted():
        name, version = (re.split(r"==|>=", line.split(";")[0].strip().split(",")[0]) + ["1.0"])[:2]
        print(f"Collecting {name}\n  Downloading {name}-{version}-py3-none-any.whl (1 kB)")
        if not (PACKAGES / f"{name}-{version}.dist-info").exists():
            install(name, version)
    print("Successfully installed")
    return 0


def uninstall(names: list[str]) -> int:
    for name in names:
        for path in (*PACKAGES.glob(f"{name}-*.dist-info"), PACKAGES / name):
            shutil.rmtree(path, ignore_errors=True)
    return 0


def make_environment(folder: Path) -> int:
    rule = SCENARIO.get("venv", {})
    time.sleep(rule.get("sleep", 0))
    if rule.get("status"):
        print("\n".join(rule.get("lines", [])))
        return int(rule["status"])
    (folder / "bin").mkdir(parents=True, exist_ok=True)
    shutil.copy(SELF, folder / "bin" / "python")
    global PACKAGES
    PACKAGES = folder / "lib" / "python3.11" / "site-packages"
    install("pip", "23.2.1")
    return 0


def main() -> int:
    with open(WORLD / "calls.jsonl", "a") as calls:
        calls.write(json.dumps({"self": str(SELF), "argv": ARGUMENTS, "env": dict(os.environ)}) + "\n")
    text = " ".join(ARGUMENTS)
    if SELF.name == "uv":
        rule = SCENARIO.get("uv", {})
        print("\n".join(rule.get("lines", [])))
        if ARGUMENTS[0] == "venv":
            shutil.copy(WORLD / "python", WORLD / "copy")
            done = make_environment(Path(ARGUMENTS[-1]))
            shutil.copy(WORLD / "python", Path(ARGUMENTS[-1]) / "bin" / "python")
            return done
        if rule.get("status"):
            return int(rule["status"])
        global PACKAGES
        PACKAGES = Path(ARGUMENTS[ARGUMENTS.index("--python") + 1]).parent.parent / "lib/python3.11/site-packages"
        return pip_install()
    if "find_spec" in text:
        print(json.dumps({**SCENARIO["probe"], "executable": str(SELF)}))
        return 0
    if "-m venv" in text or "-m virtualenv" in text:
        return make_environment(Path(ARGUMENTS[-1]))
    if "-m pip" in text:
        if SCENARIO.get("pip_broken"):
            return 1
        if "--version" in ARGUMENTS:
            print(f"pip {SCENARIO.get('pip_version', '23.2.1')} from somewhere")
            return 0
        if "config" in ARGUMENTS:
            print(SCENARIO.get("pip_config", ""))
            return 0
        if "uninstall" in ARGUMENTS:
            return uninstall(ARGUMENTS[ARGUMENTS.index("--yes") + 1 :])
        return pip_install()
    if ARGUMENTS and ARGUMENTS[0].endswith("imports.py"):
        gone = {name: "ModuleNotFoundError: gone" for name in SCENARIO.get("imports_failed", [])}
        device = SCENARIO.get("device", "")
        print(json.dumps({"failed": gone, "torch": "2.13.0", "python": "3.11.7", "device": device}))
        return 0
    os.execv(sys.executable, [sys.executable, *ARGUMENTS])


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(main())
