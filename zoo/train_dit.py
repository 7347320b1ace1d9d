"""Training the pocket DiT together with its text encoder, on latents that lie in the GPU's memory.

Rectified flow as the engine trains it (engine/training/step.py). Both networks begin at random and learn from the same
loss; image-to-video begins with the text-to-video model and leaves the text encoder, which they share, as it is.
Captions are left out at times, so that guidance has something to guide away from: half of those as an empty text, half
as Wan's own negative prompt, whose signs the tokenizer does not know. Given up: preferring noise levels by their
loss, and any target but the velocity.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.families.wan import model as wan_model
from engine.families.wan import text as wan_text
from engine.families.wan.variants import NEGATIVE_PROMPT
from engine.memory.compile import compile_blocks
from engine.ops.sigmas import shift_sigma
from engine.parts.tokenizers import Tokenizer
from engine.training.step import flow_error

from . import pocket_wan
from .counted_text import CountedWan
from .data import padded_ids
from .lesson import Lesson
from .optimizers import Optimizers
from .pace import Average, Pace, load_state, save_state, say
from .together import Together
from .train_vae import named
from .whole_clip import mixed_precision

Weights = dict[str, Tensor]
_NEVER = torch.finfo(torch.float32).min


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """`shift`: of logit-normal noise levels; `even`: the share of levels that are drawn evenly instead.

    `dropped`: the share of captions that are left out.
    """

    batch: int = 256
    rate: float = 4e-3
    warm_up_steps: int = 500
    shift: float = 2.0
    even: float = 0.2
    dropped: float = 0.1
    decay: float = 0.9995
    muon: bool = True
    text_frozen: bool = False
    compiled: bool = True
    recorded: bool = True


@dataclass(frozen=True)
class Examples:
    """A training set on one device: latents_NCTHW, normalised, and ids_NKL, several captions each.

    first_NCTHW: what image-to-video gets beside the noise.
    """

    latents_NCTHW: Tensor
    ids_NKL: Tensor
    first_NCTHW: Tensor | None = None

    def draw(self, count: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Random latents, float32, and what they come about from: "ids", one of the captions of each, and "y"."""
        device = self.ids_NKL.device
        row_B = torch.randint(len(self.ids_NKL), (count,), device=device)
        number_B = torch.randint(self.ids_NKL.shape[1], (count,), device=device)
        cond = {"ids": self.ids_NKL[row_B, number_B].long()}
        if self.first_NCTHW is not None:
            cond["y"] = self.first_NCTHW[row_B].float()
        return self.latents_NCTHW[row_B].float(), cond


class Pocket(nn.Module):
    """DiT and text encoder as one network: noisy latents and token ids to velocity."""

    def __init__(self, dit: CountedWan, text: nn.Module) -> None:
        super().__init__()
        self.dit, self.text = dit, text

    def states(self, ids_BL: Tensor) -> Tensor:
        """What the text encoder makes of token ids; zeros where they are padded."""
        counts_BL = ids_BL != 0
        # as scores, not as a mask: whether a mask is needed at all would be asked of the GPU, and waited for
        scores_B11L = torch.zeros_like(ids_BL, dtype=torch.float32).masked_fill(~counts_BL, _NEVER)[:, None, None]
        return wan_text.encode_ids(self.text, ids_BL, scores_B11L) * counts_BL.unsqueeze(-1)

    def velocity(self, x_BCTHW: Tensor, timestep_B: Tensor, cond: dict[str, Any]) -> Tensor:
        return wan_model.velocity(self.dit, x_BCTHW, timestep_B, {**cond, "text": self.states(cond["ids"])})


def with_first_frames(pocket: Pocket) -> Pocket:
    """A text-to-video model as image-to-video, which looks at its first frames not at all until it learns to."""
    plain = pocket.dit
    channels = pocket_wan.FIRST_FRAME_CHANNELS
    dit = CountedWan(dataclasses.replace(plain.config, in_dim=plain.config.in_dim + channels))
    weights = plain.state_dict()
    narrow = weights["patch_embedding.weight"]
    added = narrow.new_zeros(len(narrow), channels, *narrow.shape[2:])
    dit.load_state_dict({**weights, "patch_embedding.weight": torch.cat([narrow, added], dim=1)})
    return Pocket(dit, pocket.text)


