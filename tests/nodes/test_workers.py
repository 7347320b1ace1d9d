"""The engine that stays: used again, given back, and never left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from .conftest import PACK, PATIENCE_S, Engine, alive, folder_dataset, part, run_node, until, wan_models

jobs = part("nodes.jobs")
run = part("nodes.run")
workers = part("nodes.workers")
preferences = part("nodes.preferences")


@pytest.fixture
def kept(models: Path, obliging: Engine) -> Iterator[Engine]:
    """As a person has set who wants engines kept for ten minutes."""
    preferences.save({"keep_alive": 10})
    yield obliging
    workers.bench.clear()


def generate(seed: int = 3, **more: Any) -> tuple[Any, ...]:
    return run_node("Wan21Generator", models=wan_models(), prompt="a cat", seed=seed, **more)


def pids(engine: Engine) -> list[int]:
    """Of the workers that were started."""
    return [int(line.split()[1]) for line in engine.starts if line.startswith("serve")]


def started(engine: Engine) -> int:
    return sum(line.startswith("run ") for line in engine.starts)


def test_by_default_nothing_stays(models: Path, obliging: Engine) -> None:
    generate()
    assert obliging.starts == ["generate wan"]
    assert workers.bench._waiting is None


def test_one_engine_generates_again_and_again_each_with_its_record(kept: Engine) -> None:
    _, path, first = generate(1, filename_prefix="musubi/one")
    _, other, second = generate(2, filename_prefix="musubi/two")
    (pid,) = pids(kept)
    assert started(kept) == 2 and alive(pid)
    assert (Path(path).stem, Path(other).stem) == ("one", "two")
    assert first.state == second.state == "done" and first.folder != second.folder
    for this in (first, second):
        log = (this.folder / "log.txt").read_text()
        assert log.count("a word about a cat") == 1 and log.count("saved video") == 1
        assert len(this.artifacts) == 1


def test_a_failed_job_leaves_the_engine_for_the_next(kept: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OBLIGING_FAILS", "weights")
    for seed in (1, 2):
        with pytest.raises(RuntimeError, match="another model"):
            generate(seed)
    assert len(pids(kept)) == 1 and started(kept) == 2


def test_an_engine_that_leaves_is_followed_by_a_fresh_one(kept: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OBLIGING_LEAVES", "1")
    assert generate(1)[2].state == generate(2)[2].state == "done"
    assert len(pids(kept)) == 2
    assert workers.bench._waiting is None


def test_another_job_finds_the_gpu_free(kept: Engine) -> None:
    generate()
    (pid,) = pids(kept)
    run_node("VAELatentCache", dataset=folder_dataset(), models=wan_models())
    assert not alive(pid)
    assert kept.starts[-1] == "cache-latents wan"


def test_comfyuis_wish_for_memory_ends_one_that_waits_and_none_that_works(kept: Engine) -> None:
    import comfy.model_management as management

    generate(1)
    (pid,) = pids(kept)
    management.free_memory(1 << 20, "cuda:0")  # there is more than that
    assert alive(pid)
    generate(2)  # which unloads ComfyUI's models, but not the engine that it is about to use
    assert pids(kept) == [pid] and alive(pid)
    management.unload_all_models()
    assert not alive(pid)


def test_its_time_ends(kept: Engine) -> None:
    generate(1)
    (pid,) = pids(kept)
    worker = workers.bench._leave()
    workers.bench.put(worker, 0.5 / 60)
    assert alive(pid)
    assert until(lambda: not alive(pid))
    generate(2)
    assert len(pids(kept)) == 2


def test_other_settings_end_it(kept: Engine) -> None:
    answers = part("nodes.answers")
    generate(1)
    (pid,) = pids(kept)
    answers.change_settings(answers.Asked(body={"gpu": "cpu"}))
    assert not alive(pid)
    generate(2)
    assert len(pids(kept)) == 2
    answers.change_settings(answers.Asked(body={"keep_alive": 0}))
    assert not alive(pids(kept)[-1])


@pytest.mark.parametrize("minutes", [-1, 0.5, "10", True, 100_000])
def test_wrong_minutes_are_refused(comfy: Path, minutes: object) -> None:
    with pytest.raises(part("engine.contract.errors").OptionError, match="keep_alive cannot be"):
        preferences.save({"keep_alive": minutes})


def cancel_when_it_works(engine: Engine) -> threading.Thread:
    import comfy.model_management as management

    def cancel() -> None:
        until(lambda: started(engine))
        management.interrupt_current_processing()

    thread = threading.Thread(target=cancel)
    thread.start()
    return thread


def test_cancel_ends_the_job_and_an_engine_that_obeys_stays(kept: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.model_management as management

    monkeypatch.setenv("OBLIGING_WAITS", "1")
    cancel_when_it_works(kept)
    with pytest.raises(management.InterruptProcessingException):
        generate(1)
    (pid,) = pids(kept)
    assert alive(pid) and not run.gpu.locked()
    assert workers.bench._waiting is not None


def test_cancel_ends_a_deaf_engine_within_five_seconds(kept: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.model_management as management

    monkeypatch.setenv("OBLIGING_DEAF", "1")
    cancel_when_it_works(kept)
    began = time.monotonic()
    with pytest.raises(management.InterruptProcessingException):
        generate(1)
    assert time.monotonic() - began < PATIENCE_S
    (pid,) = pids(kept)
    assert not alive(pid) and not run.gpu.locked()
    assert jobs.runs.summaries(part("nodes.paths").jobs())[0]["message"] == "Cancelled.", "nothing was saved"
    assert workers.bench._waiting is None
    monkeypatch.delenv("OBLIGING_DEAF")
    assert generate(2)[2].state == "done"


def test_a_worker_that_is_killed_fails_its_job_in_words(kept: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OBLIGING_DEAF", "1")

    def kill() -> None:
        until(lambda: started(kept))
        os.kill(pids(kept)[0], 9)

    threading.Thread(target=kill).start()
    with pytest.raises(RuntimeError, match="killed from outside"):
        generate(1)


def test_a_worker_that_died_while_it_waited_is_replaced(kept: Engine) -> None:
    generate(1)
    (pid,) = pids(kept)
    os.kill(pid, 9)
    assert until(lambda: not workers.bench._waiting.alive)
    assert generate(2)[2].state == "done"
    assert len(pids(kept)) == 2


def test_an_engine_that_cannot_be_started(kept: Engine, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def program(arguments: list[str], *, folder: Path, log: Path | None) -> Any:
        return run.Program(argv=(str(models / "missing"),), environment={}, folder=folder, log=log)

    monkeypatch.setattr(part("nodes.environment"), "engine_program", program)
    with pytest.raises(RuntimeError, match="could not be started"):
        generate()
    assert not run.gpu.locked()


MISBEHAVING = PACK / "tests" / "children" / "misbehaving.py"


@pytest.mark.parametrize(
    ("kind", "status"), [("long_line", 0), ("flood", 0), ("half_lines", 0), ("not_utf8", 0), ("crash", -11)]
)
def test_what_the_bridge_survives_a_turn_survives(kind: str, status: int, tmp_path: Path) -> None:
    """These engines end with their one job, without a word that it is finished."""
    program = run.Program(
        argv=(sys.executable, str(MISBEHAVING), kind, str(tmp_path)), environment=os.environ, folder=tmp_path
    )
    said: list[Any] = []
    turn = workers.Worker(program).run(tmp_path, said.append)
    ended = turn.wait(2 * PATIENCE_S)
    assert ended is not None and ended.status == status and not turn.stays
    assert (ended.last is not None) == (status == 0)
    assert (tmp_path / "log.txt").stat().st_size < 5_000_000


PARENT = """
import os, sys, time
sys.path.insert(0, {pack!r})
from pathlib import Path
from tests.nodes.conftest import part
run, workers = part("nodes.run"), part("nodes.workers")
program = run.Program(argv=(sys.executable, {child!r}, "serve"), environment=os.environ, folder=Path({folder!r}))
workers.bench.put(workers.Worker(program), 10)
time.sleep(60)
"""


@pytest.mark.skipif(run.WINDOWS, reason="SIGKILL is POSIX's")
def test_a_killed_comfyui_leaves_no_worker(tmp_path: Path) -> None:
    child, notes = str(PACK / "tests" / "children" / "obliging.py"), tmp_path / "starts.txt"
    code = PARENT.format(pack=str(PACK), child=child, folder=str(tmp_path))
    environment = {**os.environ, "OBLIGING_STARTS": str(notes)}
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=PACK, env=environment)
    assert until(notes.exists)
    (worker,) = psutil.Process(parent.pid).children()
    parent.kill()
    parent.wait()
    assert until(lambda: not alive(worker.pid))
