"""The same clips made in different ways, all by the ordinary `generate` command, and what the judge says of them.

Prompts are captions of held-out scenes, the seed of a clip is its number: what differs between two ways is what the
command was told besides. Torch works with one thread: small models are hardly faster with two, and many times slower
where another program wants the second core. Knows no setting.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.__main__ import main
from engine.demo.kits import POCKET
from engine.families import part
from engine.media.latents import SUFFIX, load_latent
from engine.media.writing import write_png
from zoo import scenes
from zoo.captions import read_caption
from zoo.data import HELD_OUT_SEED
from zoo.generating import to_frames
from zoo.judge import Verdict, judge, shares
from zoo.pocket_wan import FRAMES, SIZE

FACTS = ("colour", "shape", "motion")
DECODED = 8  # clips at once


@dataclass(frozen=True)
class Pocket:
    """A pocket model: its family, and the options that it generates well with. `starts`: it begins with a picture."""

    family: str
    options: dict[str, Any] = field(default_factory=dict)
    starts: bool = False

    @property
    def files(self) -> dict[str, str]:
        """Model files by their options."""
        return part(self.family, "pocket").pocket_model_options(POCKET)["generate"]


WAN = Pocket("wan", {"video_length": FRAMES, "flow_shift": 3, "guidance_scale": 3})
FRAMEPACK = Pocket("framepack", {"video_sections": 2, "guidance_scale": 4}, starts=True)


@dataclass(frozen=True)
class Made:
    """Clips made in one way: their numbers, captions and latents."""

    pocket: Pocket
    numbers: tuple[int, ...]
    captions: tuple[str, ...]
    latents_NCTHW: Tensor

    def only(self, numbers: tuple[int, ...]) -> Made:
        """Those of these numbers."""
        places = [self.numbers.index(number) for number in numbers]
        captions = tuple(self.captions[place] for place in places)
        return Made(self.pocket, numbers, captions, self.latents_NCTHW[places])

    @cached_property
    def clips_NFHWC(self) -> np.ndarray:
        """Decoded, uint8."""
        vae, device = part(self.pocket.family, "vae"), torch.device("cpu")
        decoder = vae.load(self.pocket.files["vae"], device=device, dtype=vae.compute_dtype(device))
        parts = self.latents_NCTHW.float().split(DECODED)
        return np.concatenate([to_frames(vae.decode(decoder, part)) for part in parts])

    @cached_property
    def verdicts(self) -> list[Verdict]:
        pairs = zip(self.clips_NFHWC, self.captions, strict=True)
        return [judge(clip, read_caption(caption)) for clip, caption in pairs]

    @property
    def points(self) -> dict[str, float]:
        """The share of clips that show each fact, 0..100, and `score`, the mean of the three."""
        found = shares(self.verdicts)
        points = {fact: 100 * found[fact] for fact in FACTS}
        return {**points, "score": sum(points.values()) / len(points)}

    @property
    def wrong(self) -> list[int]:
        """The numbers of the clips that lack something."""
        return [number for number, said in zip(self.numbers, self.verdicts, strict=True) if not said.all]


@dataclass(frozen=True)
class Comparison:
    """Clips made in a way beside the same ones made in the ordinary way."""

    base: Made
    other: Made

    @property
    def lost(self) -> dict[str, float]:
        """Points that each fact and the score have lost; below 0: gained."""
        other = self.other.points
        return {name: points - other[name] for name, points in self.base.points.items()}

    @property
    def levels(self) -> float:
        """Mean difference of the pixels, in levels of 255."""
        return float(np.abs(self.base.clips_NFHWC.astype(np.float32) - self.other.clips_NFHWC).mean())

    @property
    def changed(self) -> int:
        """Verdicts that are no longer the same, of three for each clip."""
        pairs = zip(self.base.verdicts, self.other.verdicts, strict=True)
        return sum(getattr(one, fact) != getattr(two, fact) for one, two in pairs for fact in FACTS)

    def __str__(self) -> str:
        base, other = self.base.points, self.other.points
        told = ", ".join(f"{name} {base[name]:.1f} -> {other[name]:.1f}" for name in base)
        return (
            f"{told}; {self.changed} of {3 * len(self.other.captions)} verdicts changed, "
            f"clips differ by {self.levels:.2f} levels of 255"
        )


def latents_apart(one: Made, other: Made) -> float:
    """Mean difference of the latents, in units of their standard deviation."""
    return float((one.latents_NCTHW - other.latents_NCTHW).abs().mean() / one.latents_NCTHW.std())


def make(folder: Path, pocket: Pocket, *flags: object, numbers: Iterable[int], steps: int) -> Made:
    """The clips of these numbers by one run of `generate` with these flags more, in `folder`, which is new.

    RuntimeError when the command fails; it has said why.
    """
    folder.mkdir(parents=True)
    numbers = tuple(numbers)
    found = [scenes.random_scene(HELD_OUT_SEED + number, split="held_out") for number in numbers]
    captions = tuple(
        scenes.caption(scene, seed=HELD_OUT_SEED + number) for number, scene in zip(numbers, found, strict=True)
    )
    lines = [f"{caption} --d {number}" for number, caption in zip(numbers, captions, strict=True)]
    if pocket.starts:
        for index, scene in enumerate(found):
            lines[index] += f" --i {write_png(folder / 'starts' / f'{index}.png', scenes.render(scene)[0])}"
    prompts = folder / "prompts.txt"
    prompts.write_text("\n".join(lines) + "\n", encoding="utf-8")
    told = {
        **pocket.files, **pocket.options, "video_size": (SIZE, SIZE), "infer_steps": steps, "negative_prompt": "",
        "from_file": prompts, "save_path": folder, "output_type": "latent",
    }  # fmt: skip
    run("generate", pocket.family, *_flags(told), "--cpu_noise", *flags)
    read = [load_latent(path) for path in folder.glob(f"*{SUFFIX}")]
    latents = {int(said["seeds"]): latent_CTHW for latent_CTHW, said in read}
    return Made(pocket, numbers, captions, torch.stack([latents[number] for number in numbers]))


def _flags(told: dict[str, Any]) -> Iterator[object]:
    for name, value in told.items():
        yield from (f"--{name}", *(value if isinstance(value, tuple | list) else (value,)))


def run(*words: object) -> None:
    """One engine command in this process. RuntimeError when it fails."""
    told = [str(word) for word in words]
    status = main(told)
    if status:
        raise RuntimeError(f"status {status} of: {' '.join(told)}")


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch works with one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