def new_pocket(sizes: pocket_wan.Sizes, tokenizer: Tokenizer) -> Pocket:
    """Both networks untrained, on the CPU."""
    rows = -(-tokenizer.size // 8) * 8
    return Pocket(pocket_wan.new_dit(sizes.dit), pocket_wan.new_text_encoder(sizes.text, rows=rows))


def without_captions(tokenizer: Tokenizer) -> Tensor:
    """Token ids of what stands in the place of a caption that is left out, [2, L]."""
    return torch.stack([torch.from_numpy(padded_ids(tokenizer, text)) for text in ("", NEGATIVE_PROMPT)]).long()


def draw_sigmas(count: int, recipe: Recipe, *, device: torch.device) -> Tensor:
    """Noise levels 0..1: logit-normal and shifted, a share of them even."""
    shifted_B = shift_sigma(torch.randn(count, device=device).sigmoid(), recipe.shift)
    even_B = torch.rand(count, device=device)
    return torch.where(torch.rand(count, device=device) < recipe.even, even_B, shifted_B)


def dropped(ids_BL: Tensor, nothing_NL: Tensor, *, share: float) -> Tensor:
    """Captions of which a share is replaced by one of `nothing_NL`."""
    count, device = len(ids_BL), ids_BL.device
    instead_BL = nothing_NL[torch.randint(len(nothing_NL), (count,), device=device)]
    return torch.where((torch.rand(count, device=device) < share)[:, None], instead_BL, ids_BL)


def loss(pocket: Pocket, examples: Examples, nothing_NL: Tensor, recipe: Recipe) -> Tensor:
    """The mean squared error of the velocity of one random batch."""
    latents_BCTHW, cond = examples.draw(recipe.batch)
    sigma_B = draw_sigmas(recipe.batch, recipe, device=latents_BCTHW.device)
    error = flow_error(
        pocket.velocity,
        latents_BCTHW,
        {**cond, "ids": dropped(cond["ids"], nothing_NL, share=recipe.dropped)},
        sigma_B=sigma_B,
        timestep_B=1000.0 * sigma_B,
        noise_BCTHW=torch.randn_like(latents_BCTHW),
    )
    return error.mean()


def train(
    examples: Examples,
    nothing_NL: Tensor,
    pocket: Pocket,
    *,
    name: str,
    recipe: Recipe,
    folder: Path,
    minutes: float,
    device: torch.device,
    on_save: Callable[[Weights, Weights], None],
    together: Together,
    seed: int = 2,
    cost: Callable[[Any, Any, Tensor, Recipe], Tensor] = loss,
) -> None:
    """Train `pocket` (on the CPU) for what is left of `minutes`. `name`: of the stage and its state.

    `nothing_NL`: token ids that stand in the place of captions left out. `cost`: of a batch.

    Every three minutes and at the end the state is saved to `folder`, and `on_save` gets the averaged weights of DiT
    and text encoder. A state in `folder` is gone on from.
    """
    pocket = pocket.to(device)
    pocket.text.requires_grad_(not recipe.text_frozen)
    optimizers = Optimizers(
        pocket, by_muon=lambda name, weight: recipe.muon and _is_inner(name, weight), weight_decay=0.01
    )
    average = Average(pocket.parameters(), decay=recipe.decay)
    pace = _pace(folder / state_name(name), name, minutes, pocket, optimizers, average, together)
    torch.manual_seed(seed + pace.steps + 1000 * together.number)
    nothing_NL = nothing_NL.to(device)
    if recipe.compiled:
        compile_blocks(pocket.dit.blocks, dynamic=False)

    def work() -> tuple[Tensor]:
        with mixed_precision(device):
            return (cost(pocket, examples, nothing_NL, recipe),)

    lesson = Lesson(work, optimizers.weights, recorded=recipe.recorded and device.type == "cuda")
    recent: Tensor | None = None
    for step in pace.running():
        (found,) = lesson()
        together.average_gradients(optimizers.weights)
        optimizers.step(pace.rate(recipe.rate, warm_up_steps=recipe.warm_up_steps))
        average.follow(step)
        recent = found.clone() if recent is None else recent.lerp(found, 0.02)
        speed = pace.time_to_tell() if together.leads else None
        if speed is not None:
            words = f"loss {float(recent):.4f}  {speed * recipe.batch:,.0f} clips/s"
            pace.tell(speed, f"{words}{'  recorded' if lesson.recorded else ''}")
        if together.leads and pace.time_to_save():
            _save(folder / state_name(name), pace, pocket, optimizers, average)
            on_save(*parts(named(pocket, average)))
    if together.leads:
        _save(folder / state_name(name), pace, pocket, optimizers, average)
        on_save(*parts(named(pocket, average)))


def state_name(stage: str) -> str:
    """The file that an interrupted training goes on from."""
    return f"{stage}_state.pt"


def parts(weights: Weights) -> tuple[Weights, Weights]:
    """Weights of a `Pocket` as those of its DiT and its text encoder, by their own names."""
    dit, text = (
        {name.removeprefix(start): value for name, value in weights.items() if name.startswith(start)}
        for start in ("dit.", "text.")
    )
    return dit, text


def _is_inner(name: str, weight: Tensor) -> bool:
    """A matrix of a block: not a table, nor what turns latents, time or text into tokens, modulation or back."""
    tables = ("relative_attention_bias.weight", "mod.linear.weight", "modulation.linear.weight", "norm.linear.weight")
    return weight.ndim == 2 and ("block" in name or ".layers." in name) and not name.endswith(tables)


def _pace(
    path: Path,
    name: str,
    minutes: float,
    pocket: Pocket,
    optimizers: Optimizers,
    average: Average,
    together: Together,
) -> Pace:
    """The clock, from where the state in `path` stands, whose weights are taken over."""
    saved: dict[str, Any] | None = load_state(path, device=average.values[0].device)
    if saved is None:
        return Pace(name, minutes, agree=together.agree)
    pocket.load_state_dict(saved["pocket"])
    optimizers.load_state_dict(saved["optimizers"])
    average.load(saved["average"])
    say(f"{name}  goes on from step {saved['steps']}, after {saved['spent_s']:.0f} s")
    return Pace(name, minutes, spent_s=saved["spent_s"], steps=saved["steps"], agree=together.agree)


def _save(path: Path, pace: Pace, pocket: Pocket, optimizers: Optimizers, average: Average) -> None:
    state = {"pocket": pocket.state_dict(), "optimizers": optimizers.state_dict(), "average": average.values}
    save_state(path, {**state, "spent_s": pace.spent_s, "steps": pace.steps})
