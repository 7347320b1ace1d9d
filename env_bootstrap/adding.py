"""Putting optional packages into an environment that is whole, and taking them out again.

Each is installed by itself, with the versions of everything else held fast, so that none can spoil the environment:
whatever happens here, the engine still starts. What a person asks for in this run must succeed; what they asked for
once, and a newer pack or a new environment installs again, is left out with a warning when it cannot be had any more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from . import integrity, plan, stamp
from .checking import fault_of
from .extras import Extra, refuse_impossible
from .home import REQUIREMENTS, Home
from .installers import Advance, Installer
from .plan import Step
from .problems import Problem
from .report import Report
from .stamp import Stamp

ADD = "python -m env_bootstrap add"
HELD_FAST = [
    word for name in ("torch", "base", "constraints", "extras") for word in ("-c", str(REQUIREMENTS / f"{name}.txt"))
]
# Against this PyTorch, and not what was compiled for the one before.
COMPILED_HERE = ["--no-build-isolation", "--no-cache-dir", "--force-reinstall", "--no-deps"]


@dataclass(frozen=True)
class Workplace:
    """One environment, with what it takes to change it."""

    home: Home
    have: Stamp
    installer: Installer
    environment: Mapping[str, str]
    report: Report

    def record(self) -> None:
        """Write down what lies in the environment now."""
        site_packages = self.home.site_packages()
        assert site_packages is not None
        self.have.entries = integrity.entries(site_packages)
        self.have.versions = integrity.versions(site_packages)
        stamp.save(self.have, self.home.stamp)


def add_asked(place: Workplace, wanted: Sequence[Extra], *, begin: Callable[[Step], Advance]) -> None:
    """Install what this run's person asks for. Problem for the first that fails; it and the rest are not recorded."""
    for done, extra in enumerate(wanted):
        step = plan.extra_step(extra, place.have.build)
        try:
            _add(place, extra, begin(step))
        except Problem:
            failed = {other.name for other in wanted[done:]}
            place.have.extras = [name for name in place.have.extras if name not in failed]
            place.record()
            raise
        place.have.steps[step.name] = step.fingerprint
        place.record()


def add_again(place: Workplace, wanted: Sequence[Extra], *, begin: Callable[[Step], Advance]) -> None:
    """Install what was asked for once. What fails is left out with a warning, until it is asked for anew."""
    for extra in wanted:
        step = plan.extra_step(extra, place.have.build)
        _add_or_warn(place, extra, begin(step))
        place.have.steps[step.name] = step.fingerprint
        place.record()


def add_unasked(place: Workplace, wanted: Sequence[Extra], advance: Advance) -> None:
    """Install what comes with PyTorch for CUDA. What fails is left out with a warning."""
    for number, extra in enumerate(wanted):
        advance(number / len(wanted), extra.name)
        _add_or_warn(place, extra, lambda *progress: None)


def take_out(place: Workplace, names: Sequence[str]) -> None:
    """Uninstall packages and forget that they were asked for; what they brought along stays."""
    place.installer.uninstall(names)
    place.have.extras = [name for name in place.have.extras if name not in names]
    for name in names:
        place.have.steps.pop(plan.extra_step_name(name), None)
    place.record()


def _add_or_warn(place: Workplace, extra: Extra, advance: Advance) -> None:
    try:
        _add(place, extra, advance)
    except Problem as problem:
        if problem.kind == "disk":
            raise
        place.report.warning(
            f"{extra.name} is left out: {problem.message} The engine works without it. Try again: {ADD} {extra.name}"
        )


def _add(place: Workplace, extra: Extra, advance: Advance) -> None:
    refuse_impossible([extra], place.have.build, place.environment)
    arguments = [extra.requirement, *HELD_FAST]
    if extra.builders:
        place.installer.install([*extra.builders, *HELD_FAST], what=" and ".join(extra.builders), advance=advance)
        arguments += COMPILED_HERE
    place.installer.install(arguments, what=extra.name, advance=advance, expected=5)
    fault = fault_of(place.home, place.environment, extra.module)
    if fault:
        place.installer.uninstall([extra.name])
        raise Problem("package", f"{extra.name} was installed, but cannot be imported: {fault}. It is out again.")
