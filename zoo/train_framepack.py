"""FramePack's DiT beside frozen text encoders as the network that `train_dit` trains, its examples, and its videos.

Sections come about as in the engine: the last in time first, each beside the start frame and what follows it. The start
frame is encoded by itself, as a generation does it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine.families.framepack import model as framepack_model
from engine.families.framepack.conditions import history_tensors
from engine.families.framepack.pocket import WINDOW
from engine.families.framepack.samples import plain_sections
from engine.families.framepack.sections import HISTORY_FRAMES, plain_layout, plan
from engine.ops.sigmas import framepack_mu
from engine.parts import siglip
from engine.parts.siglip import Siglip
from engine.parts.tokenizers import Tokenizer
from engine.sampling.guidance import guided
from engine.sampling.samplers import euler
from engine.sampling.schedules import framepack_schedule

from .data import padded_ids
from .masked_framepack import MaskedFramePack
from .pace import Pace
from .train_hunyuan import HunyuanText, without_caption
from .whole_clip import mixed_precision

_HISTORY = ("clean", "clean_2x", "clean_4x")
_IMAGES = 512


class FramePackPocket(nn.Module):
    """`cond`: "ids" [B, L], "image" [B, L, D], and of the history latents and places as `framepack.model.velocity`."""

    def __init__(self, dit: MaskedFramePack, text: HunyuanText) -> None:
        super().__init__()
        self.dit, self.text = dit, text

    def velocity(self, x_BCTHW: Tensor, timestep_B: Tensor, cond: dict[str, Any]) -> Tensor:
        text_BLD, mask_BL, pooled_BD = self.text(cond["ids"])
        given = {**cond, "text": (text_BLD, mask_BL), "pooled": pooled_BD}
        return framepack_model.velocity(self.dit, x_BCTHW, timestep_B, given)


@dataclass(frozen=True)
class SectionExamples:
    """A training set on one device: whole clips' latents [N, C, T, H, W], their first frames encoded alone
    [N, C, 1, H, W], what the image encoder makes of these [N, L, D], and several captions each."""

    latents_NCTHW: Tensor
    first_NCTHW: Tensor
    image_NLD: Tensor
    ids_NKL: Tensor

    def draw(self, count: int) -> tuple[Tensor, dict[str, Any]]:
        """The latents of sections, as many of each place in a clip, and what they come about from."""
        device = self.ids_NKL.device
        row_B = torch.randint(len(self.ids_NKL), (count,), device=device)
        number_B = torch.randint(self.ids_NKL.shape[1], (count,), device=device)
        latents_BCTHW = torch.cat([self.first_NCTHW[row_B], self.latents_NCTHW[row_B][:, :, 1:]], dim=2).float()
        target_BCTHW, history = sections_of(latents_BCTHW)
        return target_BCTHW, {
            "ids": self.ids_NKL[row_B, number_B].long(), "image": self.image_NLD[row_B].float(), **history,
        }  # fmt: skip


def sections_of(latents_BCTHW: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """One section of each clip with its history: of the first clips their first, and so on. Cut as the engine does."""
    count = (latents_BCTHW.shape[2] - 1) // WINDOW
    found = []
    for number, part_BCTHW in enumerate(latents_BCTHW.tensor_split(count)):
        if len(part_BCTHW):
            section = plain_sections(part_BCTHW.flatten(0, 1), WINDOW)[number]
            found.append((len(part_BCTHW), section))
    return _joined(found, "latents"), _history(found)


def _joined(found: Sequence[tuple[int, dict[str, Tensor]]], name: str) -> Tensor:
    return torch.cat([section[name].unflatten(0, (count, -1)) for count, section in found])


def _history(found: Sequence[tuple[int, dict[str, Tensor]]]) -> dict[str, Any]:
    """Sections in the engine's words, whose clips lie along the channels, as conditioning."""

    def places(name: str) -> list[list[int]]:
        return [row for count, section in found for row in [section[name].tolist()] * count]

    cond: dict[str, Any] = {"indices": places("latent_indices")}
    for name in _HISTORY:
        cond[name] = _joined(found, f"latents_{name}")
        cond[f"{name}_indices"] = places(f"{name.replace('clean', 'clean_latent')}_indices")
    return cond


@torch.no_grad()
def image_states(encoder: Siglip, frames_NHWC: np.ndarray) -> Tensor:
    """What the image encoder makes of pictures (uint8): bf16 [N, L, D] on its device."""
    pace, made = Pace("images", 60.0), []
    for start in range(0, len(frames_NHWC), _IMAGES):
        made.append(siglip.encode(encoder, list(frames_NHWC[start : start + _IMAGES])).bfloat16())
        pace.steps += 1
        speed = pace.time_to_tell()
        if speed is not None:
            pace.tell(speed, f"{start:,} of {len(frames_NHWC):,}")
    return torch.cat(made)


@torch.no_grad()
def generate(
    pocket: FramePackPocket,
    captions: Sequence[str],
    drawn: Tokenizer,
    *,
    first_NCTHW: Tensor,
    image_NLD: Tensor,
    frames: int,
    steps: int,
    guidance: float,
    seed: int = 0,
) -> Tensor:
    """Latents of a clip for each caption and first frame, [N, C, T, H, W] on the CPU, with FramePack's schedule."""
    device, window = first_NCTHW.device, WINDOW
    count, channels, _, *size = first_NCTHW.shape
    ids_BL = torch.stack([torch.from_numpy(padded_ids(drawn, caption)) for caption in captions]).long().to(device)
    nothing_BL = without_caption(drawn).to(device).expand(count, -1)
    made_CTHW = first_NCTHW.new_zeros(count * channels, HISTORY_FRAMES, *size)
    generator = torch.Generator().manual_seed(seed)
    sections = plan((frames - 1) // 4 // window)
    for section in sections:
        layout = plain_layout(section.padding, window=window)
        history = _history([(count, history_tensors(first_NCTHW.flatten(0, 1), made_CTHW, layout, f1=False))])

        def under(ids: Tensor, history: dict[str, Any] = history) -> Any:
            cond = {"ids": ids, "image": image_NLD, **history}

            def velocity(x_BCTHW: Tensor, timestep_B: Tensor) -> Tensor:
                with mixed_precision(device):
                    return pocket.velocity(x_BCTHW, timestep_B, cond)

            return velocity

        noise_BCTHW = torch.randn(count, channels, window, *size, generator=generator).to(device)
        schedule = framepack_schedule(steps, framepack_mu(math.prod(noise_BCTHW.shape[2:]) // 4))
        clean_BCTHW = euler(guided(under(ids_BL), under(nothing_BL), guidance), noise_BCTHW, schedule)
        made_CTHW = torch.cat([clean_BCTHW.flatten(0, 1), made_CTHW], dim=1)
    made_NCTHW = made_CTHW[:, : window * len(sections)].unflatten(0, (count, channels))
    return torch.cat([first_NCTHW, made_NCTHW], dim=2).cpu()
