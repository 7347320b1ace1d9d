"""`serve`: one job after another in one process, each as if it were alone, and the end of it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.contract import cli
from engine.contract.errors import OptionError
from engine.contract.events import Done, Event, Failed, Finished, Hello, Log, Order, Warning_, read, read_order

PACK = Path(__file__).parents[1]

SERVER = """
import logging, os, random, signal, sys, time
import numpy, torch
from engine import __main__
from engine.contract.errors import Stopped, WeightsError
from engine.contract.errors import OptionError
from engine.contract.events import Done, Log
from engine.tasks import doctor

def state():
    handlers = [signal.getsignal(number).__qualname__ for number in (signal.SIGTERM, signal.SIGINT)]
    return repr((
        torch.get_default_dtype(), torch.get_num_threads(), torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.benchmark, torch.is_grad_enabled(), torch.rand(1).item(), os.getcwd(),
        sorted(os.environ.items()), logging.getLogger().level, len(logging.getLogger().handlers), handlers,
    ))

def disturb():
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(torch.get_num_threads() + 1)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.benchmark = True
    torch.set_grad_enabled(False)
    torch.manual_seed(7)
    os.chdir("/")
    os.environ["LEFT"] = "behind"
    logging.getLogger().setLevel("DEBUG")
    logging.getLogger().addHandler(logging.StreamHandler())
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

def run(job, say, control):
    what = os.path.basename(job.values()["job_dir"]).partition(" ")[0]
    print(f"printed by {what}", flush=True)
    say(Log(message=f"this is {what}"))
    if what == "state":
        return state()
    if what == "disturb":
        disturb()
    if what == "memory":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    if what == "cuda":
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    if what == "weights":
        raise WeightsError("Another model.", "Take this one.")
    if what == "wait":
        while not control.stop_requested:
            time.sleep(0.01)
            if control.take_save():
                say(Log(message="saved"))
        raise Stopped("Stopped.")
    return "done"

