"""MagCache in FramePack: how caches come and go with sections, and musubi-tuner's flags for it on a command line.

What a step cache does to the DiT is tested for all families (tests/families/test_step_caches.py).
"""

from __future__ import annotations

import json
import re

import torch

from engine.families.framepack import sample
from engine.parts.step_caching import StepCacheSettings

from .pieces import CPU, Denoiser, request, words
from .test_sample import inputs as pictures

ON = {"method": "magcache", "numbers": ((1.0, 1.0),), "threshold": 0.24, "start": 0.2, "most_in_a_row": 6}


class Caching(Denoiser):
    """A `denoise` that notes which caches it is asked for, and which one a prediction goes through."""

    def __init__(self):
        super().__init__()
        self.caches: list[tuple[str, list]] = []

    def step_cache(self, settings, *, label):
        assert settings == StepCacheSettings(**ON)
        used: list[int] = []
        self.caches.append((label, used))
        return lambda stack: used.append(1) or stack.run()

    def __call__(self, conditional, unconditional, noise_BCTHW, **options):
        for ask in (conditional, unconditional, conditional):
            ask(noise_BCTHW, torch.tensor([500.0]))
        return super().__call__(conditional, unconditional, noise_BCTHW, **options)


def test_every_section_and_each_of_its_two_predictions_has_a_cache_of_its_own(paths):
    """The reference counts conditional and unconditional predictions together, and keeps one residual for both."""
    from engine.families.framepack.model import load

    asked = request(guidance=2.0, negative_prompt="blurry", step_cache=ON)
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
    assert sum("onditional: MagCache: the blocks were left out in 2 of 4 steps" in message for message in told) == 2
