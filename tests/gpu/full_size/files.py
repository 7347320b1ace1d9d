"""What the commands are given: checkpoints of random weights, and caches of random latents.

A checkpoint is written tensor by tensor, so that 26 GB need no main memory. The DiT and the VAE have the names and
shapes of public files (tests/layouts); text and image encoders are small ones of the width that the DiT wants, since
their time is not measured.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.data import cache
from engine.families.framepack import conditions, sections
from engine.families.wan import tiny as tiny_wan
from engine.parts.tiny_encoders import write_tiny_encoders
from engine.parts.weights import write_weights
from tests.layouts.checks import HERE, read_layout

Shapes = Mapping[str, tuple[int, ...]]
LATENT_CHANNELS = 16
WORDS = 120  # tokens of the caption
CAPTION = "a bar moves"


@dataclass(frozen=True)
class Model:
    """A model of the real size: its family, what names it on the command line, and the layouts of its files."""

    family: str
    dit: str
    vae: str
    task: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        return self.family.replace("_", "-")

    def part(self, name: str) -> Any:
        return importlib.import_module(f"engine.families.{self.family}.{name}")


MODELS = {
    "wan-1.3b": Model("wan", "wan21_t2v_1_3b", "wan21_vae", ("--task", "t2v-1.3B")),
    "wan-14b": Model("wan", "wan21_t2v_14b", "wan21_vae", ("--task", "t2v-14B")),
    "hunyuan-video-13b": Model("hunyuan_video", "hunyuanvideo_t2v_13b", "hunyuanvideo_vae_tencent"),
    "framepack": Model("framepack", "framepack_i2v_hy", "hunyuanvideo_vae_tencent"),
}


# ------------------------------------------------------------------------------------------------------ checkpoints


def write_models(model: Model, folder: Path, *, tiny: bool, device: str) -> dict[str, Path]:
    """All files that a generation needs, by option. `tiny`: the family's small models."""
    folder.mkdir(parents=True, exist_ok=True)
    small = model.part("tiny").write_tiny_models(folder)
    small.pop("tokenizer", None)  # found beside the text encoder
    if tiny:
        built = model.part("model").build(model.part("tiny").DIT_CONFIG)
        shapes = {name: tuple(value.shape) for name, value in built.state_dict().items()}
        write_random(small["dit"], shapes, device=device, metadata=tiny_metadata(model))
        return small
    for option, layout in (("dit", model.dit), ("vae", model.vae)):
        small[option] = folder / f"{layout}.safetensors"
        write_random(small[option], read_layout(HERE / f"{layout}.json.gz"), device=device)
    return small | wide_encoders(model, folder, config_of(model, small["dit"]))


def tiny_metadata(model: Model) -> dict[str, str]:
    return {"head_dim": str(model.part("tiny").DIT_CONFIG.head_dim)}


def config_of(model: Model, dit: Path) -> Any:
    """The sizes of a DiT, read off its file."""
    from engine.parts.weights import open_weights

    file = open_weights(dit, role="--dit")
    return model.part("detect").detect(file.shapes, file.metadata).config


def wide_encoders(model: Model, folder: Path, config: Any) -> dict[str, Path]:
    """Text and image encoders of few layers, as wide as the DiT wants them."""
    if model.family == "wan":
        path = folder / "t5.safetensors"
        write_weights(path, tiny_wan.text_tensors(1, rows=tiny_wan.VOCABULARY, width=config.text_dim))
        return {"t5": path}
    return write_tiny_encoders(
        folder, seed=1, text_width=config.text_dim, pooled_width=config.pooled_dim,
        image_width=getattr(config, "image_dim", None),
    )  # fmt: skip


