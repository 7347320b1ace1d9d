"""The further processes of a job, seen from number 0: small programs stand for them, so nothing heavy is started."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from engine import processes
from engine.contract import cli
from engine.contract.events import Failed
from engine.processes import Place, others, place_around, placed
from engine.talk import JobFolder
from tests.faults.kit import needs_kill

SAYS = """
import sys
print('{"event": "log", "message": "not news", "level": "info"}')
print('{"event": "failed", "kind": "data", "message": "clip 7 is damaged", "hint": "cut it"}', flush=True)
sys.exit(2)
"""
DIES = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
LEAVES = "import sys; sys.exit(5)"
DEAF = "import time; time.sleep(60)"  # to the end of stdin
BLOCKED = """
import signal, sys
print(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])), file=sys.stderr)
"""
BUG = Failed(kind="bug", message="Connection closed by peer", hint="")


@pytest.fixture
def job():
    return cli.parse(shlex.split("train wan --dit d --dataset_config c --num_processes 2"))


@pytest.fixture
def company(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, job):
    """Starts one further process that runs a program."""
    said: list[Failed] = []

    def start(program: str, *, grace_s: float = 10.0):
        monkeypatch.setattr(processes, "module_command", lambda *words: [sys.executable, "-c", program])
        monkeypatch.setattr(processes, "GRACE_S", grace_s)
        monkeypatch.setattr(processes, "SAVING_S", grace_s)
        return others(Place(count=2, meeting={"WORLD_SIZE": "2"}), job, JobFolder(tmp_path, ""), said.append), said

    return start


@pytest.mark.parametrize(
    ("program", "expected", "status"),
    [
        (SAYS, Failed(kind="data", message="clip 7 is damaged", hint="cut it"), 2),
        (LEAVES, Failed(kind="bug", message="Process 1 of the job ended with 5.", hint="See log.txt."), 70),
        pytest.param(DIES, "Process 1 of the job was killed", 3, marks=needs_kill),
    ],
)
def test_its_failure_explains_a_lost_connection(company, program: str, expected, status: int) -> None:
    started, _ = company(program)
    with started as them:
        found, its_status = them.cause(BUG, 70)
    assert (found == expected or str(expected) in found.message) and its_status == status


def test_what_number_0_knows_by_itself_stands(company) -> None:
    started, said = company(SAYS)
    full = Failed(kind="disk", message="No space left on device", hint="")
    with started as them:
        assert them.cause(full, 4) == (full, 4)
    assert said == []


def test_a_number_0_that_hangs_in_an_exchange_is_ended(company, monkeypatch: pytest.MonkeyPatch) -> None:
    """With NCCL nothing else would tell it: the GPU waits for an answer."""
    ended = threading.Event()
    statuses: list[int] = []
    monkeypatch.setattr(processes.os, "_exit", lambda status: (statuses.append(status), ended.set()))
    started, said = company(SAYS, grace_s=0.1)
    with started:
        assert ended.wait(20)
    assert statuses == [2] and [failure.message for failure in said] == ["clip 7 is damaged"]


def test_a_process_that_does_not_end_is_killed(company) -> None:
    started, _ = company(DEAF, grace_s=0.2)
    before = time.monotonic()
    with started as them:
        (child,) = them._children
    assert child.returncode not in (0, None) and time.monotonic() - before < 20


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="needs signal masks")
def test_a_ctrl_c_while_it_starts_does_not_end_it(company, tmp_path: Path) -> None:
    started, _ = company(BLOCKED)
    with started as them:
        (child,) = them._children
        child.wait(20)
    assert "SIGINT" in (tmp_path / "log.txt").read_text() and "SIGTERM" in (tmp_path / "log.txt").read_text()
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_the_environment_is_that_of_torchrun_and_is_put_back(job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    before = dict(os.environ)
    gpus = cli.parse(shlex.split("train wan --dit d --dataset_config c --num_processes 2 --gpu_ids 2,3"))
    with placed(gpus) as place:
        assert place.number == 0 and place.count == 2
        assert os.environ["RANK"] == os.environ["LOCAL_RANK"] == "0" and os.environ["WORLD_SIZE"] == "2"
        assert int(os.environ["MASTER_PORT"]) > 0 and os.environ["MASTER_ADDR"] == "127.0.0.1"
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert dict(os.environ) == before
    one = cli.parse(shlex.split("train wan --dit d --dataset_config c --gpu_ids 2"))
    with placed(one) as place:
        assert place.count == 1 and os.environ["CUDA_VISIBLE_DEVICES"] == "2" and "RANK" not in os.environ


def test_several_processes_are_planned_for_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    planned = cli.parse(shlex.split("plan train wan --dit d --dataset_config c --num_processes 2 --gpu_ids 2,3"))
    assert planned.values()["num_processes"] == 2
    with placed(planned) as place:
        assert place == Place() and os.environ["CUDA_VISIBLE_DEVICES"] == "2,3" and "LOCAL_RANK" not in os.environ


def test_a_cluster_that_numbers_its_machines_is_no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kubernetes' training operators set RANK and WORLD_SIZE in every container."""
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert place_around() == Place()
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert place_around() == Place(number=3, count=4)


def test_a_command_without_a_share_for_others_is_done_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`accelerate launch --num_processes 2 -m engine dataset check …`: two would write the same files."""
    from engine.__main__ import main

    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["dataset", "check", "--dataset_config", str(tmp_path / "none.toml")]) == 0
