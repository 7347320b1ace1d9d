"""`python -m env_bootstrap <what>`: the command line, what stops it, and the exit status.

0 done; 1 the environment could not be made or is not ready; 2 something that the person must change; 4 disk; 70 a bug
of ours; 130 interrupted. `run`, `demo` and `test` end with the exit status of what they start.
"""

from __future__ import annotations

import _thread
import argparse
import difflib
import errno
import json
import os
import shlex
import signal
import stat
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence

from . import extras, launch, maker, stamp, status
from .home import Home, find_home
from .maker import Wish
from .problems import GO_ON, Interrupted, Problem, disk_or_home
from .report import Report, duration

PASSED_ON = {
    "run": "run -- VERB …: the engine's command line in its environment, in this folder; `run -- --help` lists verbs.",
    "demo": "demo [--prepare_only DIR] [--out DIR]: make the environment if needed, then run the engine's demo.",
    "test": "test [pytest's arguments]: make the environment if needed, with the test packages, then run the tests.",
}
OURS = ("create", "repair", "add", "remove", "status", "python", *PASSED_ON)
ELSEWHERE = {"install": "create", "setup": "create", "update": "repair", "upgrade": "repair", "uninstall": "remove"}
"""What other tools call them."""
ALIKE = 0.7  # difflib's ratio: `demoo` is a slip of the fingers, the engine's `generate` is none of `create`
NOT_OUR_FAULT = {errno.ENOSPC, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO}
PATIENCE = "limit to waiting for another run, in seconds (default: none)"


def parser() -> argparse.ArgumentParser:
    """The commands with options of their own; those in PASSED_ON hand everything on."""
    top = argparse.ArgumentParser(
        prog="python -m env_bootstrap",
        description="The engine's own Python environment. It lives under MUSUBI_HOME and touches nothing else.",
        epilog="MUSUBI_HOME: where it lives. MUSUBI_PYTHON: the Python to make it from. MUSUBI_TORCH: cpu, cu126, "
        "cu130 or default. MUSUBI_TORCH_INDEX: another place to get PyTorch from.",
        allow_abbrev=False,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="WHAT")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, allow_abbrev=False)

    create = add("create", "make the environment, or continue making it; does nothing if it is complete")
    repair = add("repair", "look at every installed file and put right what is wrong, from nothing if need be")
    adds = add("add", f"install optional packages, and keep them from now on: {', '.join(extras.BY_NAME)}")
    remove = add("remove", "delete the environment and everything else that this program made; or only NAMEs")
    state = add("status", "how the environment is; exit status 0 when ready, else 1")
    add("python", "print the path of the environment's Python")
    for name, text in PASSED_ON.items():
        add(name, text)
    adds.add_argument("names", nargs="+", metavar="NAME", help="an optional package")
    remove.add_argument("names", nargs="*", metavar="NAME", help="an optional package, to remove it alone")
    for command in (create, repair):
        command.add_argument("--with_tests", action="store_true", help="also the packages that the tests need")
    for command in (create, repair, adds):
        command.add_argument("--python", default="", metavar="PATH", help="the Python to make it from")
        command.add_argument("--events", action="store_true", help="JSON lines on stdout; `stop` on stdin ends it")
    for command in (create, repair, adds, remove):
        command.add_argument("--timeout", type=float, metavar="S", help=PATIENCE)
    repair.add_argument("--rebuild", action="store_true", help="rebuild, whatever is found")
    remove.add_argument("--yes", action="store_true", help="do not ask")
    state.add_argument("--json", action="store_true", help="for programs")
    state.add_argument("--quick", action="store_true", help="import nothing, compare no files: some milliseconds")
    return top


def unknown(words: Sequence[str]) -> Problem:
    """What to say of a first word that is no command here; most likely it is one of the engine's."""
    near = difflib.get_close_matches(words[0], OURS, n=1, cutoff=ALIKE)
    meant = near[0] if near else ELSEWHERE.get(words[0])
    if meant:
        return Problem("option", f"There is no command {words[0]}.", f"Did you mean {meant}?")
    line = f"python -m env_bootstrap run -- {shlex.join(words)}"
    return Problem("option", f"There is no command {words[0]} here.", f"The engine's commands stand behind run: {line}")


def underscored(argv: Sequence[str]) -> list[str]:
    """`--with-tests=x` → `--with_tests=x`: dashes are as good as underscores, here as in the engine."""
    changed = []
    for word in argv:
        name, equals, value = word.partition("=")
        changed.append(name[:2] + name[2:].replace("-", "_") + equals + value if word.startswith("--") else word)
    return changed


def listen_for_stop(asked: threading.Event) -> None:
    """`stop` on stdin, or its end, interrupts the main thread. A stdin that is no pipe says nothing (/dev/null)."""
    try:
        if not stat.S_ISFIFO(os.fstat(0).st_mode):
            return
    except OSError:
        return

    def read() -> None:
        rest = b""
        while chunk := os.read(0, 4096):
            rest = (rest + chunk)[-8192:]
            if b"stop" in rest:
                break
        if not asked.is_set():
            asked.set()
            _thread.interrupt_main()

    if threading.current_thread() is threading.main_thread():
        # What a script starts in the background ignores SIGINT, and then nothing could interrupt the main thread.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=read, daemon=True).start()


def _on_signal(number: int, frame: object) -> None:
    raise Interrupted(128 + number)


def _create(home: Home, wish: Wish, report: Report, environment: Mapping[str, str], command: str) -> None:
    quiet = command != "create" and launch.is_ready(home, environment, tests=wish.tests)
    have = maker.create(home, wish, environment=environment, report=report, command=command)
    if quiet:
        return
    torch = have.versions.get("torch", "?")
    took = f", {duration(report.elapsed_s)}" if report.elapsed_s > 1 else ""
    message = f"ready: {home.env} (PyTorch {torch}, Python {have.python}{took})"
    if command == "create":
        report.done(message)
    else:
        report.log(message)


