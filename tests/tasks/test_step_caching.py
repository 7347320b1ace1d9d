"""Step caches through the front door: every family and method, calibration, errors, and with all that changes a DiT."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engine.families.wan import tiny as wan
from tests.tasks.conftest import FAMILIES
from tests.tasks.test_generate import write_lora

SMALL = (
    "--video_size", 48, 64, "--infer_steps", 6, "--device", "cpu", "--output_type", "latent", "--prompt", "a bar",
    "--seed", 1, "--cpu_noise",
)  # fmt: skip
EAGER = ("--step_cache_threshold", 1000, "--step_cache_start", 0, "--step_cache_max_skips", 2)
"""Runs steps 0, 3 and 5 of 6."""
METHODS = {
    "magcache": ("--step_cache_ratios", "1,0.9,0.8"),
    "teacache": ("--step_cache_coefficients", "0.1,0"),
    "first_block": (),
}
GUIDED = ("--guidance_scale", 3, "--negative_prompt", "blurry")


@pytest.fixture
def made(models, engine, tmp_path):
    """The latents of a family's small model under more flags, and the log."""
    count = iter(range(100))

    def run(family: str, *words: object) -> tuple[torch.Tensor, list[str]]:
        folder = tmp_path / str(next(count))
        out = ("--save_path", folder / "out", "--job_dir", folder / "job")
        result = engine("generate", family.replace("_", "-"), *models[family], *SMALL, *out, *words)
        assert result.status == 0, result.err
        (path,) = (folder / "out").glob("*_latent.safetensors")
        return load_file(path)["latent"], messages(folder / "job")

    return run


def messages(job: Path) -> list[str]:
    events = (job / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line).get("message", "") for line in events]


def left_out(told: list[str]) -> dict[str, tuple[int, int]]:
    """(steps left out, of how many) by what was predicted."""
    lines = (re.search(r"([\w ]+): [\w\- ]+: the blocks were left out in (\d+) of (\d+) steps", line) for line in told)
    return {found[1].strip(): (int(found[2]), int(found[3])) for found in lines if found}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_method_works_in_every_family(family, method, made):
    words = ("--step_cache", method, *METHODS[method], *EAGER, *GUIDED)
    latents, told = made(family, *words)
    both = {"both predictions": (3, 6)}
    apart = {"conditional": (3, 6), "unconditional": (3, 6)}
    assert left_out(told) == (both if family == "hunyuan_video" else apart)
    plain, told = made(family, *GUIDED)
    assert not left_out(told) and not torch.equal(latents, plain) and torch.isfinite(latents).all()


def test_both_predictions_may_be_asked_apart(made):
    _, told = made("hunyuan_video", "--step_cache", "first_block", *EAGER, *GUIDED, "--split_uncond")
    assert left_out(told) == {"conditional": (3, 6), "unconditional": (3, 6)}


def test_a_threshold_of_zero_changes_no_number(made):
    """Every step runs, and a cache does nothing to those."""
    plain, _ = made("wan", *GUIDED)
    latents, told = made("wan", "--step_cache", "first_block", "--step_cache_threshold", 0, *GUIDED)
    assert torch.equal(latents, plain) and left_out(told)["conditional"] == (0, 6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("how", [("--blocks_to_swap", 1), ("--compile", "--compile_backend", "eager")], ids=str)
def test_how_blocks_are_arranged_changes_no_number(how, method, made):
    words = ("--step_cache", method, *METHODS[method], *EAGER, *GUIDED)
    (wanted, _), (found, told) = made("wan", *words), made("wan", *words, *how)
    assert left_out(told)["unconditional"] == (3, 6) and torch.allclose(found, wanted, atol=2e-2)


def test_with_fp8_and_a_lora(made, tmp_path):
    width = wan.DIT_CONFIG.dim
    lora = write_lora(tmp_path / "lora.safetensors", {"blocks_0_self_attn_q": (width, width)})
    words = ("--step_cache", "first_block", *EAGER, "--fp8_scaled", "--lora_weight", lora)
    latents, told = made("wan", *words, *GUIDED)
    assert left_out(told)["conditional"] == (3, 6) and torch.isfinite(latents).all()


def test_guidance_that_is_left_out_begins_anew(made):
    """The unconditional prediction is asked for in every other step: none of these follows another."""
    some = ("--cfg_skip_mode", "alternate", "--cfg_apply_ratio", 0.5)
    _, told = made("wan", "--step_cache", "first_block", *EAGER, *GUIDED, *some)
    assert left_out(told) == {"conditional": (3, 6), "unconditional": (0, 3)}


@pytest.mark.parametrize("method", ["magcache", "teacache"])
def test_what_calibration_prints_is_what_the_method_takes(method, made):
    calibrated, told = made("wan", "--step_cache", method, "--step_cache_calibrate", *GUIDED)
    assert torch.equal(calibrated, made("wan", *GUIDED)[0])  # nothing is left out
    flag = METHODS[method][0]
    (numbers,) = {found[1] for line in told if (found := re.search(rf" conditional: {flag} (\S+)", line))}
    _, told = made("wan", "--step_cache", method, f"{flag}={numbers}", *EAGER, *GUIDED)
    assert left_out(told)["conditional"] == (3, 6)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_without_numbers_is_refused_before_anything_is_loaded(family, models, engine, tmp_path):
    words = ("generate", family.replace("_", "-"), *models[family], *SMALL, "--save_path", tmp_path)
    result = engine(*words, "--step_cache", "teacache")
    assert result.status == 2 and "--step_cache_calibrate" in result.err and "Loading" not in result.err


def test_a_new_expert_begins_anew(engine, tmp_path):
    """At shift 12 the sigmas are 1, .984, .96, .923, .857, .706: the second expert takes over in step 4, which would be
    left out otherwise."""
    wan.write_tiny_models(tmp_path / "models", variant="t2v-A14B")
    options = wan.tiny_model_options(tmp_path / "models", variant="t2v-A14B")["generate"]
    models = [word for name, value in options.items() for word in (f"--{name}", value)]
    caching = ("--step_cache", "magcache", "--step_cache_ratios", "1,0.9;1,0.9", *EAGER, "--sample_solver", "euler")
    out = ("--save_path", tmp_path / "out", "--job_dir", tmp_path / "job", "--video_length", 5)
    result = engine("generate", "wan", *models, *SMALL, *GUIDED, *out, *caching)
    assert result.status == 0, result.err
    assert left_out(messages(tmp_path / "job")) == {"conditional": (2, 6), "unconditional": (2, 6)}
