"""Training the pocket VAE: frames to latents and back, by plain reconstruction.

Loss: absolute and squared error of the pixels, absolute error of the differences between neighbours in space and time
(edges and motion), and a light pull of the posterior towards a standard normal, which keeps the latents smooth enough
for a DiT. The latents' mean and deviation are measured afterwards and go into the file. `decoder_only` goes on with the
decoder alone, for as long as one likes, while a DiT learns the latents, which stay as they are. Given up: perceptual
and adversarial losses, which drawn clips do not need.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from engine.families.wan import vae as wan_vae
from engine.parts.causal_conv import lay_channels_last

from .data import Clips
from .latents import to_pixels
from .lesson import Lesson
from .optimizers import Optimizers
from .pace import Average, Pace, load_state, save_state, say
from .pocket_wan import LATENT_CHANNELS
from .shelf import Shelf
from .together import Together
from .whole_clip import WholeClip, activation, mixed_precision

COMPILED = ("nothing", "norms", "all")
"""What of the VAE is compiled: `norms` takes seconds, `all` one or two minutes."""


class Network(Protocol):
    """A VAE on whole clips, with gradients."""

    def encode(self, clip_BCFHW: Tensor, /) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the posterior."""

    def decode(self, latents_BCTHW: Tensor, /) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A family's VAE: its network on whole clips, with norms compiled or not; the engine's `encode` and `decode`.

    `encoding`: the modules that come before the latents. `is_inner`: a convolution between others, by its name: not
    what turns pixels or latents into channels or back.
    """

    whole: Callable[[Any, bool], Network]
    encode: Callable[[Any, Tensor], Tensor]
    decode: Callable[[Any, Tensor], Tensor]
    encoding: tuple[str, ...]
    is_inner: Callable[[str, Tensor], bool]


def _wan_whole(vae: wan_vae.WanVae, compiled: bool) -> WholeClip:
    return WholeClip(vae, activate=activation(compiled, vae.device))


def _is_inner(name: str, weight: Tensor) -> bool:
    first_or_last = name in ("encoder.conv1.weight", "conv1.weight", "conv2.weight") or ".head.2." in name
    return weight.ndim >= 3 and not name.endswith("gamma") and not first_or_last


WAN = Kind(
    whole=_wan_whole,
    encode=wan_vae.encode,
    decode=wan_vae.decode,
    encoding=("encoder", "conv1"),
    is_inner=_is_inner,
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """`absolute`, `squares`, `edges`, `pull`: weights of the loss's parts. `muon`: see optimizers.py."""

    batch: int = 8
    rate: float = 4e-3
    warm_up_steps: int = 200
    absolute: float = 0.2
    squares: float = 20.0
    edges: float = 0.1
    pull: float = 3e-4
    decay: float = 0.9995
    muon: bool = True
    decoder_only: bool = False
    compiled: str = "norms"
    recorded: bool = True

    @property
    def name(self) -> str:
        """Of the stage."""
        return "decoder" if self.decoder_only else "vae"


def state_name(recipe: Recipe) -> str:
    """The file that an interrupted training goes on from."""
    return f"{recipe.name}_state.pt"


def psnr(square_error: float) -> float:
    """Peak signal-to-noise ratio in dB, from the mean squared error of values in -1..1."""
    return float(10.0 * np.log10(4.0 / max(square_error, 1e-12)))


def losses(network: Network, clip_BCFHW: Tensor, noise_BCTHW: Tensor, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """What one batch costs, and the mean squared error of its pixels. The posterior is sampled with the noise."""
    with torch.set_grad_enabled(not recipe.decoder_only):
        mean, log_variance = (part.float() for part in network.encode(clip_BCFHW))
        log_variance = log_variance.clamp(-20.0, 10.0)
        pull = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).mean()
        latents_BCTHW = mean + (0.5 * log_variance).exp() * noise_BCTHW
    error = network.decode(latents_BCTHW).float() - clip_BCFHW
    square = error.square().mean()
    edges = sum(error.diff(dim=axis).abs().mean() for axis in (2, 3, 4) if error.shape[axis] > 1)
    total = recipe.absolute * error.abs().mean() + recipe.squares * square + recipe.edges * edges + recipe.pull * pull
    return total, square


