"""Making, repairing and removing the environment: the order of things, and what survives an end at any moment.

Built in place (a virtual environment holds its own path, so it cannot be moved); `env.json` is written after each step
and is the only truth about it. What an interrupted installer left half done is found by its files and done again.
Everything here runs under the lock.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from . import adding, extras, integrity, plan, stamp
from .adding import Workplace
from .checking import imports
from .extras import Extra
from .home import PACK, REQUIREMENTS, Home
from .installers import Advance, Installer, installer_environment
from .interpreters import Maker, choose_maker, fetch_uv, find_uv
from .lock import locked
from .plan import Step
from .problems import Problem, disk_or_home, recognise
from .processes import clean_environment, output_of, run_child
from .report import Report
from .stamp import Stamp
from .torch_builds import Gpu, choose_build, detect_gpu, index_of, is_light, nvidia_smi, torch_pin, wished_build

OUR_LOG = re.compile(r"\d{8}-\d{6}-\w+\.log")
GRAVE = "env.removing-"
SHOWN = 5  # faults told one by one; the rest are counted
REPAIR = "Fix it with: python -m env_bootstrap repair"


@dataclass(frozen=True)
class Wish:
    """What a caller wants: the packages for the tests too, optional ones by name, a certain Python, a limit to waiting
    for the lock."""

    tests: bool = False
    extras: tuple[Extra, ...] = ()
    interpreter: str = ""
    timeout_s: float | None = None


def create(home: Home, wish: Wish, *, environment: Mapping[str, str], report: Report, command: str = "create") -> Stamp:
    """The finished environment's stamp; makes whatever is missing. Problem when it cannot be."""

    def current() -> Stamp | None:
        return plan.current(home, environment, tests=wish.tests, adding=wish.extras)

    have = current()
    if have:
        return have
    with _at_work(home, wish, report, command) as lock:
        return current() or _make(home, wish, environment=environment, report=report, lock=lock)


def repair(
    home: Home, wish: Wish, *, environment: Mapping[str, str], report: Report, rebuild: bool = False
) -> tuple[Stamp, list[str]]:
    """Look at every file, put right what is wrong, from nothing if need be. Also gives what was found wrong."""
    with _at_work(home, wish, report, "repair") as lock:
        have = stamp.load(home.stamp) or Stamp()
        keep = have.chosen and not wished_build(environment)
        build = have.build if keep else choose_build(_gpu(environment, report), environment)
        found = []
        if have.build and have.build != build:
            found.append(f"PyTorch is the {have.build} build, and this machine wants {build}")
        elif rebuild:
            found.append("a new one was asked for")
        if found:
            report.log(f"Rebuilding: {found[0]}.")
            discard(home, again=have.extras)
        else:
            found = faults(home, have)
            have.steps.pop("check", None)
            _ask_for(have, extras.kept(have.extras))
            if have.steps:
                stamp.save(have, home.stamp)
        wish = Wish(tests=wish.tests or "test" in have.steps, interpreter=wish.interpreter)
        try:
            return _make(home, wish, environment=environment, report=report, lock=lock), found
        except Problem as problem:
            if problem.kind != "broken":
                raise
            report.warning(f"{problem.message} Rebuilding.")
            discard(home, again=have.extras)
            return _make(home, wish, environment=environment, report=report, lock=lock), [*found, problem.message]


def remove(home: Home, wish: Wish, *, report: Report) -> bool:
    """Delete what this program made under the home, and the home when nothing else is in it. False: nothing there."""
    if not home.path.is_dir():
        return False
    with locked(home.lock, command="remove", timeout_s=wish.timeout_s, waiting=report.log):
        found = home.env.exists() or home.stamp.exists() or home.cache.exists()
        discard(home)
        _bury(home)
        for folder in (home.cache, home.scratch):
            shutil.rmtree(folder, ignore_errors=True)
        home.attention.unlink(missing_ok=True)
        if home.logs.is_dir():
            for log in home.logs.iterdir():
                if OUR_LOG.fullmatch(log.name):
                    log.unlink(missing_ok=True)
        if os.name != "nt":  # Windows deletes no open file; elsewhere it must go before the lock does
            home.lock.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        home.lock.unlink(missing_ok=True)
    for folder in (home.cache.parent, home.logs, home.path):
        with contextlib.suppress(OSError):  # not empty: it holds what others put there
            folder.rmdir()
    return found


