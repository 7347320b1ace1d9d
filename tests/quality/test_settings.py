"""fp8, 8-bit attention, streaming and converted LoRAs keep what the model shows: the judge's score within 2 points.

The score is the mean of three shares (colour, shape, motion), so each clip has three verdicts. There are 64 clips, the
first ones of the held-out captions: a verdict is 0.5 points, and three may be lost on balance. 8-bit attention is slow
on a CPU and has 16, of which none may be lost. Step caches have a guard of their own, test_step_caches.py.

What is compared is the same clip made twice, so the mean difference of the pixels shows far smaller faults; its upper
limits are about half more than was measured. The lower ones show that the setting did anything at all.

Streaming and the naming of a LoRA change no number: there the latents are the same bit for bit, and 2 clips do.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from engine.__main__ import main
from engine.memory import fp8
from engine.ops import eight_bit_attention
from zoo.generating import generate
from zoo.pocket_wan import FRAMES, SIZE, TEXT_NAME
from zoo.try_lora import write_float32

from . import loras
from .conftest import Base
from .faulty_fp8 import FP8_FAULTS
from .making import WAN, Comparison, Made, latents_apart, make
from .settings import EIGHT_BIT, FP8_SCALED, STEPS, STREAMED, Setting

POINTS = 2.0
WAN_CLIPS, FEWER_CLIPS = tuple(range(64)), tuple(range(16))
SAME_CLIPS, SAME_STEPS = 2, 6
FP8_LEVELS = (1.0, 4.5)
EIGHT_BIT_LEVELS = (0.5, 3.0)


def beside(base: Made, setting: Setting, folder: Path) -> Comparison:
    return Comparison(base, make(folder, setting.pocket, *setting.flags, numbers=base.numbers, steps=STEPS))


def check(found: Comparison, levels: tuple[float, float]) -> None:
    least, most = levels
    assert found.lost["score"] <= POINTS, str(found)
    assert least <= found.levels <= most, str(found)


def test_scaled_fp8_shows_the_same(base: Base, tmp_path: Path) -> None:
    check(beside(base(WAN, WAN_CLIPS), FP8_SCALED, tmp_path / "fp8"), FP8_LEVELS)


@pytest.mark.parametrize("fault", FP8_FAULTS)
def test_the_guard_of_scaled_fp8_tells_a_fault(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(fp8, "quantize", FP8_FAULTS[fault])
    found = beside(base(WAN, FEWER_CLIPS), FP8_SCALED, tmp_path / "fp8")
    assert found.levels > FP8_LEVELS[1], str(found)


def test_attention_in_8_bits_shows_the_same(base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its formula, which takes its time, for the few tokens of a pocket model too, and to its text."""
    monkeypatch.setattr(eight_bit_attention, "SHORTEST", 1)
    check(beside(base(WAN, FEWER_CLIPS), EIGHT_BIT, tmp_path / "8bit"), EIGHT_BIT_LEVELS)


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


def test_a_lora_beside_the_weights_makes_the_clip_of_one_merged_into_them(tmp_path: Path) -> None:
    """In float32; weights in bfloat16 are rounded once more when something is merged into them."""
    lora = loras.write_random(tmp_path / "lora.safetensors", alpha=loras.EXACT)
    shutil.copy(WAN.files["t5"], tmp_path / TEXT_NAME)
    base, merged = write_float32(Path(WAN.files["dit"]), tmp_path / "base.safetensors"), tmp_path / "merged.safetensors"
    words = {"--lora_weight": lora, "--dit": base, "--save_merged_model": merged}
    assert main(["lora", "merge", *(str(word) for pair in words.items() for word in pair)]) == 0
    beside, into, without = (
        generate(
            dit, ["a red circle moves left"], lora=given, size=SIZE, frames=FRAMES, device=torch.device("cpu"),
            steps=SAME_STEPS,
        )
        for dit, given in ((base, lora), (merged, None), (base, None))
    )  # fmt: skip
    assert (beside - into).abs().max() < 1e-3 < 0.1 < (beside - without).abs().max()


def _undecoded(folder: Path, *flags: object) -> Made:
    return make(folder, WAN, *flags, numbers=range(SAME_CLIPS), steps=SAME_STEPS)


def _apart(one: Made, other: Made) -> str:
    return f"latents are {latents_apart(one, other):.4f} standard deviations apart in the mean"
