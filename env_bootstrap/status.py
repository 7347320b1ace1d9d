"""How the environment is: absent, incomplete, outdated, broken or ready, with reasons. Changes nothing, takes no lock.

The quick look reads the stamp and two folders; the full one also compares every installed file with its package's list
and imports the packages, which takes some seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from . import adding, checking, extras, integrity, maker, plan, stamp
from .extras import Extra
from .home import PACK, Home
from .problems import Problem
from .stamp import Stamp
from .torch_builds import choose_build, detect_gpu

NEXT = {
    "absent": "Make it with: python -m env_bootstrap create",
    "incomplete": "Go on with: python -m env_bootstrap create",
    "outdated": "Bring it up to date with: python -m env_bootstrap create",
    "broken": "Fix it with: python -m env_bootstrap repair",
    "ready": "",
}


@dataclass(frozen=True)
class ExtraStatus:
    """One optional package. `version` is empty where it is not installed; then `add` is the command that installs it,
    or `obstacle` why none does."""

    name: str
    purpose: str
    wanted_by: str
    version: str = ""
    add: str = ""
    obstacle: str = ""


@dataclass
class Status:
    """`state` is a key of NEXT; `notes` are remarks that do not change it."""

    state: str
    home: str
    python: str
    reasons: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    next: str = ""
    build: str = ""
    python_version: str = ""
    torch: str = ""
    gpu: str = ""
    made: str = ""
    seconds: float = 0.0
    packages: dict[str, str] = field(default_factory=dict)
    extras: list[ExtraStatus] = field(default_factory=list)
    log: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def look(home: Home, environment: Mapping[str, str], *, quick: bool = False) -> Status:
    """The state of the environment at `home`."""
    have = stamp.load(home.stamp)
    logs = sorted(home.logs.glob("*.log")) if home.logs.is_dir() else []
    status = Status(state="absent", home=str(home.path), python="", log=str(logs[-1]) if logs else "")
    if have is None:
        if home.env.exists():
            status.state, status.reasons = "incomplete", ["it was begun and not finished"]
    else:
        _judge(status, home, have, environment, quick)
        status.build, status.python_version = have.build, have.python
        status.torch = have.versions.get("torch", "")
        status.made, status.seconds, status.packages = have.made, have.seconds, have.versions
        status.extras = [_extra(extra, have) for extra in extras.EXTRAS]
    if status.state in ("ready", "outdated"):
        status.python = str(home.python)
    if not quick:
        _look_at_gpu(status, have, environment)
    status.next = NEXT[status.state]
    return status


def _judge(status: Status, home: Home, have: Stamp, environment: Mapping[str, str], quick: bool) -> None:
    left = [step for step in plan.outstanding(have, tests="test" in have.steps) if step.name != "check"]
    if not have.ready:
        missing = ", ".join(step.title for step in left) or "the final check"
        status.state, status.reasons = "incomplete", [f"still to do: {missing}"]
        return
    status.reasons = _quick_faults(home, have) if quick else maker.faults(home, have)
    if not quick and not status.reasons:
        answer = checking.imports(home, environment, tests="test" in have.steps)
        failed = answer["failed"] if answer else {"its packages": "the environment's Python ended by itself"}
        if isinstance(failed, dict):
            status.reasons = [f"cannot import {name}: {reason}" for name, reason in failed.items()]
        if answer:
            status.gpu = str(answer["device"])
    if status.reasons:
        status.state = "broken"
        return
    status.state = "outdated" if left else "ready"
    status.reasons = [f"changed since it was made: {step.title}" for step in left]
    if have.pack != str(PACK):
        status.notes.append(f"last made for the pack in {have.pack}")


def _extra(extra: Extra, have: Stamp) -> ExtraStatus:
    known = ExtraStatus(extra.name, extra.purpose, extra.wanted_by)
    if extra.name in have.versions:
        return replace(known, version=have.versions[extra.name])
    obstacle = extra.obstacle(have.build)
    return replace(known, obstacle=obstacle) if obstacle else replace(known, add=f"{adding.ADD} {extra.name}")


def _quick_faults(home: Home, have: Stamp) -> list[str]:
    site_packages = home.site_packages()
    if not home.python.exists() or site_packages is None:
        return [f"{home.python} does not run"]
    return [f"{name} is gone from the packages" for name in integrity.missing(site_packages, have.entries)]


def _look_at_gpu(status: Status, have: Stamp | None, environment: Mapping[str, str]) -> None:
    gpu = detect_gpu(environment)
    if gpu is None:
        status.gpu = status.gpu or "none"
        return
    status.gpu = status.gpu or f"{gpu.names[0]} (driver {gpu.driver}), not used by PyTorch"
    try:
        wanted = choose_build(gpu, environment)
    except Problem as problem:
        status.notes.append(problem.message)
        return
    if have and have.build and have.build != wanted and not have.chosen:
        status.notes.append(f"this machine wants PyTorch's {wanted} build, not {have.build}: repair installs it")


def table(status: Status) -> str:
    """The status for a person."""
    build = f"({status.build} build)" if status.build else ""
    rows = [
        ("state", status.state),
        *(("", reason) for reason in status.reasons),
        ("home", status.home),
        ("python", f"{status.python} ({status.python_version})" if status.python else ""),
        ("torch", f"{status.torch} {build}".strip()),
        ("gpu", status.gpu),
        ("packages", str(len(status.packages)) if status.packages else ""),
        *_optional(status.extras),
        ("made", f"{status.made}, in {status.seconds:.0f} s" if status.made else ""),
        ("log", status.log),
        *(("note", note) for note in status.notes),
        ("next", status.next),
    ]
    return "\n".join(f"{name:<10}{value}".rstrip() for name, value in rows if value)


def _optional(found: Sequence[ExtraStatus]) -> list[tuple[str, str]]:
    """A row for each optional package, and one that says how to add one."""
    rows = []
    for extra in found:
        there = extra.version or ("not for this machine" if extra.obstacle else "not installed")
        what = extra.obstacle or f"{extra.purpose}: {extra.wanted_by}"
        rows.append(("", f"{extra.name:<28}{there:<22}{what}"))
    return [("optional", f"add one with: {adding.ADD} NAME"), *rows] if rows else []
