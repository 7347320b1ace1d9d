"""Which steps an environment consists of, and which of them a stamp already has.

A step's fingerprint is what it is made from; a step is done when the stamp holds that fingerprint. So a changed
requirements file repeats that one step, and nothing else. Looks at small files only: this is what makes a second
`create` answer at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from . import extras, integrity, stamp
from .extras import Extra
from .home import REQUIREMENTS, Home
from .stamp import Stamp
from .torch_builds import torch_pin, wished_build

GB = 1_000_000_000
COMPILING_S = 1800


@dataclass(frozen=True)
class Step:
    """`seconds` is about how long it takes (for the bar), `size` about how many bytes it needs while it is made."""

    name: str
    title: str
    fingerprint: str
    seconds: float
    size: int


def _fingerprint(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _text(name: str) -> str:
    return (REQUIREMENTS / f"{name}.txt").read_text(encoding="utf-8")


def requirement_lines(name: str) -> list[str]:
    """The requirements in a file, without comments."""
    return [line.strip() for line in _text(name).splitlines() if line.strip() and not line.startswith("#")]


def steps(build: str, *, tests: bool) -> list[Step]:
    """All steps of a whole environment in their order. `build` is PyTorch's (`cpu`, `cu130`, …)."""
    cuda = build.startswith("cu")
    pinned = _text("constraints")
    torch_title = f"{torch_pin().replace('==', ' ')} ({build})"
    wanted = [
        Step("venv", "Python environment", "1", 5, GB // 10),
        Step("torch", torch_title, _fingerprint(torch_pin(), build), 240 if cuda else 40, 7 * GB if cuda else 2 * GB),
        Step("base", "packages of the engine", _fingerprint(_text("base"), pinned), 40, GB * 8 // 10),
    ]
    if cuda:
        pins = _fingerprint(*(extra.requirement for extra in extras.of_cuda(build)))
        wanted.append(Step("cuda", "optional GPU packages", pins, 20, GB // 2))
    if tests:
        wanted.append(Step("test", "packages for the tests", _fingerprint(_text("test"), pinned), 15, GB // 5))
    everything = _fingerprint(*(step.fingerprint for step in wanted))
    return [*wanted, Step("check", "check", everything, 10, 0)]


def extra_step(extra: Extra, build: str) -> Step:
    """The step that adds an optional package. Another PyTorch repeats it, because some are compiled for one."""
    made_from = _fingerprint(extra.requirement, torch_pin(), build)
    seconds = COMPILING_S if extra.builders else 15
    return Step(extra_step_name(extra.name), extra.requirement, made_from, seconds, GB * 3 // 10)


def extra_step_name(name: str) -> str:
    """What the stamp calls the adding of an optional package."""
    return f"add {name}"


def outstanding(have: Stamp, *, tests: bool) -> list[Step]:
    """The steps that the stamp does not have. `check` counts only when nothing before it is left."""
    return [step for step in steps(have.build, tests=tests) if have.steps.get(step.name) != step.fingerprint]


def to_add(have: Stamp) -> list[Extra]:
    """Optional packages that the person asked for and that were not tried yet in this version."""
    tried = [(extra, extra_step(extra, have.build)) for extra in extras.kept(have.extras)]
    return [extra for extra, step in tried if have.steps.get(step.name) != step.fingerprint]


def current(home: Home, environment: Mapping[str, str], *, tests: bool, adding: Sequence[Extra] = ()) -> Stamp | None:
    """The stamp of an environment that needs nothing done, by the quick check; None otherwise.

    `adding`: optional packages that it shall have as well.
    """
    have = stamp.load(home.stamp)
    if have is None or not have.ready or not home.python.exists():
        return None
    if wished_build(environment) not in ("", have.build):
        return None
    left = {step.name for step in outstanding(have, tests=tests)}
    if left - {"check"} or ("check" in left and tests) or to_add(have):
        return None
    if any(extra.name not in have.extras or extra.name not in have.versions for extra in adding):
        return None
    site_packages = home.site_packages()
    if site_packages is None or integrity.missing(site_packages, have.entries):
        return None
    return have
