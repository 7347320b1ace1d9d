"""Many clips at once from the pocket files, with the engine's own parts: for pictures and figures after a training.

A person uses `python -m engine generate wan`; this does the same in batches, which a GPU finishes in seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine.families.wan import model as wan_model
from engine.families.wan import text as wan_text
from engine.families.wan import vae as wan_vae
from engine.media.sheet import contact_sheet, spread
from engine.sampling.guidance import Velocity, guided
from engine.sampling.samplers import unipc
from engine.sampling.schedules import wan_unipc_schedule

from .pocket_wan import TEXT_NAME

STEPS, GUIDANCE, SHIFT = 20, 4.0, 3.0
_SHOWN_FRAMES, _DECODED = 5, 16


@torch.no_grad()
def generate(
    dit_file: Path,
    captions: Sequence[str],
    *,
    first_NCTHW: Tensor | None = None,
    size: int,
    frames: int,
    device: torch.device,
    seed: int = 0,
    batch: int = 128,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    shift: float = SHIFT,
    change: Callable[[wan_model.WanModel], object] = lambda dit: None,
) -> Tensor:
    """Latents of a clip for each caption, [N, C, T, H, W] on the CPU, by a DiT and the text encoder beside it.

    `first_NCTHW`: what image-to-video gets beside the noise (`latents.first_frames`). The first clip has the noise of
    `seed`, the next that of the next seed. `change` may put a LoRA on the DiT.
    """
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    encoder = wan_text.load({"t5": str(dit_file.with_name(TEXT_NAME))}, device=device, dtype=dtype)
    dit = wan_model.load(dit_file, task=None, device=device, dtype=dtype)
    change(dit)
    side = size // wan_vae.SPACE_STRIDE
    shape = (1, wan_vae.LATENT_CHANNELS, (frames - 1) // wan_vae.TIME_STRIDE + 1, side, side)
    made = []
    for start in range(0, len(captions), batch):
        part = list(captions[start : start + batch])
        sources = [torch.Generator().manual_seed(seed + start + n) for n in range(len(part))]
        noise_BCTHW = torch.cat([torch.randn(shape, generator=source) for source in sources]).to(device)
        shown = {} if first_NCTHW is None else {"y": first_NCTHW[start : start + batch].to(device)}
        texts = (_states(encoder, part), _states(encoder, [""]) * len(part))
        velocity = guided(*(_under(dit, {"text": text, **shown}) for text in texts), guidance)
        made.append(unipc(velocity, noise_BCTHW, wan_unipc_schedule(steps, shift)).cpu())
    return torch.cat(made)


def decode(vae: wan_vae.WanVae, latents_BCTHW: Tensor) -> np.ndarray:
    """Clips of latents, [N, F, H, W, 3] uint8, a few at a time."""
    return np.concatenate([to_frames(wan_vae.decode(vae, part)) for part in latents_BCTHW.split(_DECODED)])


def _states(encoder: wan_text.TextEncoder, captions: list[str]) -> list[Tensor]:
    """As the engine's `states`, for captions that need no cleaning, whose package a bare GPU machine lacks."""
    rows = [encoder.tokenizer.ids(caption) for caption in captions]
    ids_BL = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(encoder.device)
    states_BLD = wan_text.encode_ids(encoder.model, ids_BL, (ids_BL != encoder.tokenizer.pad_id).long())
    return [states_LD[: len(row)] for states_LD, row in zip(states_BLD, rows, strict=True)]


def _under(dit: wan_model.WanModel, cond: dict[str, Any]) -> Velocity:
    def velocity(x_BCTHW: Tensor, timestep_B: Tensor) -> Tensor:
        return wan_model.velocity(dit, x_BCTHW, timestep_B, cond)

    return velocity


def to_frames(clip_BCFHW: Tensor) -> np.ndarray:
    """RGB in -1..1 to uint8 [B, F, H, W, 3]."""
    levels = ((clip_BCFHW.clamp(-1, 1) + 1.0) * 127.5).round().to(torch.uint8)
    return levels.permute(0, 2, 3, 4, 1).cpu().numpy()


def draw_clips(rows: Sequence[tuple[str, np.ndarray]], path: Path, *, title: str) -> Path:
    """A contact sheet: a caption and some frames of each clip."""
    shown = [(label, [clip[index] for index in spread(len(clip), _SHOWN_FRAMES)]) for label, clip in rows]
    return contact_sheet(shown, path, title=title, thumbnail=96)


def draw_copies(clips_NFHWC: np.ndarray, copies_NFHWC: np.ndarray, path: Path, *, title: str) -> Path:
    """A contact sheet: each clip, and below it what the VAE makes of it."""
    pairs = zip(clips_NFHWC, copies_NFHWC, strict=True)
    rows = [(label, clip) for pair in pairs for label, clip in zip(("drawn", "copy"), pair, strict=True)]
    return draw_clips(rows, path, title=title)
