from __future__ import annotations

import pytest
import torch

from engine.contract import cli
from engine.contract.options import AttentionMode, GenerationMemory, GenerationPrecision
from engine.ops import eight_bit_attention
from engine.tasks import optimized as module
from engine.tasks.denoiser import tune_backends
from engine.tasks.optimized import optimized, quick_weights


@pytest.fixture
def machine(monkeypatch):
    """Makes a GPU of this capability, with these packages."""

    def make(capability=(8, 9), *, packages=(), eight_bit=True, device="cuda"):
        monkeypatch.setattr("engine.ops.device.choose_device", lambda name: torch.device(device))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(eight_bit_attention, "missing", lambda device: None if eight_bit else "too old")
        monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: object() if name in packages else None)
        monkeypatch.setattr(module, "has_triton", lambda: "triton" in packages)

    return make


def parsed(*words):
    return cli.parse(
        [
            "generate",
            "wan",
            "--prompt",
            "a",
            "--save_path",
            "out",
            "--dit",
            "dit",
            "--output_type",
            "latent",
            "--t5",
            "t5",
            *words,
        ]
    )


def run(*words):
    said = []
    job = optimized(parsed(*words), said.append)
    return job, [event.message for event in said]


def test_all_that_the_machine_has(machine):
    machine(packages=("triton", "sageattention"))
    job, said = run("--optimized")
    memory = job[GenerationMemory]
    assert memory.compile and memory.fp16_accumulation and job[GenerationPrecision].weight_format == "fp8_scaled"
    assert job[AttentionMode].backend == "sageattn"
    assert said == ["--optimized: --fp8_scaled --compile --fp16_accumulation --attn_mode sageattn."]


@pytest.mark.parametrize(
    ("capability", "packages", "eight_bit", "backend"),
    [
        ((9, 0), ("triton", "sageattention"), True, "8bit"),
        ((8, 9), ("triton",), True, "8bit"),
        ((8, 6), ("triton", "sageattention"), False, "sageattn"),
        ((8, 6), ("triton",), False, "auto"),
    ],
)
def test_attention_is_what_was_measured_or_installed(machine, capability, packages, eight_bit, backend):
    machine(capability, packages=packages, eight_bit=eight_bit)
    assert run("--optimized")[0][AttentionMode].backend == backend


def test_what_the_job_sets_by_itself_stays(machine):
    machine(packages=("triton", "sageattention"))
    job, _ = run("--optimized", "--attn_mode", "torch", "--fp8")
    assert job[AttentionMode].backend == "torch" and job[GenerationPrecision].weight_format == "fp8"
    plain = parsed()
    assert optimized(plain, pytest.fail) is plain and quick_weights(plain) is plain


def test_without_triton_nothing_is_compiled_and_that_is_told(machine):
    machine(eight_bit=False)
    job, said = run("--optimized")
    assert not job[GenerationMemory].compile and "Triton" in said[-1]


def test_on_a_cpu_it_changes_nothing_and_says_so(machine):
    machine(device="cpu")
    job, said = run("--optimized")
    assert not job[GenerationMemory].compile and job[GenerationPrecision].weight_format == "stored"
    assert said == ["--optimized changes nothing on cpu: it is for GPUs."]


def test_the_planner_knows_the_weights(monkeypatch):
    monkeypatch.setattr(module, "has_triton", lambda: True)
    job = quick_weights(parsed("--optimized"))
    assert job[GenerationMemory].compile and job[GenerationPrecision].weight_format == "fp8_scaled"


@pytest.mark.parametrize("flag", [(), ("--fp16_accumulation",)])
def test_products_add_up_in_fp16_only_when_told(flag):
    before = torch.backends.cuda.matmul.allow_fp16_accumulation
    try:
        tune_backends(parsed(*flag)[GenerationMemory])
        assert torch.backends.cuda.matmul.allow_fp16_accumulation is bool(flag)
    finally:
        torch.backends.cuda.matmul.allow_fp16_accumulation = before