def take_out(
    home: Home, wanted: Sequence[Extra], wish: Wish, *, environment: Mapping[str, str], report: Report
) -> None:
    """Uninstall optional packages, and forget that they were asked for. Problem when there is no environment."""
    with _at_work(home, wish, report, "remove") as lock:
        have = stamp.load(home.stamp)
        if have is None or "venv" not in have.steps:
            raise Problem("absent", f"There is no environment at {home.path}.", "There is nothing to remove.")
        installer = Installer(home, report, environment=installer_environment(home, environment), uv=None, lock=lock)
        adding.take_out(Workplace(home, have, installer, environment, report), [extra.name for extra in wanted])


def discard(home: Home, *, again: Sequence[str] = ()) -> None:
    """Delete the environment. Problem when the folder of that name was not made here.

    `again` names optional packages that the next one shall have as well.
    """
    if not os.path.lexists(home.env):
        _forget(home, again)
        return
    if home.env.is_symlink() or not home.env.is_dir() or not home.marker.exists():
        if home.env.is_dir() and not home.env.is_symlink() and not any(home.env.iterdir()):
            return
        raise Problem(
            "home",
            f"{home.env} was not made by this program, so it is left alone.",
            "Move it away, or set MUSUBI_HOME to another folder.",
        )
    _forget(home, again)
    try:
        os.rename(home.env, home.path / f"{GRAVE}{os.getpid()}-{time.monotonic_ns()}")
    except OSError as failure:
        raise Problem(
            "home",
            f"{home.env} cannot be removed: {failure.strerror}.",
            "Stop what uses it (a running job, ComfyUI), then run the same command again.",
        ) from failure
    _bury(home)


def _forget(home: Home, again: Sequence[str]) -> None:
    if again:
        stamp.save(Stamp(extras=list(again)), home.stamp)
    else:
        home.stamp.unlink(missing_ok=True)


def faults(home: Home, have: Stamp) -> list[str]:
    """What a full look at the files finds wrong, one phrase each. The environment need not be finished."""
    if not have.steps:
        return [] if not home.env.exists() else ["it was never finished"]
    site_packages = home.site_packages()
    if site_packages is None or not _runs(home):
        return [f"{home.python} does not run"]
    whole = [f"{package} {fault}" for package, fault in integrity.damaged(site_packages).items()]
    return whole or [f"{name} is gone from the packages" for name in integrity.missing(site_packages, have.entries)]


@contextlib.contextmanager
def _at_work(home: Home, wish: Wish, report: Report, command: str) -> Iterator[int]:
    try:
        home.path.mkdir(parents=True, exist_ok=True)
    except OSError as failure:
        raise disk_or_home(failure, home.path) from failure
    with locked(home.lock, command=command, timeout_s=wish.timeout_s, waiting=report.log) as lock:
        try:
            report.open_log(home.logs, command)
        except OSError as failure:
            raise disk_or_home(failure, home.logs) from failure
        _bury(home)
        shutil.rmtree(home.temporary, ignore_errors=True)
        try:
            yield lock
        finally:
            shutil.rmtree(home.temporary, ignore_errors=True)


def _bury(home: Home) -> None:
    for grave in home.path.glob(f"{GRAVE}*"):
        shutil.rmtree(grave, ignore_errors=True)


def _gpu(environment: Mapping[str, str], report: Report) -> Gpu | None:
    gpu = detect_gpu(environment)
    if gpu is None and nvidia_smi(environment):
        report.warning("nvidia-smi is there but does not answer: going on as if there were no NVIDIA GPU.")
    return gpu


def _runs(home: Home) -> bool:
    question = [str(home.python), "-I", "-m", "pip", "--version"]
    return output_of(question, environment=clean_environment(os.environ)) is not None


