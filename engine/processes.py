"""One job in several processes: which of them this is, how they are started, and how they end together.

The process that a person or a node started is number 0: it alone talks, saves and obeys. It starts the others itself,
with the job file it wrote and the variables by which torchrun and accelerate number processes (RANK, WORLD_SIZE …), so
it is number 0 of an outer `accelerate launch` in the same way. Each of the others hangs on two pipes: its stdin ends
with number 0, however that ends, and it with it; on its stdout it says why it failed. Knows no torch and no task.

Given up: torch's elastic agent, which accelerate's launcher runs. It stands between the person and the job, kills what
has not saved after 30 s, and turns every exit status into 1.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .contract.children import module_command
from .contract.errors import STATUS, OptionError, ProcessLost, as_failed
from .contract.events import Event, Failed, Say, read
from .contract.job import Job
from .contract.options import Processes
from .talk import JobFolder, event_writer, log_handler, quiet_libraries, take_stdout

TIED = "MUSUBI_TIED"  # set in the processes that number 0 has started
GRACE_S = 5.0
SAVING_S = 20.0
"""How long number 0 has to notice that another one failed, and to save what was done (training/broken_step.py)."""
SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
)  # what number 0 obeys (talk.py)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Which of how many processes this is. `meeting` are the variables of a job that starts the others itself."""

    number: int = 0
    count: int = 1
    meeting: dict[str, str] = field(default_factory=dict)


def place_around() -> Place:
    """What a launcher around us says. LOCAL_RANK alone tells: clusters number their machines by the other two."""
    if "LOCAL_RANK" not in os.environ:
        return Place()
    return Place(number=int(os.environ.get("RANK", 0)), count=int(os.environ.get("WORLD_SIZE", 1)))


@contextlib.contextmanager
def placed(job: Job) -> Iterator[Place]:
    """This process's place in the job, told to torch and accelerate by variables while it lasts. OptionError."""
    around = place_around()
    if Processes not in job:
        yield around
        return
    launch = job[Processes]
    if around.count > 1:
        if launch.num_processes not in (1, around.count):
            raise OptionError(
                f"--num_processes {launch.num_processes}, but the launcher started {around.count} processes.",
                "Leave out either --num_processes or the launcher.",
                names=("num_processes",),
            )
        yield around
        return
    gpus = {"CUDA_VISIBLE_DEVICES": ",".join(launch.chosen_gpus)} if launch.chosen_gpus else {}
    count = 1 if job.command.alone else launch.num_processes
    meeting = _meeting(count, launch.main_process_port) if count > 1 else {}
    with _environment({**gpus, **meeting, **(_numbered(0) if meeting else {})}):
        yield Place(count=count, meeting=meeting)


def _numbered(number: int) -> dict[str, str]:
    return {"RANK": str(number), "LOCAL_RANK": str(number)}


def _meeting(count: int, port: int | None) -> dict[str, str]:
    """The variables that all processes have in common."""
    with socket.socket() as probe:
        if os.name == "posix":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port or 0))
        except OSError as error:
            raise OptionError(
                f"--main_process_port {port} cannot be used: {error.strerror}.",
                "Leave it out: a free port is found automatically.",
            ) from error
        port = probe.getsockname()[1]
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // count))
    return {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count),
        "OMP_NUM_THREADS": threads,
    }  # fmt: skip


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


# ------------------------------------------------------------------------------------------------ seen from number 0