def write_random(path: Path, shapes: Shapes, *, device: str, metadata: Mapping[str, str] | None = None) -> None:
    """A safetensors file of bf16 weights at the scale of trained ones, made on `device` one tensor at a time."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    torch.manual_seed(1)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            value = random_weight(name, shape, device=device).to(torch.bfloat16).cpu()
            value.contiguous().view(torch.int16).numpy().tofile(file)


def random_weight(name: str, shape: tuple[int, ...], *, device: str) -> Tensor:
    """Norms are 1, biases 0, matrices keep the size of what they multiply."""
    if name.endswith("bias"):
        return torch.zeros(shape, device=device)
    if len(shape) == 1 or name.endswith("gamma"):
        return torch.ones(shape, device=device)
    return torch.randn(shape, device=device) * (torch.Size(shape[1:]).numel() or 1) ** -0.5


# ----------------------------------------------------------------------------------------------------------- caches


def write_dataset(model: Model, folder: Path, config: Any, *, size: tuple[int, int], frames: int, window: int) -> Path:
    """A dataset file with the caches of one clip (FramePack: of its first section) and its caption; no clip is needed.

    `size` is (height, width) in pixels, `window` latent frames in a FramePack section.
    """
    options, clips, caches = model.part("options"), folder / "clips", folder / "cache"
    clips.mkdir(parents=True, exist_ok=True)
    caches.mkdir(exist_ok=True)
    height, width = size
    stem, section = f"clip_00000-{frames:03d}", "-0000" if model.family == "framepack" else ""
    latent_size = (height // 8, width // 8)
    torch.manual_seed(2)
    cache.write_latents(
        caches / f"{stem}{section}_{width:04d}x{height:04d}_{options.ARCHITECTURE}.safetensors",
        LATENTS[model.family](latent_size, (frames - 1) // 4 + 1, window, config),
        architecture=options.ARCHITECTURE_FULL,
        width=width,
        height=height,
        frame_count=frames,
    )
    cache.write_text(
        caches / f"clip_{options.ARCHITECTURE}_te.safetensors",
        TEXTS[model.family](config),
        architecture=options.ARCHITECTURE_FULL,
        caption=CAPTION,
    )
    file = folder / "dataset.toml"
    file.write_text(
        f'[general]\nresolution = [{width}, {height}]\ncaption_extension = ".txt"\n[[datasets]]\n'
        f'video_directory = "{clips.as_posix()}"\ncache_directory = "{caches.as_posix()}"\n'
        f"target_frames = [{frames}]\nfp_latent_window_size = {window}\n"
    )
    return file


def _clip(dtype: torch.dtype) -> Callable[..., dict[str, Tensor]]:
    def tensors(size: tuple[int, int], latent_frames: int, window: int, config: Any) -> dict[str, Tensor]:
        return {"latents": torch.randn(LATENT_CHANNELS, latent_frames, *size).to(dtype)}

    return tensors


def _section(size: tuple[int, int], latent_frames: int, window: int, config: Any) -> dict[str, Tensor]:
    def noise(frames: int) -> Tensor:
        return torch.randn(LATENT_CHANNELS, frames, *size).half()

    layout = sections.plain_layout(0, window=window)
    beside = conditions.history_tensors(noise(1), noise(sections.HISTORY_FRAMES), layout, f1=False)
    seen = torch.randn(729, config.image_dim).half()
    return {"latents": noise(window), **beside, conditions.IMAGE_STATES: seen}


def _wan_text(config: Any) -> dict[str, Tensor]:
    return {"varlen_t5": 0.1 * torch.randn(WORDS, config.text_dim).bfloat16()}


def _hunyuan_text(config: Any) -> dict[str, Tensor]:
    return {
        "llm": torch.randn(256, config.text_dim).half(), "llm_mask": (torch.arange(256) < WORDS).long(),
        "clipL": torch.randn(config.pooled_dim).half(), "clipL_mask": (torch.arange(77) < WORDS).long(),
    }  # fmt: skip


def _framepack_text(config: Any) -> dict[str, Tensor]:
    return {
        "llama_vec": torch.randn(512, config.text_dim).half(), "llama_attention_mask": torch.arange(512) < WORDS,
        "clip_l_pooler": torch.randn(config.pooled_dim).half(),
    }  # fmt: skip


LATENTS: dict[str, Callable[..., dict[str, Tensor]]] = {
    "wan": _clip(torch.bfloat16), "hunyuan_video": _clip(torch.float16), "framepack": _section,
}  # fmt: skip
TEXTS: dict[str, Callable[[Any], dict[str, Tensor]]] = {
    "wan": _wan_text, "hunyuan_video": _hunyuan_text, "framepack": _framepack_text,
}  # fmt: skip