def _repair(home: Home, options: argparse.Namespace, report: Report, environment: Mapping[str, str]) -> int:
    wish = Wish(tests=options.with_tests, interpreter=options.python, timeout_s=options.timeout)
    have, found = maker.repair(home, wish, environment=environment, report=report, rebuild=options.rebuild)
    torch = have.versions.get("torch", "?")
    what = "repaired" if found else "nothing to repair"
    report.done(f"{what}: {home.env} (PyTorch {torch}, Python {have.python}, {duration(report.elapsed_s)})")
    return 0


def _add(home: Home, options: argparse.Namespace, report: Report, environment: Mapping[str, str]) -> int:
    wanted = extras.named(options.names)
    before = stamp.load(home.stamp)
    tests = before is not None and "test" in before.steps
    wish = Wish(tests=tests, extras=tuple(wanted), interpreter=options.python, timeout_s=options.timeout)
    there = launch.is_ready(home, environment, adding=wanted)
    have = maker.create(home, wish, environment=environment, report=report, command="add")
    names = ", ".join(f"{extra.name} {have.versions[extra.name]}" for extra in wanted)
    took = "" if there else f" ({duration(report.elapsed_s)})"
    report.done(f"{'already there' if there else 'added'}: {names}{took}")
    return 0


def _take_out(home: Home, options: argparse.Namespace, report: Report, environment: Mapping[str, str]) -> int:
    wanted = extras.named(options.names)
    maker.take_out(home, wanted, Wish(timeout_s=options.timeout), environment=environment, report=report)
    report.log(f"removed: {', '.join(extra.name for extra in wanted)}")
    return 0


def _remove(home: Home, options: argparse.Namespace, report: Report) -> int:
    if not options.yes:
        if not sys.stdin.isatty():
            raise Problem("option", f"This would delete {home.env}.", "Say so with: remove --yes")
        if input(f"Delete the environment in {home.path}? [y/N] ").strip().lower() not in ("y", "yes"):
            report.log("Nothing was deleted.")
            return 1
    found = maker.remove(home, Wish(timeout_s=options.timeout), report=report)
    report.log(f"removed: {home.path}" if found else f"There is nothing at {home.path}.")
    return 0


def _status(home: Home, options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    state = status.look(home, environment, quick=options.quick)
    print(json.dumps(state.as_json(), indent=1) if options.json else status.table(state))
    return 0 if state.state == "ready" else 1


def _pass_on(command: str, rest: list[str], home: Home, report: Report, environment: Mapping[str, str]) -> int:
    if rest[:1] in (["--help"], ["-h"]):
        print(f"python -m env_bootstrap {PASSED_ON[command]}")
        return 0
    rest = rest[1:] if rest[:1] == ["--"] else rest
    if command == "run":
        return launch.run_engine(home, rest, environment=environment)
    _create(home, Wish(tests=command == "test"), report, environment, command)
    report.close()
    if command == "demo":
        return launch.run_engine(home, ["demo", *rest], environment=environment)
    return launch.run_tests(home, rest, environment=environment)


def _guarded(work: Callable[[], int], report: Report, asked: threading.Event) -> int:
    """Run, and turn whatever ends it into one message and an exit status."""
    try:
        return work()
    except Problem as problem:
        return report.failed(problem)
    except KeyboardInterrupt as interruption:
        if asked.is_set():
            report.done(f"Stopped. {GO_ON}", stopped=True)
            return 0
        report.failed(Problem("stopped", "Interrupted.", GO_ON))
        return getattr(interruption, "exit_status", 130)
    except BrokenPipeError:  # whoever read our output went away (`status | head`): there is nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except Exception as failure:
        report.record(traceback.format_exc())
        if isinstance(failure, OSError) and failure.errno in NOT_OUR_FAULT:
            return report.failed(disk_or_home(failure, failure.filename or "the home"))
        if report.log_path is None:
            traceback.print_exc()
        what = f"A bug of ours: {type(failure).__name__}: {failure}"
        return report.failed(Problem("bug", what, "Please report it, with the log."))
    finally:
        asked.set()
        report.close()


def main(argv: Sequence[str] | None = None, environment: Mapping[str, str] | None = None) -> int:
    """Parse, do, answer with the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    environment = os.environ if environment is None else environment
    home, asked = find_home(environment), threading.Event()
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), _on_signal)
    if words and words[0] in PASSED_ON:
        report = Report()
        return _guarded(lambda: _pass_on(words[0], words[1:], home, report, environment), report, asked)

    if not words:
        parser().print_help()
        return 0
    if words[0] not in OURS and not words[0].startswith("-"):
        return Report().failed(unknown(words))
    options = parser().parse_args(underscored(words))
    report = Report(events=getattr(options, "events", False))
    if getattr(options, "events", False):
        listen_for_stop(asked)

    def work() -> int:
        if options.command == "create":
            wish = Wish(tests=options.with_tests, interpreter=options.python, timeout_s=options.timeout)
            _create(home, wish, report, environment, "create")
            return 0
        if options.command == "repair":
            return _repair(home, options, report, environment)
        if options.command == "add":
            return _add(home, options, report, environment)
        if options.command == "remove" and options.names:
            return _take_out(home, options, report, environment)
        if options.command == "remove":
            return _remove(home, options, report)
        if options.command == "status":
            return _status(home, options, environment)
        print(launch.require_python(home, environment))
        return 0

    return _guarded(work, report, asked)
