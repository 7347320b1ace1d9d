"""fp8, block streaming, MagCache and converted LoRAs keep what the model shows: the judge's score within 2 points.

The score is the mean of three shares (colour, shape, motion), so each clip has three verdicts. Of Wan there are 64
clips, the first ones of the held-out captions: a verdict is 0.5 points, and three may be lost on balance. FramePack is
slower: there are 6, picked among those that it makes right in so few steps, a verdict is 5.6 points, and none may be
lost. That few show a fault, not what a setting costs: zoo/README.md has figures.

What is compared is the same clip made twice, so the mean difference of the pixels shows far smaller faults; its upper
limits are about half more than was measured. The lower ones show that the setting did anything at all.

Streaming and the naming of a LoRA change no number: there the latents are the same bit for bit, and 2 clips do.
"""

from __future__ import annotations

from pathlib import Path

import torch

from . import loras
from .conftest import Base
from .making import FRAMEPACK, WAN, Comparison, Made, latents_apart, make
from .settings import FP8_SCALED, MAGCACHE, STEPS, STREAMED, Setting

POINTS = 2.0
WAN_CLIPS, CACHED_CLIPS = tuple(range(64)), (37, 38, 39, 42, 43, 45)
SAME_CLIPS, SAME_STEPS = 2, 6
FP8_LEVELS, CACHE_LEVELS = (1.0, 4.5), (1.0, 7.5)


def beside(base: Made, setting: Setting, folder: Path) -> Comparison:
    return Comparison(base, make(folder, setting.pocket, *setting.flags, numbers=base.numbers, steps=STEPS))


def check(found: Comparison, levels: tuple[float, float]) -> None:
    least, most = levels
    assert found.lost["score"] <= POINTS, str(found)
    assert least <= found.levels <= most, str(found)


def test_scaled_fp8_shows_the_same(base: Base, tmp_path: Path) -> None:
    check(beside(base(WAN, WAN_CLIPS), FP8_SCALED, tmp_path / "fp8"), FP8_LEVELS)


def test_magcache_shows_the_same(base: Base, tmp_path: Path) -> None:
    check(beside(base(FRAMEPACK, CACHED_CLIPS), MAGCACHE, tmp_path / "cached"), CACHE_LEVELS)


def test_streamed_blocks_make_the_same_latents(tmp_path: Path) -> None:
    ways = {"kept": (), "streamed": STREAMED.flags}
    kept, streamed = (_undecoded(tmp_path / name, *flags) for name, flags in ways.items())
    assert torch.equal(kept.latents_NCTHW, streamed.latents_NCTHW), _apart(kept, streamed)


def test_a_lora_makes_the_same_latents_under_every_naming(tmp_path: Path) -> None:
    native = loras.write_random(tmp_path / "native.safetensors", alpha=loras.EXACT)
    expected = _undecoded(tmp_path / "native", "--lora_weight", native)
    plain = _undecoded(tmp_path / "plain")
    assert latents_apart(plain, expected) > 0.1, "the LoRA changes too little for a test"
    for name, path in loras.converted(native, tmp_path).items():
        found = _undecoded(tmp_path / name, "--lora_weight", path)
        assert torch.equal(expected.latents_NCTHW, found.latents_NCTHW), f"{name}: {_apart(expected, found)}"


def _undecoded(folder: Path, *flags: object) -> Made:
    return make(folder, WAN, *flags, numbers=range(SAME_CLIPS), steps=SAME_STEPS)


def _apart(one: Made, other: Made) -> str:
    return f"latents are {latents_apart(one, other):.4f} standard deviations apart in the mean"
