"""`--memory auto`: planned before, once more with less after running out of memory, and no step lost."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file

from engine.__main__ import main
from engine.contract import cli
from engine.contract.errors import OutOfMemoryError
from engine.contract.events import Control, Plan, Warning_
from engine.contract.job import changed
from engine.memory.choosing import Limits
from engine.memory.estimate import CONTEXT, GIB, Stage
from engine.tasks import fitting, within_memory
from engine.training import micro_batch

OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 2.00 GiB."


@pytest.fixture
def on_a_gpu(monkeypatch):
    """As if there were one. A plan is: 8 blocks more than before are streamed; it fits up to 24 of them."""

    def plan(job, *, limits=None, survey=None):
        before = job.values()["blocks_to_swap"] or 0
        options = {"blocks_to_swap": before + 2}
        stage = Stage(name="denoising", device={"DiT weights": GIB}, main={})
        return fitting.Plan(
            asked=[stage], planned=[stage], job=changed(job, options), options=options, fits=before + 2 <= 4,
            limits=limits or Limits(card=12 * GIB), card=None,
        )  # fmt: skip

    monkeypatch.setattr(within_memory, "gpu", lambda job: torch.device("cpu"))
    monkeypatch.setattr(within_memory, "limit_memory", lambda device, limit: None)
    monkeypatch.setattr(within_memory, "plan", plan)
    monkeypatch.setattr(fitting, "plan", plan)


def job_of(*more):
    line = ["generate", "wan", "--dit", "d", "--vae", "v", "--t5", "t", "--prompt", "x", "--save_path", "s", *more]
    return cli.parse(line)


class Task:
    """Runs out of memory as often as it is told, and notes how many blocks were streamed each time."""

    def __init__(self, failures, error=None):
        self.failures, self.error, self.streamed = failures, error or torch.OutOfMemoryError(OUT_OF_MEMORY), []

    def __call__(self, job, say, control):
        self.streamed.append(job.values()["blocks_to_swap"])
        if len(self.streamed) <= self.failures:
            raise self.error
        return "done"


def run(task, *more):
    said = []
    return within_memory.within_memory(job_of(*more), said.append, Control(), task), said


@pytest.mark.usefixtures("on_a_gpu")
def test_the_plan_is_followed_and_said():
    task = Task(0)
    done, said = run(task, "--memory", "auto")
    assert done == "done" and task.streamed == [2]
    assert [event.options for event in said if isinstance(event, Plan)] == [{"blocks_to_swap": 2}]


@pytest.mark.usefixtures("on_a_gpu")
def test_once_more_with_less(monkeypatch):
    task, forgotten = Task(1), []
    monkeypatch.setattr(within_memory, "forget_peaks", lambda device: forgotten.append(len(task.streamed)))
    done, said = run(task, "--memory", "auto")
    assert done == "done" and task.streamed == [2, 4]
    assert forgotten == [1], "the peak that is told is that of the second attempt"
    (warning,) = [event.message for event in said if isinstance(event, Warning_)]
    assert OUT_OF_MEMORY in warning and "--blocks_to_swap 4" in warning


@pytest.mark.usefixtures("on_a_gpu")
def test_twice_is_enough():
    task = Task(2)
    with pytest.raises(OutOfMemoryError, match="out of memory") as caught:
        run(task, "--memory", "auto")
    assert task.streamed == [2, 4] and "Make it smaller" in caught.value.hint


@pytest.mark.usefixtures("on_a_gpu")
def test_without_it_nothing_is_changed_and_the_error_says_what_to_add():
    task = Task(1)
    with pytest.raises(OutOfMemoryError, match="Tried to allocate") as caught:
        run(task)
    assert task.streamed == [None] and "--blocks_to_swap 4" in caught.value.hint
    assert "--memory auto" in caught.value.hint and caught.value.exit_status == 3


@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize("processes", [1, 2])
def test_what_the_failed_job_has_taken_counts_as_free_in_the_advice(monkeypatch, processes):
    """Its tensors, and its scratch file, are there as long as the error that is explained."""
    asked, make = [], within_memory.plan
    found = Limits(card=GIB, main=2 * GIB, disk=3 * GIB)
    monkeypatch.setattr(within_memory, "limits_of", lambda job: (found, None))
    monkeypatch.setattr(within_memory, "scratch_held", lambda: 4 * GIB)
    monkeypatch.setattr(within_memory, "own_memory", lambda: 5 * GIB)
    monkeypatch.setattr(within_memory, "gpu", lambda job: torch.device("cuda", 0))
    monkeypatch.setattr(within_memory, "plan", lambda job, *, limits: asked.append(limits) or make(job, limits=limits))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 10 * GIB)
    if processes > 1:
        monkeypatch.setenv("LOCAL_RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", str(processes))
    with pytest.raises(OutOfMemoryError):
        run(Task(1))
    card, main, disk = 11 * GIB + CONTEXT, (2 + 5 * processes) * GIB, (3 + 4 * processes) * GIB
    assert asked == [Limits(card=card, main=main, disk=disk)]


@pytest.mark.usefixtures("on_a_gpu")
def test_the_advice_names_all_that_has_to_be_added(monkeypatch):
    """Of a job that nobody has planned also what the first plan would have added, not only what comes on top of it."""
    make = within_memory.plan

    def first(job, *, limits):
        made = make(job, limits=limits)
        return dataclasses.replace(made, options={"fp8_scaled": True, **made.options})

    monkeypatch.setattr(within_memory, "plan", first)
    with pytest.raises(OutOfMemoryError) as caught:
        run(Task(1))
    assert "Add --fp8_scaled --blocks_to_swap 4." in caught.value.hint


@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize("error", [OutOfMemoryError("Main memory has no room"), ValueError("something else")])
def test_other_errors_pass(error):
    with pytest.raises(type(error), match=str(error)):
        run(Task(1, error), "--memory", "auto")


@pytest.mark.usefixtures("on_a_gpu")
def test_several_processes_do_not_go_on_alone(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    task = Task(1)
    with pytest.raises(OutOfMemoryError):
        run(task, "--memory", "auto")
    assert len(task.streamed) == 1


def test_without_a_gpu_nothing_is_planned():
    task = Task(0)
    done, said = run(task, "--memory", "auto", "--vram", "1GB", "--device", "cpu")
    assert done == "done" and task.streamed == [None] and not said


@pytest.mark.usefixtures("on_a_gpu")
def test_a_training_goes_on_after_its_last_step(prepared, tmp_path, monkeypatch):
    """The third step runs out of memory once; the LoRA is that of a training in which nothing happened."""
    caching, training = prepared.steps[:2], next(step for step in prepared.steps if step.verb == "train")
    for step in caching:
        assert main([*step.command, "--job_dir", str(tmp_path / "caching" / step.verb)]) == 0

    def train(name, *more):
        out = tmp_path / name
        line = [*training.command, "--output_dir", out, "--logging_dir", out, "--max_train_steps", 5, *more]
        assert main([str(word) for word in line]) == 0
        return out

    whole = train("whole")
    real, calls = micro_batch.flow_error, []

    def once(*args, **values):
        calls.append(args)
        if len(calls) == 3:
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)
        return real(*args, **values)

    monkeypatch.setattr(micro_batch, "flow_error", once)
    broken = train("broken", "--memory", "auto", "--job_dir", tmp_path / "job")
    assert len(calls) == 6, "two steps, the one that failed, and the three that were left"
    first, second = (load_file(folder / "demo-lora.safetensors") for folder in (whole, broken))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    lines = [json.loads(line) for line in (tmp_path / "job" / "events.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if line["event"] == "metric" and "loss/current" in line["values"]]
    assert steps == [1, 2, 3, 4, 5] and [line["event"] for line in lines].count("plan") == 1


def test_a_plan_can_be_smaller(monkeypatch):
    asked = []
    monkeypatch.setattr(fitting, "plan", lambda job, *, limits: asked.append(limits))
    stage = Stage(name="denoising", device={"DiT weights": 8 * GIB}, main={})
    before = fitting.Plan(
        asked=[stage], planned=[stage], job=job_of(), options={}, fits=True, limits=Limits(card=24 * GIB), card=None
    )
    fitting.smaller(before)
    fitting.smaller(dataclasses.replace(before, limits=Limits(card=4 * GIB)))
    assert asked[0].card < 0.86 * before.needed and asked[1].card == int(0.85 * 4 * GIB)


@pytest.mark.usefixtures("on_a_gpu")
def test_what_stays_of_jobs_before_counts_as_free(monkeypatch):
    """Otherwise the second of two like jobs would be planned differently, and load its model anew."""
    found = Limits(card=12 * GIB, main=2 * GIB, disk=GIB)
    monkeypatch.setattr(within_memory, "limits_of", lambda job: (found, None))
    monkeypatch.setattr(within_memory, "scratch_held", lambda: 4 * GIB)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    limits = within_memory.limits_at_start(job_of(), 3 * GIB)
    assert limits == Limits(card=12 * GIB + CONTEXT, main=5 * GIB, disk=5 * GIB)
    assert within_memory.limits_at_start(job_of("--vram", "12GB"), 0).card == 12 * GIB
