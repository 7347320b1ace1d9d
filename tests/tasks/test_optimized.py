from __future__ import annotations

import contextlib

import pytest
import torch

from engine.contract import cli
from engine.contract.options import AttentionMode, GenerationMemory, GenerationPrecision
from engine.ops import eight_bit_attention
from engine.tasks import generate, plan
from engine.tasks import optimized as module
from engine.tasks.denoiser import tune_backends
from engine.tasks.optimized import optimized, possible


@pytest.fixture
def machine(monkeypatch):
    """Makes a GPU of this capability, with Triton or without."""

    def make(capability=(8, 9), *, triton=True, eight_bit=True, device="cuda"):
        monkeypatch.setattr("engine.ops.device.choose_device", lambda name: torch.device(device))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(eight_bit_attention, "missing", lambda device: None if eight_bit else "no compiler")
        monkeypatch.setattr(module, "has_triton", lambda: triton)

    return make


class _Seen(Exception):
    pass


def parsed(*words, verb=("generate",)):
    files = ("--dit", "dit", "--t5", "t5", "--save_path", "out", "--output_type", "latent")
    return cli.parse([*verb, "wan", "--prompt", "a", *files, *words])


def run(*words):
    said, asked = [], parsed(*words)
    job = possible(asked, optimized(asked), said.append)
    return job, [event.message for event in said]


def facts(job):
    return job[GenerationPrecision].weight_format, job[GenerationMemory].compile, job[AttentionMode].backend


def test_all_that_the_machine_has(machine):
    machine()
    job, said = run("--optimized")
    assert facts(job) == ("fp8_scaled", True, "8bit") and job[GenerationMemory].fp16_accumulation
    assert said == ["--optimized: --fp8_scaled --compile --attn_mode 8bit --fp16_accumulation."]


def test_an_older_gpu_has_no_attention_in_8_bits(machine):
    machine((8, 6), eight_bit=False)
    job, said = run("--optimized")
    assert facts(job) == ("fp8_scaled", True, "auto") and len(said) == 1


def test_where_triton_compiles_nothing_here_nothing_is_compiled(machine):
    machine(eight_bit=False)
    job, said = run("--optimized")
    assert facts(job) == ("fp8_scaled", False, "auto") and "no compiler" in said[0]
    assert facts(run("--optimized", "--compile")[0])[1], "who asks for it hears of it"


def test_without_triton_nothing_is_compiled_and_that_is_told(machine):
    machine(triton=False, eight_bit=False)
    job, said = run("--optimized")
    assert facts(job) == ("fp8_scaled", False, "auto") and "Triton" in said[0]


def test_what_the_job_sets_by_itself_stays(machine):
    machine()
    assert facts(run("--optimized", "--attn_mode", "torch", "--fp8")[0]) == ("fp8", True, "torch")
    plain = parsed()
    assert optimized(plain) is plain and possible(plain, plain, pytest.fail) is plain


def test_on_a_cpu_it_changes_nothing_and_says_so(machine):
    machine(device="cpu")
    job, said = run("--optimized")
    assert facts(job) == facts(parsed()) and not job[GenerationMemory].fp16_accumulation
    assert said == ["--optimized changes nothing on cpu: it is for GPUs."]


def test_a_generation_and_its_plan_know_it(machine, monkeypatch):
    """Through the commands themselves, as far as the task and the plan."""
    machine()
    seen = []

    def survey(job):
        seen.append(facts(job))
        raise _Seen

    monkeypatch.setattr(generate, "within_memory", lambda job, say, control, task, held: task(job, say, control))
    monkeypatch.setattr(generate, "_generate", lambda job, *_, kept: seen.append(facts(job)))
    generate.run(parsed("--optimized"), lambda event: None, None)
    monkeypatch.setattr(plan, "Survey", survey)
    with contextlib.suppress(_Seen):
        plan.run(parsed("--optimized", verb=("plan", "generate")), lambda event: None, None)
    assert seen == [("fp8_scaled", True, "8bit")] * 2


@pytest.mark.parametrize("flag", [(), ("--fp16_accumulation",)])
def test_products_add_up_in_fp16_only_when_told(flag):
    before = torch.backends.cuda.matmul.allow_fp16_accumulation
    try:
        tune_backends(parsed(*flag)[GenerationMemory])
        assert torch.backends.cuda.matmul.allow_fp16_accumulation is bool(flag)
    finally:
        torch.backends.cuda.matmul.allow_fp16_accumulation = before
