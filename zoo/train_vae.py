"""Training the pocket VAE: frames to latents and back, by plain reconstruction.

Loss: absolute and squared error of the pixels, absolute error of the differences between neighbours in space and time
(edges and motion), and a light pull of the posterior towards a standard normal, which keeps the latents smooth enough
for a DiT. The latents' mean and deviation are measured afterwards and go into the file. Given up: perceptual and
adversarial losses, which drawn clips do not need.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.families.wan import vae as wan_vae
from engine.parts.causal_conv import lay_channels_last

from . import pocket_wan
from .data import Clips
from .pace import Average, Pace, load_state, save_state, say
from .whole_clip import WholeClip, norm_silu

STATE_NAME = "vae_state.pt"
_COMPILED_SHAPES = 64


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """`edges`, `squares`, `pull`: weights of the loss's parts beside the absolute error of the pixels."""

    batch: int = 32
    rate: float = 2e-3
    warm_up_steps: int = 100
    squares: float = 4.0
    edges: float = 0.5
    pull: float = 3e-4
    decay: float = 0.998


@dataclass(frozen=True)
class Losses:
    """Scalars of one batch; `psnr` in dB of pixels in -1..1."""

    total: Tensor
    square: Tensor

    @property
    def psnr(self) -> float:
        return psnr(float(self.square))


def psnr(square_error: float) -> float:
    """Peak signal-to-noise ratio in dB, from the mean squared error of values in -1..1."""
    return float(10.0 * np.log10(4.0 / max(square_error, 1e-12)))


def to_pixels(clips_BFHWC: Tensor) -> Tensor:
    """uint8 clips as they are drawn to clip_BCFHW, RGB in -1..1 float32, channels last."""
    return clips_BFHWC.permute(0, 4, 1, 2, 3).float() / 127.5 - 1.0


def losses(network: WholeClip, clip_BCFHW: Tensor, recipe: Recipe, *, generator: torch.Generator) -> Losses:
    """What one batch costs. The posterior is sampled once, with noise from `generator` (on the clip's device)."""
    mean, log_variance = (part.float() for part in network.encode(clip_BCFHW))
    log_variance = log_variance.clamp(-20.0, 10.0)
    noise = torch.randn(mean.shape, generator=generator, device=mean.device)
    error = network.decode(mean + (0.5 * log_variance).exp() * noise).float() - clip_BCFHW
    square = error.square().mean()
    edges = sum(error.diff(dim=axis).abs().mean() for axis in (2, 3, 4) if error.shape[axis] > 1)
    pull = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).mean()
    total = error.abs().mean() + recipe.squares * square + recipe.edges * edges + recipe.pull * pull
    return Losses(total, square.detach())


def train(
    clips: Clips,
    *,
    sizes: pocket_wan.Sizes,
    recipe: Recipe,
    folder: Path,
    minutes: float,
    device: torch.device,
    compiled: bool,
    on_save: Callable[[wan_vae.WanVae], None],
    first: wan_vae.WanVae | None = None,
    seed: int = 1,
) -> None:
    """Train for what is left of `minutes`, from `first` or from random weights.

    Batches are drawn from those clips that are ready at the moment. Once a minute and at the end the state is saved to
    `folder`, and `on_save` gets a VAE with the averaged weights. A state in `folder` is gone on from.
    """
    torch.manual_seed(seed)
    vae = (first or pocket_wan.new_vae(sizes)).to(device)
    if device.type == "cuda":
        lay_channels_last(vae)
    network = WholeClip(vae, activate=activation(compiled, device))
    optimizer = torch.optim.AdamW(
        vae.parameters(), lr=recipe.rate, betas=(0.9, 0.99), weight_decay=0.0, fused=device.type == "cuda"
    )
    average = Average(vae.parameters(), decay=recipe.decay)
    saved = load_state(folder / STATE_NAME, device=device)
    pace = Pace("vae", minutes) if saved is None else _resumed(saved, minutes, vae, optimizer, average)
    generator = torch.Generator(device).manual_seed(seed + pace.steps)
    rows = np.random.default_rng(seed + pace.steps)
    clips.wait_for(4 * recipe.batch, say=say)
    for step in pace.running():
        for group in optimizer.param_groups:
            group["lr"] = pace.rate(recipe.rate, warm_up_steps=recipe.warm_up_steps)
        clip_BCFHW = _flipped(to_pixels(_batch(clips, rows, recipe.batch, device)), rows)
        with mixed_precision(device):
            found = losses(network, clip_BCFHW, recipe, generator=generator)
        optimizer.zero_grad(set_to_none=True)
        found.total.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        average.follow(step)
        speed = pace.time_to_tell()
        if speed is not None:
            words = f"loss {found.total.item():.4f}  psnr {found.psnr:5.2f} dB  {speed * recipe.batch:.0f} clips/s"
            pace.tell(speed, f"{words}  of {clips.ready():,} drawn")
        if pace.time_to_save():
            _save(folder, pace, vae, optimizer, average)
            on_save(average_of(vae, average, sizes))
    _save(folder, pace, vae, optimizer, average)
    on_save(average_of(vae, average, sizes))


