"""What the commands are given: checkpoints of random weights in the layouts of public files, and caches of random
latents.

A checkpoint is written piece by piece, so that 28 GB need no main memory. DiT and VAE are as large as the published
ones; text and image encoders are small ones of the width that the DiT wants, since their time is not measured.
"""

from __future__ import annotations

import json
import math
import shutil
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..contract.events import Meter, Say
from ..contract.files import whole_file, write_text
from ..data import cache
from ..families import part
from ..families.values import BenchModel, BenchSize
from ..media.latents import save_latent
from ..media.writing import write_video
from ..parts.weight_headers import read_headers
from .cases import Case

Shapes = Mapping[str, tuple[int, ...]]
Options = dict[str, dict[str, Any]]
"""By verb the files that its command is given, by option."""

POOL = 8_388_593  # numbers; a prime, so that no two rows of a matrix are alike
CAPTION = "a bar moves"
MIB = 1 << 20
TINY = {"height": 48, "width": 64, "frames": 9}
TINY_WINDOW = 2  # latent frames
SEED = 1


# ------------------------------------------------------------------------------------------------------ checkpoints


class Models:
    """The model files of one case at a time in `folder`; made anew when another case needs others."""

    def __init__(self, folder: Path, *, tiny: bool, say: Say):
        self.folder, self.tiny, self._say = folder, tiny, say
        self._made: tuple[str, str] | None = None
        self._options: Options = {}

    def of(self, case: Case) -> Options:
        """The files of a case's commands. DiT and encoders are there for a case with a model, the VAE always."""
        wanted = (case.family, case.model.name if case.model and not self.tiny else "")
        if wanted != self._made:
            self.remove()
            self.folder.mkdir(parents=True)
            make = self._make_tiny if self.tiny else self._make
            self._options, self._made = make(case), wanted
        return self._options

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self._made = None

    def _make_tiny(self, case: Case) -> Options:
        tiny = part(case.family, "tiny")
        tiny.write_tiny_models(self.folder)
        options: Options = tiny.tiny_model_options(self.folder)
        return options

    def _make(self, case: Case) -> Options:
        family, vae = part(case.family, "bench"), self.folder / "vae.safetensors"
        encoded = {"cache-latents": {"vae": str(vae)}}
        self._write(vae, family.VAE.shapes())
        if case.model is None:
            return {**encoded, "generate": {"vae": str(vae)}}
        dit = self.folder / "dit.safetensors"
        built = part(case.family, "model").build(case.model.config)
        self._write(dit, {name: tuple(value.shape) for name, value in built.state_dict().items()})
        encoders = {name: str(path) for name, path in family.write_encoders(self.folder, case.model.config).items()}
        return {
            **encoded, "train": {"dit": str(dit)}, "generate": {"dit": str(dit), "vae": str(vae), **encoders},
        }  # fmt: skip

    def _write(self, path: Path, shapes: Shapes) -> None:
        size = 2 * sum(map(math.prod, shapes.values()))
        meter = Meter(self._say, total=size // MIB, unit="MiB", label=f"writing {path.name}")
        written = 0
        for count in write_random(path, shapes):
            meter.advance((written + count) // MIB - written // MIB)
            written += count
        meter.close()


def write_random(path: Path, shapes: Shapes) -> Iterator[int]:
    """Write a safetensors file of bf16 weights at the scale of trained ones; yields the bytes of each piece."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    pool = torch.randn(POOL, generator=torch.Generator().manual_seed(SEED)).bfloat16()
    with whole_file(path, durable=False) as temporary, open(temporary, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            for piece in weight_pieces(name, shape, pool):
                file.write(piece.view(torch.int16).numpy().data)
                yield piece.nbytes


def weight_pieces(name: str, shape: tuple[int, ...], pool: Tensor) -> Iterator[Tensor]:
    """The numbers of one weight, row by row, in pieces: `pool` from a place on that follows from the name.

    Norms are 1, biases 0, matrices keep the size of what they multiply.
    """
    count, length = math.prod(shape), len(pool)
    if name.endswith("bias") or len(shape) <= 1 or name.endswith("gamma"):
        values = torch.full((min(count, length),), 0.0 if name.endswith("bias") else 1.0, dtype=torch.bfloat16)
    else:
        place = zlib.crc32(name.encode()) % length
        values = torch.cat([pool[place:], pool[:place]])[:count] * max(1, math.prod(shape[1:])) ** -0.5
    for start in range(0, count, length):
        yield values[: min(length, count - start)]


# ----------------------------------------------------------------------------------------------------------- caches


@dataclass(frozen=True)
class Input:
    """Sizes of what a command works on: those of the case, or tiny ones."""

    size: BenchSize
    window: int

    @classmethod
    def of(cls, case: Case, *, tiny: bool) -> Input:
        if tiny:
            return cls(BenchSize(**TINY, vram=case.size.vram, label=case.size.name), TINY_WINDOW)
        return cls(case.size, case.model.window if case.model else BenchModel.window)


def latent_size(family: str, size: BenchSize) -> tuple[int, int, int]:
    """(T, H, W) of what the family's VAE makes of a clip."""
    vae = part(family, "vae")
    return (size.frames - 1) // vae.TIME_STRIDE + 1, size.height // vae.SPACE_STRIDE, size.width // vae.SPACE_STRIDE


def write_dataset(family: str, folder: Path, given: Input) -> Path:
    """A dataset file for clips of one size, of which there are none; the paths of `clips` and `cache` beside it."""
    size, file = given.size, folder / "dataset.toml"
    clips, caches = folder / "clips", folder / "cache"
    for place in (clips, caches):
        place.mkdir(parents=True, exist_ok=True)
    write_text(
        file,
        f'[general]\nresolution = [{size.width}, {size.height}]\ncaption_extension = ".txt"\n[[datasets]]\n'
        f'video_directory = "{clips.as_posix()}"\ncache_directory = "{caches.as_posix()}"\n'
        f"target_frames = [{size.frames}]\nfp_latent_window_size = {given.window}\n",
    )
    return file


def write_videos(family: str, folder: Path, given: Input, *, count: int) -> None:
    """So many videos of one size, all alike, for the dataset of `write_dataset`: smooth colours that move."""
    size, draw = given.size, np.random.default_rng(SEED)
    coarse = draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    picture = np.asarray(Image.fromarray(coarse).resize((size.width, size.height), Image.Resampling.BICUBIC))
    first = folder / "clips" / "clip_000.mp4"
    frames = (np.ascontiguousarray(np.roll(picture, 4 * index, axis=1)) for index in range(size.frames))
    write_video(first, frames, fps=part(family, "options").NATIVE_FPS)
    for number in range(count):
        path = first.with_name(f"clip_{number:03d}.mp4")
        write_text(path.with_suffix(".txt"), CAPTION)
        if path != first:
            shutil.copy(first, path)


def write_caches(family: str, folder: Path, given: Input, config: Any) -> None:
    """The caches of one clip (or of its first section) and its caption, for the dataset of `write_dataset`."""
    bench, options, size = part(family, "bench"), part(family, "options"), given.size
    numbered = options.cut_clip(size.frames, window=given.window) is not None
    stem = f"clip_00000-{size.frames:03d}{'-0000' if numbered else ''}_{size.width:04d}x{size.height:04d}"
    torch.manual_seed(SEED)
    cache.write_latents(
        folder / "cache" / f"{stem}_{options.ARCHITECTURE}.safetensors",
        bench.latents(config, size_THW=latent_size(family, size), window=given.window),
        architecture=options.ARCHITECTURE_FULL,
        width=size.width,
        height=size.height,
        frame_count=size.frames,
    )
    cache.write_text(
        folder / "cache" / f"clip_{options.ARCHITECTURE}_te.safetensors",
        bench.caption(config),
        architecture=options.ARCHITECTURE_FULL,
        caption=CAPTION,
    )


# --------------------------------------------------------------------------------------------------------- commands


def command_line(verb: str, family: str, options: Mapping[str, Any], flags: tuple[str, ...]) -> list[str]:
    """Options by name and further flags, as they are typed; None leaves an option out."""
    words = [verb, family.replace("_", "-")]
    for name, value in options.items():
        values = value if isinstance(value, (list, tuple)) else (value,)
        words += [] if value is None else [f"--{name}", *map(str, values)]
    return [*words, *flags]


def config_of(family: str, dit: str) -> Any:
    """The sizes of a DiT, read off its file."""
    headers = read_headers(dit, role="--dit")
    return part(family, "detect").detect(headers.shapes, headers.metadata).config


def training_options(
    family: str, folder: Path, given: Input, config: Any, *, steps: int, on_gpu: bool
) -> dict[str, Any]:
    """What `train` is told: a dataset with caches of its own, LoRA of rank 32, AdamW."""
    dataset = write_dataset(family, folder, given)
    write_caches(family, folder, given, config)
    return {
        "dataset_config": dataset, "mixed_precision": "bf16" if on_gpu else "no", "network_dim": 32,
        "network_alpha": 32, "learning_rate": "1e-4", "timestep_sampling": "shift", "discrete_flow_shift": "3.0",
        "max_train_steps": steps, "seed": SEED, "output_dir": folder / "out",
    }  # fmt: skip


def generation_options(folder: Path, given: Input, *, steps: int) -> dict[str, Any]:
    """What `generate` is told: latents only, since decoding has cases of its own."""
    size = given.size
    return {
        "prompt": CAPTION, "video_size": (size.height, size.width), "video_length": size.frames, "infer_steps": steps,
        "seed": SEED, "output_type": "latent", "save_path": folder / "out",
    }  # fmt: skip


def decoding_options(family: str, folder: Path, given: Input) -> dict[str, Any]:
    """What `generate` is told to decode a latent of noise, which is written for it."""
    torch.manual_seed(SEED)
    latent_CTHW = torch.randn(part(family, "vae").LATENT_CHANNELS, *latent_size(family, given.size))
    return {"latent_path": save_latent(folder / "noise", latent_CTHW), "save_path": folder / "out"}