def train(
    clips: Clips,
    vae: Any,
    *,
    recipe: Recipe,
    folder: Path,
    minutes: float,
    device: torch.device,
    on_save: Callable[[Any], None],
    together: Together,
    seed: int = 1,
    kind: Kind = WAN,
) -> None:
    """Train `vae` (on the CPU) for what is left of `minutes`.

    Batches are drawn from those clips that are ready at the moment. Every three minutes and at the end the state is
    saved to `folder`, and `on_save` gets a VAE with the averaged weights. A state in `folder` is gone on from.
    """
    vae = vae.to(device)
    if device.type == "cuda":
        lay_channels_last(vae)
    if recipe.decoder_only:
        for name in kind.encoding:
            vae.get_submodule(name).requires_grad_(False)
    optimizers = Optimizers(
        vae, by_muon=lambda name, weight: recipe.muon and kind.is_inner(name, weight), weight_decay=0.0
    )
    average = Average(vae.parameters(), decay=recipe.decay)
    pace = _pace(folder / state_name(recipe), recipe, minutes, vae, optimizers, average, together)
    lesson = Lesson(
        _work(vae, recipe, device, kind), optimizers.weights, recorded=recipe.recorded and device.type == "cuda"
    )
    clips.wait_for(4 * recipe.batch, say=say)
    shelf, seen = Shelf(clips, device), torch.Generator(device).manual_seed(seed + pace.steps + 1000 * together.number)
    frames, height, width = clips.frames_NFHWC.shape[1:4]
    noise_shape = (recipe.batch, LATENT_CHANNELS, (frames + 3) // 4, height // 8, width // 8)
    for step in pace.running():
        shelf.fill()
        picked = shelf.draw(recipe.batch, generator=seen)
        total, square = lesson(picked, torch.randn(noise_shape, generator=seen, device=device))
        together.average_gradients(optimizers.weights)
        optimizers.step(pace.rate(recipe.rate, warm_up_steps=recipe.warm_up_steps))
        average.follow(step)
        speed = pace.time_to_tell() if together.leads else None
        if speed is not None:
            words = f"loss {total.item():.4f}  psnr {psnr(square.item()):5.2f} dB  {speed * recipe.batch:.0f} clips/s"
            pace.tell(speed, f"{words}{'  recorded' if lesson.recorded else ''}  of {shelf.held:,} drawn")
        if together.leads and pace.time_to_save():
            _save(folder, recipe, pace, vae, optimizers, average)
            on_save(average_of(vae, average))
    if together.leads:
        _save(folder, recipe, pace, vae, optimizers, average)
        on_save(average_of(vae, average))


def _work(vae: Any, recipe: Recipe, device: torch.device, kind: Kind) -> Callable[[Tensor, Tensor], tuple[Tensor, ...]]:
    """Losses of clips as they are drawn."""
    network = kind.whole(vae, recipe.compiled == "norms")

    def work(clips_BFHWC: Tensor, noise_BCTHW: Tensor) -> tuple[Tensor, Tensor]:
        with mixed_precision(device):
            return losses(network, to_pixels(clips_BFHWC), noise_BCTHW, recipe)

    return torch.compile(work, dynamic=False) if recipe.compiled == "all" else work


def _pace(
    path: Path,
    recipe: Recipe,
    minutes: float,
    vae: torch.nn.Module,
    optimizers: Optimizers,
    average: Average,
    together: Together,
) -> Pace:
    """The clock, from where the state in `path` stands, whose weights are taken over."""
    saved: dict[str, Any] | None = load_state(path, device=vae.device)
    if saved is None:
        return Pace(recipe.name, minutes, agree=together.agree)
    vae.load_state_dict(saved["vae"])
    optimizers.load_state_dict(saved["optimizers"])
    average.load(saved["average"])
    say(f"{recipe.name}  goes on from step {saved['steps']}, after {saved['spent_s']:.0f} s")
    return Pace(recipe.name, minutes, spent_s=saved["spent_s"], steps=saved["steps"], agree=together.agree)


def _save(
    folder: Path, recipe: Recipe, pace: Pace, vae: torch.nn.Module, optimizers: Optimizers, average: Average
) -> None:
    state = {"vae": vae.state_dict(), "optimizers": optimizers.state_dict(), "average": average.values}
    save_state(folder / state_name(recipe), {**state, "spent_s": pace.spent_s, "steps": pace.steps})


def named(module: torch.nn.Module, average: Average) -> dict[str, Tensor]:
    """The averaged weights by the names of the module's parameters."""
    return dict(zip((name for name, _ in module.named_parameters()), average.values, strict=True))


def average_of(vae: Any, average: Average) -> Any:
    """A VAE with the averaged weights, float32."""
    made = copy.deepcopy(vae).requires_grad_(False)
    made.load_state_dict(named(vae, average))
    return made.eval()


def measure(vae: Any, clips_NFHWC: np.ndarray, *, batch: int = 32, kind: Kind = WAN) -> float:
    """PSNR in dB of the engine's own encoding and decoding, over all pixels of the clips."""
    squares = []
    for start in range(0, len(clips_NFHWC), batch):
        clip_BCFHW = to_pixels(torch.from_numpy(clips_NFHWC[start : start + batch]))
        made_BCFHW = kind.decode(vae, kind.encode(vae, clip_BCFHW))
        squares.append((made_BCFHW - clip_BCFHW).square().mean(dim=(1, 2, 3, 4)))
    return psnr(float(torch.cat(squares).mean()))
