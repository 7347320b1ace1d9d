"""MagCache on FramePack's DiT: what a step that is left out gives, and how caches come and go with sections."""

from __future__ import annotations

import json
import re

import pytest
import torch

from engine.families.framepack import sample
from engine.families.framepack.model import blocks, velocity
from engine.memory.compile import compile_blocks
from engine.memory.streaming import stream_blocks
from engine.sampling.magcache import MagCache

from .pieces import CPU, Denoiser, request, words
from .test_sample import inputs as pictures
from .tiny import inputs, randomised

ON = {"ratios": (1.0, 1.0), "retention_ratio": 0.2, "threshold": 0.24, "most_in_a_row": 6, "calibrate": False}


def walk(dit, steps=3, *, cache=None):
    """Predictions of a few steps, each from another place."""
    x_BCTHW, timestep_B, cond = inputs(dit.config)
    with torch.no_grad():
        return [velocity(dit, x_BCTHW - step, timestep_B - step, cond, step_cache=cache) for step in range(steps)]


def test_steps_that_run_are_not_changed():
    dit = randomised()
    cached = walk(dit, cache=MagCache([False, True, False]))
    plain = walk(dit)
    for step in (0, 2):
        assert torch.allclose(cached[step], plain[step], atol=1e-6)
    assert not torch.allclose(cached[1], plain[1], atol=1e-3) and cached[1].shape == plain[1].shape


def test_a_step_that_is_left_out_runs_everything_but_the_blocks():
    dit, seen = randomised(), []
    for block in blocks(dit):
        block.register_forward_pre_hook(lambda *_: seen.append(1))
    x_BCTHW, timestep_B, cond = inputs(dit.config)
    cache = MagCache([False, True])
    with torch.no_grad():
        velocity(dit, x_BCTHW, timestep_B, cond, step_cache=cache)
        again = velocity(dit, x_BCTHW, timestep_B, cond, step_cache=cache)
    assert len(seen) == len(blocks(dit))
    assert torch.allclose(again, walk(dit, 1)[0], atol=1e-5)  # the same input: what the blocks add is the same


@pytest.mark.parametrize("how", ["streamed", "compiled"])
def test_streamed_and_compiled_blocks_give_the_same(how):
    dit, changed = randomised(), randomised()
    if how == "streamed":
        stream_blocks(blocks(changed), 3, device="cpu", slots=2)
    else:
        compile_blocks(blocks(changed), backend="eager")
    skipped = [False, True, False, True]
    made, wanted = walk(changed, 4, cache=MagCache(skipped)), walk(dit, 4, cache=MagCache(skipped))
    assert all(torch.allclose(ours, theirs, atol=1e-6) for ours, theirs in zip(made, wanted, strict=True))


class Caching(Denoiser):
    """A `denoise` that notes which caches it is asked for, and which one a prediction goes through."""

    def __init__(self):
        super().__init__()
        self.caches: list[tuple[str, list]] = []

    def step_cache(self, *, label, **settings):
        assert settings == ON
        used: list[int] = []
        self.caches.append((label, used))
        return lambda before, run: used.append(1) or run()

    def __call__(self, conditional, unconditional, noise_BCTHW, **options):
        for ask in (conditional, unconditional, conditional):
            ask(noise_BCTHW, torch.tensor([500.0]))
        return super().__call__(conditional, unconditional, noise_BCTHW, **options)


def test_every_section_and_each_of_its_two_predictions_has_a_cache_of_its_own(paths):
    """The reference counts conditional and unconditional predictions together, and keeps one residual for both."""
    from engine.families.framepack.model import load

    asked = request(guidance=2.0, negative_prompt="blurry", magcache=ON)
    denoiser = Caching()
    sample.video_latents(
        load(paths["dit"], task=None, device=CPU), asked, texts=words("a bar", "blurry"), inputs=pictures(),
        denoise=denoiser, device=CPU,
    )  # fmt: skip
    assert [label for label, _ in denoiser.caches] == ["conditional", "unconditional"] * 2
    assert [len(used) for _, used in denoiser.caches] == [2, 1, 2, 1]


SHORT = (
    "--prompt", "a bar", "--latent_window_size", 2, "--seed", 7, "--video_size", 48, 64, "--output_type", "latent",
    "--device", "cpu",
)  # fmt: skip


def test_through_the_front_door(paths, engine, tmp_path):
    models = [word for name, path in paths.items() for word in (f"--{name}", path)]

    def made(name, *more):
        places = ("--save_path", tmp_path / name, "--job_dir", tmp_path / f"{name} job")
        done = engine("generate", "framepack", *models, *SHORT, *places, *more)
        assert done.status == 0, done.err
        events = (tmp_path / f"{name} job" / "events.jsonl").read_text().splitlines()
        return [json.loads(line).get("message", "") for line in events]

    guided = ("--video_sections", 1, "--infer_steps", 4, "--guidance_scale", 2)
    told = made("calibrated", *guided, "--magcache_calibration")
    found = [re.search(r"(unc|c)onditional: --magcache_mag_ratios ([\d.,]+)", message) for message in told]
    measured = [match[2] for match in found if match]
    assert len(measured) == 2 and all(len(ratios.split(",")) == 4 for ratios in measured)
    cached = ("--magcache_mag_ratios", measured[0], "--magcache_retention_ratio", 0, "--magcache_threshold", 100)
    told = made("cached", *guided, *cached)
    assert sum("onditional: 2 of 4 steps are left out" in message for message in told) == 2