def _resumed(
    saved: dict[str, Any], minutes: float, vae: torch.nn.Module, optimizer: torch.optim.Optimizer, average: Average
) -> Pace:
    vae.load_state_dict(saved["vae"])
    optimizer.load_state_dict(saved["optimizer"])
    average.load(saved["average"])
    say(f"vae  goes on from step {saved['steps']}, after {saved['spent_s']:.0f} s")
    return Pace("vae", minutes, spent_s=saved["spent_s"], steps=saved["steps"])


def _save(folder: Path, pace: Pace, vae: torch.nn.Module, optimizer: torch.optim.Optimizer, average: Average) -> None:
    state = {"vae": vae.state_dict(), "optimizer": optimizer.state_dict(), "average": average.values}
    save_state(folder / STATE_NAME, {**state, "spent_s": pace.spent_s, "steps": pace.steps})


def _batch(clips: Clips, rows: np.random.Generator, size: int, device: torch.device) -> Tensor:
    picked = torch.from_numpy(clips.frames_NFHWC[rows.integers(clips.ready(), size=size)])
    return picked.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else picked


def _flipped(clip_BCFHW: Tensor, rows: np.random.Generator) -> Tensor:
    """The batch mirrored or run backwards, by chance: as good as other clips."""
    axes = [axis for axis in (2, 3, 4) if rows.random() < 0.5]
    return clip_BCFHW.flip(axes) if axes else clip_BCFHW


def activation(compiled: bool, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """`norm_silu`, as one kernel where PyTorch can compile it here."""
    if not compiled:
        return norm_silu
    torch._dynamo.config.cache_size_limit = _COMPILED_SHAPES
    made = torch.compile(norm_silu, dynamic=False)
    try:
        probe = torch.ones(1, 8, 2, 4, 4, device=device, requires_grad=True)
        made(probe, torch.ones(8, 1, 1, 1, device=device, requires_grad=True)).sum().backward()
    except Exception as error:  # compilers fail in many ways, and the results are the same without one
        warnings.warn(f"PyTorch cannot compile here, so training is slower: {error}", stacklevel=2)
        return norm_silu
    return made


def mixed_precision(device: torch.device) -> AbstractContextManager:
    """bfloat16 products on a GPU; float32 on a CPU, where it is faster."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")


def named(module: torch.nn.Module, average: Average) -> dict[str, Tensor]:
    """The averaged weights by the names of the module's parameters."""
    return dict(zip((name for name, _ in module.named_parameters()), average.values, strict=True))


def average_of(vae: wan_vae.WanVae, average: Average, sizes: pocket_wan.Sizes) -> wan_vae.WanVae:
    """A VAE as the engine uses it, with the averaged weights in the type that it computes in."""
    made = pocket_wan.new_vae(sizes)
    made.load_state_dict(named(vae, average))
    made = made.to(vae.device, wan_vae.compute_dtype(vae.device)).eval().requires_grad_(False)
    if made.device.type == "cuda":
        lay_channels_last(made)
    return made


def measure(vae: wan_vae.WanVae, clips_NFHWC: np.ndarray, *, batch: int = 32) -> float:
    """PSNR in dB of the engine's own encoding and decoding, over all pixels of the clips."""
    squares = []
    for start in range(0, len(clips_NFHWC), batch):
        clip_BCFHW = to_pixels(torch.from_numpy(clips_NFHWC[start : start + batch]))
        made_BCFHW = wan_vae.decode(vae, wan_vae.encode(vae, clip_BCFHW))
        squares.append((made_BCFHW - clip_BCFHW).square().mean(dim=(1, 2, 3, 4)))
    return psnr(float(torch.cat(squares).mean()))


@torch.no_grad()
def encode_all(vae: wan_vae.WanVae, clips: Clips, count: int, *, batch: int = 256) -> Tensor:
    """Latents of the first clips as the engine's `encode` makes them, bf16 on the VAE's device, [N, C, T, H, W].

    Whole clips at once: the engine's chunks are for clips that do not fit, and of many small ones they take far longer.
    """
    network, (mean_1C111, inverse_std_1C111) = WholeClip(vae.float()), vae.tables()
    pace = Pace("encode", 60.0)
    parts = []
    for start in range(0, count, batch):
        picked = torch.from_numpy(clips.frames_NFHWC[start : min(start + batch, count)]).to(vae.device)
        with mixed_precision(vae.device):
            mean_BCTHW, _ = network.encode(to_pixels(picked))
        parts.append(((mean_BCTHW.float() - mean_1C111) * inverse_std_1C111).bfloat16())
        pace.steps += 1
        speed = pace.time_to_tell()
        if speed is not None:
            pace.tell(speed, f"{start + len(picked):,} of {count:,} clips")
    return torch.cat(parts)


def tables(vae: wan_vae.WanVae, clips: Clips, *, count: int = 2048) -> tuple[list[float], list[float]]:
    """Mean and deviation of each latent channel over the first clips, of a VAE that does not normalise yet."""
    total = encode_all(vae, clips, min(count, clips.ready())).float()
    mean, std = total.mean(dim=(0, 2, 3, 4)), total.std(dim=(0, 2, 3, 4))
    return [round(float(value), 5) for value in mean], [round(max(float(value), 1e-3), 5) for value in std]