class Others:
    """The further processes that number 0 has started. The first failure among them is the one that counts."""

    def __init__(self, give_up: Callable[[Failed, int], None]) -> None:
        """`give_up` ends number 0 at once; called when it does not come to an end by itself."""
        self._give_up = give_up
        self._children: list[subprocess.Popen[str]] = []
        self._failure: tuple[Failed, int] | None = None
        self._failed, self._over = threading.Event(), threading.Event()

    def start(self, job: Job, count: int, folder: Path) -> None:
        """Start them on the same job. What they print goes to its log."""
        command = module_command("engine", *job.name.split(), "--config_file", str(folder / "job.toml"))
        for number in range(1, count):
            with open(folder / "log.txt", "a", encoding="utf-8") as stderr, _signals_wait():
                child = subprocess.Popen(
                    command,
                    env={**os.environ, **_numbered(number), TIED: "1"},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    text=True,
                    encoding="utf-8",
                    creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
                )
            self._children.append(child)
            threading.Thread(target=self._watch, args=(number, child), name=f"process {number}", daemon=True).start()

    def cause(self, failure: Failed, status: int) -> tuple[Failed, int]:
        """What to tell of number 0's own failure: another's where that explains it, as a lost connection does."""
        self._over.set()
        if self._children and failure.kind == "bug" and self._failed.wait(GRACE_S):
            assert self._failure is not None
            return self._failure
        return failure, status

    def end(self) -> None:
        """See them end: by themselves after a job that was done, else because their stdin does."""
        self._over.set()
        for child in self._children:
            assert child.stdin is not None
            with contextlib.suppress(OSError):
                child.stdin.close()
        for child in self._children:
            try:
                child.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def _watch(self, number: int, child: subprocess.Popen[str]) -> None:
        said: Failed | None = None
        assert child.stdout is not None
        for line in child.stdout:
            with contextlib.suppress(ValueError):
                event = read(line)
                said = event if isinstance(event, Failed) else said
        status = child.wait()
        if status == 0 or self._failed.is_set():
            return
        failure = said or _unsaid(number, status)
        self._failure = failure, STATUS[failure.kind]
        self._failed.set()
        if not self._over.wait(SAVING_S):  # number 0 waits for an answer that will not come
            self._give_up(*self._failure)


def _unsaid(number: int, status: int) -> Failed:
    """For a process that ended without a word."""
    if os.name == "posix" and status == -signal.SIGKILL:
        message = f"Process {number} of the job was killed, most likely because main memory ran out."
        return Failed(kind="memory", message=message, hint="Each process keeps its own copy of the model's weights.")
    return Failed(kind="bug", message=f"Process {number} of the job ended with {status}.", hint="See log.txt.")


@contextlib.contextmanager
def others(place: Place, job: Job, folder: JobFolder | None, say: Say) -> Iterator[Others]:
    """The further processes of a job, started where this is its number 0, and ended with it."""

    def give_up(failure: Failed, status: int) -> None:
        say(failure)
        os._exit(status)

    company = Others(give_up)
    try:
        if place.meeting and folder is not None:
            company.start(job, place.count, folder.path)
        yield company
    finally:
        company.end()


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    """A process that is started here begins with these signals blocked; ours arrive afterwards."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# ----------------------------------------------------------------------------------------- seen from the other ones


def follow(run: Callable[[], None], log_level: str) -> int:
    """Run a further process's part of the job, silent but for the reason of a failure; its exit status."""
    tied = TIED in os.environ
    outward = event_writer(take_stdout()) if tied else _to_the_person
    source = f"[process {place_around().number}] "
    quiet_libraries(log_handler(sys.stderr, source) if tied else logging.NullHandler(), log_level)
    for number in SIGNALS:
        signal.signal(number, lambda *_: None)  # number 0 decides, and tells
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    if tied:
        threading.Thread(target=_end_with_stdin, name="number 0", daemon=True).start()
    try:
        run()
    except Exception as failure:  # whatever it is, number 0 or the person has to know
        event, status = as_failed(failure)
        if status == STATUS["bug"]:
            traceback.print_exception(failure)
        if not tied:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(GRACE_S)  # if number 0 fails alike, it speaks, and the launcher ends this process now
        if tied or not isinstance(failure, ProcessLost):
            outward(event)
        return status
    return 0


def _to_the_person(event: Event) -> None:
    from .screen import Screen

    Screen().show(event)


def _end_with_stdin() -> None:
    while os.read(0, 1):  # not sys.stdin, which Python may not close while a thread waits in it
        pass
    os._exit(STATUS["bug"])