def _emptied(home: Home, have: Stamp) -> Stamp:
    """Nothing is left but the names of the optional packages."""
    discard(home, again=have.extras)
    return Stamp(extras=have.extras)


def _sound(home: Home, have: Stamp, report: Report) -> Stamp:
    """The stamp without the steps whose results are not whole; what is half there is cleared away."""
    if "venv" not in have.steps or not _runs(home):
        if have.steps:
            report.log("The environment's Python does not run: rebuilding.")
        return _emptied(home, have)
    site_packages = home.site_packages()
    assert site_packages is not None
    broken = integrity.damaged(site_packages)
    if any(name.startswith("pip-") for name in broken):
        return _emptied(home, have)
    found = faults(home, have)
    for fault in found[:SHOWN]:
        report.log(f"Found: {fault}; it is installed again.")
    if len(found) > SHOWN:
        report.log(f"Found: and {len(found) - SHOWN} more.")
    if found:  # the stamp first: killed in between, it must not speak of packages that are forgotten
        have.steps, have.ready = {"venv": have.steps["venv"]}, False
        stamp.save(have, home.stamp)
    integrity.forget(site_packages, broken)
    return have


def _make(home: Home, wish: Wish, *, environment: Mapping[str, str], report: Report, lock: int) -> Stamp:
    have = _sound(home, stamp.load(home.stamp) or Stamp(), report)
    build = wished_build(environment) or have.build or choose_build(_gpu(environment, report), environment)
    if have.build and have.build != build:
        report.log(f"Rebuilding: PyTorch is the {have.build} build, but {build} is wanted.")
        have = _emptied(home, have)
    extras.refuse_impossible(wish.extras, build, environment)
    have.build, have.pack = build, str(PACK)
    have.chosen = have.chosen or bool(wished_build(environment))
    _ask_for(have, wish.extras)
    left, to_add = plan.outstanding(have, tests=wish.tests), plan.to_add(have)
    have.ready = have.ready and not left
    steps = [*left, *(plan.extra_step(extra, build) for extra in to_add)]
    check_space(home, steps)
    stamp.save(have, home.stamp)

    settings = installer_environment(home, environment)
    installer = Installer(home, report, environment=settings, uv=find_uv(environment, home), lock=lock)
    place = Workplace(home, have, installer, environment, report)
    begin = _stages(report, steps)
    work: dict[str, Callable[[Advance], None]] = {
        "venv": lambda advance: _make_venv(home, wish, have, environment, report, lock),
        "torch": lambda advance: _install_torch(installer, build, environment, report, advance),
        "base": lambda advance: _install_file(installer, "base", advance),
        "cuda": lambda advance: adding.add_unasked(place, extras.of_cuda(build), advance),
        "test": lambda advance: _install_file(installer, "test", advance),
        "check": lambda advance: _check(home, have, environment, wish, report),
    }
    for step in left:
        work[step.name](begin(step))
        have.steps[step.name] = step.fingerprint
        stamp.save(have, home.stamp)
    if not have.ready:
        _finish(place)
    adding.add_again(place, [extra for extra in to_add if extra not in wish.extras], begin=begin)
    adding.add_asked(place, [extra for extra in to_add if extra in wish.extras], begin=begin)
    report.progress(1.0)
    return have


def _ask_for(have: Stamp, wanted: Sequence[Extra]) -> None:
    """Record what this run asks for. What was tried and is not there is tried again."""
    for extra in wanted:
        if extra.name not in have.extras:
            have.extras.append(extra.name)
        if extra.name not in have.versions:
            have.steps.pop(plan.extra_step_name(extra.name), None)


def _finish(place: Workplace) -> None:
    place.have.made = time.strftime("%Y-%m-%d %H:%M:%S")
    place.have.seconds = round(place.report.elapsed_s, 1)
    place.have.ready = True
    place.record()


def _stages(report: Report, steps: Sequence[Step]) -> Callable[[Step], Advance]:
    """What tells that one of `steps` begins, and gives its share of the bar."""
    total_s = sum(step.seconds for step in steps)

    def begin(step: Step) -> Advance:
        number = steps.index(step)
        before_s = sum(earlier.seconds for earlier in steps[:number])
        report.stage(step.name, f"[{number + 1}/{len(steps)}] {step.title}")
        report.progress(before_s / total_s)
        return lambda fraction, label: report.progress((before_s + step.seconds * fraction) / total_s, label)

    return begin


