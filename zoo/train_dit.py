"""Training the pocket DiT together with its text encoder, on latents that lie in the GPU's memory.

Rectified flow as the engine trains it (engine/training/step.py). Both networks begin at random and learn from the same
loss; captions are left out at times, so that guidance has something to guide away from: half of those as an empty text,
half as Wan's own negative prompt, whose signs the tokenizer does not know. Given up: preferring noise levels by their
loss, and any target but the velocity.
"""

from __future__ import annotations

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
from .pace import Average, Pace, load_state, save_state, say
from .train_vae import mixed_precision, named

STATE_NAME = "dit_state.pt"
Weights = dict[str, Tensor]
_NEVER = torch.finfo(torch.float32).min


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """`shift`: of logit-normal noise levels; `even`: the share of levels that are drawn evenly instead.

    `dropped`: the share of captions that are left out.
    """

    batch: int = 512
    rate: float = 1.5e-3
    warm_up_steps: int = 300
    shift: float = 2.0
    even: float = 0.2
    dropped: float = 0.1
    decay: float = 0.999


@dataclass(frozen=True)
class Examples:
    """A training set on one device: latents_NCTHW, normalised, and ids_NKL, several captions each."""

    latents_NCTHW: Tensor
    ids_NKL: Tensor

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Random latents, float32, and one of the captions of each."""
        device = self.ids_NKL.device
        row_B = torch.randint(len(self.ids_NKL), (count,), device=device)
        number_B = torch.randint(self.ids_NKL.shape[1], (count,), device=device)
        return self.latents_NCTHW[row_B].float(), self.ids_NKL[row_B, number_B].long()


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
    latents_BCTHW, ids_BL = examples.draw(recipe.batch)
    sigma_B = draw_sigmas(recipe.batch, recipe, device=ids_BL.device)
    error = flow_error(
        pocket.velocity,
        latents_BCTHW,
        {"ids": dropped(ids_BL, nothing_NL, share=recipe.dropped)},
        sigma_B=sigma_B,
        timestep_B=1000.0 * sigma_B,
        noise_BCTHW=torch.randn_like(latents_BCTHW),
    )
    return error.mean()


def train(
    examples: Examples,
    tokenizer: Tokenizer,
    *,
    sizes: pocket_wan.Sizes,
    recipe: Recipe,
    folder: Path,
    minutes: float,
    device: torch.device,
    compiled: bool,
    on_save: Callable[[Weights, Weights], None],
    first: Pocket | None = None,
    seed: int = 2,
) -> None:
    """Train for what is left of `minutes`, from `first` or from random weights.

    Once a minute and at the end the state is saved to `folder`, and `on_save` gets the averaged weights of the DiT and
    of the text encoder. A state in `folder` is gone on from.
    """
    torch.manual_seed(seed)
    pocket = (first or new_pocket(sizes, tokenizer)).to(device)
    optimizer = torch.optim.AdamW(_groups(pocket), lr=recipe.rate, betas=(0.9, 0.99), fused=device.type == "cuda")
    average = Average(pocket.parameters(), decay=recipe.decay)
    saved = load_state(folder / STATE_NAME, device=device)
    pace = Pace("dit", minutes) if saved is None else _resumed(saved, minutes, pocket, optimizer, average)
    torch.manual_seed(seed + pace.steps)
    nothing_NL = without_captions(tokenizer).to(device)
    if compiled:
        compile_blocks(pocket.dit.blocks, dynamic=False)
    recent = torch.zeros((), device=device)
    for step in pace.running():
        for group in optimizer.param_groups:
            group["lr"] = pace.rate(recipe.rate, warm_up_steps=recipe.warm_up_steps)
        with mixed_precision(device):
            found = loss(pocket, examples, nothing_NL, recipe)
        optimizer.zero_grad(set_to_none=True)
        found.backward()
        nn.utils.clip_grad_norm_(pocket.parameters(), 1.0)
        optimizer.step()
        average.follow(step)
        recent = found.detach() if step == 0 else recent.lerp(found.detach(), 0.02)
        speed = pace.time_to_tell()
        if speed is not None:
            pace.tell(speed, f"loss {float(recent):.4f}  {speed * recipe.batch:,.0f} clips/s")
        if pace.time_to_save():
            _save(folder, pace, pocket, optimizer, average)
            on_save(*parts(named(pocket, average)))
    _save(folder, pace, pocket, optimizer, average)
    on_save(*parts(named(pocket, average)))


def parts(weights: Weights) -> tuple[Weights, Weights]:
    """Weights of a `Pocket` as those of its DiT and its text encoder, by their own names."""
    dit, text = (
        {name.removeprefix(start): value for name, value in weights.items() if name.startswith(start)}
        for start in ("dit.", "text.")
    )
    return dit, text


def _groups(pocket: Pocket) -> list[dict[str, Any]]:
    """Matrices decay a little; biases, norms, modulation and token vectors do not."""
    decaying = [p for name, p in pocket.named_parameters() if p.ndim >= 2 and not _stays(name)]
    others = [p for name, p in pocket.named_parameters() if p.ndim < 2 or _stays(name)]
    return [{"params": decaying, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]


def _stays(name: str) -> bool:
    return name.endswith(("modulation", "shared.weight", "relative_attention_bias.weight"))


def _resumed(
    saved: dict[str, Any], minutes: float, pocket: Pocket, optimizer: torch.optim.Optimizer, average: Average
) -> Pace:
    pocket.load_state_dict(saved["pocket"])
    optimizer.load_state_dict(saved["optimizer"])
    average.load(saved["average"])
    say(f"dit  goes on from step {saved['steps']}, after {saved['spent_s']:.0f} s")
    return Pace("dit", minutes, spent_s=saved["spent_s"], steps=saved["steps"])


def _save(folder: Path, pace: Pace, pocket: Pocket, optimizer: torch.optim.Optimizer, average: Average) -> None:
    state = {"pocket": pocket.state_dict(), "optimizer": optimizer.state_dict(), "average": average.values}
    save_state(folder / STATE_NAME, {**state, "spent_s": pace.spent_s, "steps": pace.steps})