doctor.run = run
sys.exit(__main__.main(["serve"]))
"""


class Server:
    """A server whose jobs do what their folders are called."""

    def __init__(self, home: Path):
        self.home = home
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER], cwd=PACK, text=True, encoding="utf-8",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.events = self._events()
        assert isinstance(next(self.events), Hello)

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def begin(self, name: str) -> Path:
        folder = self.home / name
        folder.mkdir(exist_ok=True)
        job = cli.parse(["doctor"])
        assert job is not None
        (folder / "job.toml").write_text(job.to_toml(), encoding="utf-8")
        self.tell(json.dumps({"command": "run", "job": str(folder)}))
        return folder

    def heard(self) -> list[Event]:
        """Everything up to the next `finished`, or to the end."""
        found: list[Event] = []
        for event in self.events:
            found.append(event)
            if isinstance(event, Finished):
                break
        return found

    def ran(self, name: str) -> list[Event]:
        self.begin(name)
        return self.heard()

    def _events(self) -> Iterator[Event]:
        assert self.process.stdout is not None
        yield from map(read, self.process.stdout)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("jobs"))
    yield server
    assert server.process.communicate(timeout=30)[0] and server.process.returncode == 0


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.process.kill()
    server.process.wait()


def message(events: list[Event]) -> str:
    (done,) = (event for event in events if isinstance(event, Done))
    return done.message


def test_each_job_is_told_apart_and_has_its_record(shared: Server) -> None:
    for name in ("one", "two öü"):
        said = shared.ran(name)
        folder = shared.home / name
        word = name.partition(" ")[0]
        assert said[1:] == [
            Log(message=f"this is {word}"), Done(message="done"), Finished(job=str(folder), status=0),
        ]  # fmt: skip
        assert isinstance(said[0], Hello) and said[0].job == str(folder)
        kept = [read(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]
        assert kept == said[:-1]
        assert re.findall("this is .*", (folder / "log.txt").read_text()) == [f"this is {word}"]


def test_a_job_leaves_the_process_as_it_found_it(shared: Server) -> None:
    before = message(shared.ran("state 1"))
    shared.ran("disturb")
    assert message(shared.ran("state 2")) == before


@pytest.mark.parametrize(("kind", "status"), [("memory", 3), ("weights", 2)])
def test_a_failure_that_a_person_can_mend_does_not_end_it(shared: Server, kind: str, status: int) -> None:
    said = shared.ran(kind)
    failed = next(event for event in said if isinstance(event, Failed))
    assert failed.kind == kind
    assert said[-1] == Finished(job=str(shared.home / kind), status=status)
    assert message(shared.ran("after")) == "done"


def test_mistakes_in_a_job_file_are_its_jobs_failure(shared: Server) -> None:
    folder = shared.home / "wrong"
    folder.mkdir()
    for text, told in (
        ('command = "doctor"\nlog_levle = "info"\n', "log_level"),
        ('command = "serve"\n', "a server cannot run"),
        ('command = "cache-text"\nfamily = "wan"\ndataset_config = "d"\nt5 = "t"\nnum_processes = 2\n', "own process"),
    ):
        (folder / "job.toml").write_text(text)
        shared.tell(f"run {folder}")
        hello, failed, finished = shared.heard()
        assert isinstance(hello, Hello) and isinstance(failed, Failed)
        assert told in failed.message + failed.hint
        assert finished == Finished(job=str(folder), status=2)
    shared.tell(f"run {folder / 'missing.toml'}")
    assert isinstance(shared.heard()[-1], Finished)


def test_orders_that_mean_nothing(shared: Server) -> None:
    shared.tell("stop")  # nothing runs
    shared.tell("run")
    said = shared.ran("after nonsense")
    (warning,) = (event for event in said if isinstance(event, Warning_))
    assert "does not name a job" in warning.message
    assert message(said) == "done"


def test_stop_and_save_are_for_the_job_that_runs_also_when_it_is_just_begun(shared: Server) -> None:
    shared.begin("wait 1")
    shared.tell("stop")
    said = shared.heard()
    assert Done(message="Stopped.", stopped=True) in said
    assert said[-1] == Finished(job=str(shared.home / "wait 1"), status=0)
    shared.begin("wait 2")
    shared.tell('{"command": "save"}')
    while next(shared.events) != Log(message="saved"):
        pass
    shared.begin("behind")  # waits for its turn, and the stop is not for it
    shared.tell("stop")
    assert Done(message="Stopped.", stopped=True) in shared.heard()
    assert message(shared.heard()) == "done"


def test_what_leaves_the_process_in_doubt_ends_it(own: Server) -> None:
    said = own.ran("cuda")
    assert said[-1] == Finished(job=str(own.home / "cuda"), status=70, leaving=True)
    own.begin("after")
    (last,) = own.heard()
    assert isinstance(last, Failed) and "fresh process" in last.hint
    assert own.process.wait(30) == 70


def test_the_end_of_stdin_stops_the_job_and_ends_it(own: Server) -> None:
    own.begin("wait")
    assert isinstance(next(own.events), Hello)
    assert own.process.stdin is not None
    own.process.stdin.close()
    said = own.heard()
    assert Done(message="Stopped.", stopped=True) in said
    assert own.heard() == [Done(message="1 jobs")]
    assert own.process.wait(30) == 0


@pytest.mark.skipif(os.name != "posix", reason="needs SIGTERM")
def test_sigterm_stops_the_job_and_ends_it(own: Server) -> None:
    own.begin("wait")
    while next(own.events) != Log(message="this is wait"):
        pass
    own.process.send_signal(signal.SIGTERM)
    said = own.heard()
    assert Done(message="Stopped.", stopped=True) in said
    assert said[-1] == Finished(job=str(own.home / "wait"), status=0, leaving=True)
    assert own.process.wait(30) == 0


def test_orders_are_read_as_json_or_as_words() -> None:
    assert read_order(" stop\n") == read_order('{"command": "stop"}') == Order("stop")
    assert read_order("run /my jobs/one") == Order("run", "/my jobs/one")
    assert read_order("[1]") == Order("[1]") and read_order('{"stop"') == Order('{"stop"')


@pytest.mark.parametrize("words", [["--device", "cpu"], ["--job_dir", "x"]])
def test_what_is_for_each_job_is_refused_for_the_server(words: list[str]) -> None:
    with pytest.raises(OptionError, match=f"{words[0]} is for a job"):
        cli.parse(["serve", *words])


def test_help_is_there_at_once_and_without_torch() -> None:
    began = time.perf_counter()
    code = "import sys; from engine.__main__ import main; main(['serve', '--help']); sys.exit('torch' in sys.modules)"
    done: Any = subprocess.run([sys.executable, "-c", code], cwd=PACK, capture_output=True, text=True)
    assert done.returncode == 0 and "Stay" in done.stdout
    assert time.perf_counter() - began < 3  # 0.2 s on a quiet machine