def check_space(home: Home, left: list[Step]) -> None:
    """Problem when the disk has less room than these steps need."""
    place = home.path
    while not place.exists():
        place = place.parent
    free, needed = shutil.disk_usage(place).free, sum(step.size for step in left)
    if free < needed:
        raise Problem(
            "disk",
            f"{home.path} has {free / plan.GB:.1f} GB free, and the environment needs about {needed / plan.GB:.1f} GB.",
            "Free some space, or set MUSUBI_HOME to a folder on a larger disk, and run the same command again.",
        )


def _make_venv(home: Home, wish: Wish, have: Stamp, environment: Mapping[str, str], report: Report, lock: int) -> None:
    wanted = wish.interpreter or environment.get("MUSUBI_PYTHON", "").strip()
    settings = installer_environment(home, environment)
    home.temporary.mkdir(parents=True, exist_ok=True)
    maker: Maker = choose_maker(
        home, environment, wanted=wanted, fetch=lambda: fetch_uv(home, settings, on_line=report.record)
    )
    if maker.note:
        report.log(maker.note)
    try:
        home.env.mkdir(exist_ok=True)
        home.marker.write_text("Made by python -m env_bootstrap, which may delete this folder.\n", encoding="utf-8")
    except OSError as failure:
        raise disk_or_home(failure, home.env) from failure
    command = [*maker.command, *(["--allow-existing"] if maker.kind == "uv" else []), str(home.env)]
    report.record("$ " + " ".join(command))
    ended = run_child(command, environment=settings, on_line=report.record, lock=lock)
    if ended.status:
        problem = recognise(ended.tail, what="the Python environment", status=ended.status)
        raise problem if problem.kind != "package" else Problem("venv", problem.message, problem.hint)
    have.interpreter = maker.interpreter


def _install_torch(
    installer: Installer, build: str, environment: Mapping[str, str], report: Report, advance: Advance
) -> None:
    installer.renew_pip()
    pin, index = torch_pin(), index_of(build, environment)
    chosen = bool(wished_build(environment) or environment.get("MUSUBI_TORCH_INDEX"))
    if build == "cpu" and not chosen and is_light(installer.would_install(pin)):
        index = ""
    if index:
        # Its own channel marks each build in the version, so that no other build can slip in from another place.
        exact = pin if environment.get("MUSUBI_TORCH_INDEX") else f"{pin}+{build}"
        try:
            return installer.install([exact], what=f"{exact} from {index}", advance=advance, expected=10, index=index)
        except Problem as problem:
            if chosen or problem.kind not in ("network", "package"):
                raise
            report.warning(f"{index} does not give {exact}: taking the one that pip finds by itself.")
    installer.install([pin], what=pin, advance=advance, expected=10)


def _install_file(installer: Installer, name: str, advance: Advance) -> None:
    constraints = ["-c", str(REQUIREMENTS / "torch.txt"), "-c", str(REQUIREMENTS / "constraints.txt")]
    expected = 3 * len(plan.requirement_lines(name))
    arguments = ["-r", str(REQUIREMENTS / f"{name}.txt"), *constraints]
    installer.install(arguments, what=f"the packages of {name}.txt", advance=advance, expected=expected)


def _check(home: Home, have: Stamp, environment: Mapping[str, str], wish: Wish, report: Report) -> None:
    answer = imports(home, environment, tests=wish.tests)
    if answer is None:
        raise Problem("broken", "The environment's Python ended while importing its packages.", REPAIR)
    failed = answer["failed"]
    if isinstance(failed, dict) and failed:
        name, reason = next(iter(failed.items()))
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise Problem("broken", f"The environment cannot import {name}{more}: {reason}", REPAIR)
    have.python = str(answer["python"])
    if have.build.startswith("cu") and not answer["device"]:
        report.warning(f"PyTorch {answer['torch']} sees no GPU: look at nvidia-smi, then run status again.")
