"""What trained files can do: pictures, the VAE's PSNR, clips of held-out captions, and what the judge says of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine.families.wan import vae as wan_vae
from engine.parts.weights import open_weights, write_weights

from . import latents, train_vae
from .captions import read_caption
from .data import held_out_clips
from .generating import decode, draw_clips, draw_copies, generate
from .pace import say
from .plan import Plan
from .pocket_wan import DIT_NAME, I2V_NAME, VAE_NAME

MADE_NAME = "made.safetensors"
MEASURED, COPIED, _SHOWN = 64, 6, 24  # held-out clips for PSNR and for the pictures
FILES = {"t2v": DIT_NAME, "i2v": I2V_NAME}

Decode = Callable[[Tensor], np.ndarray]
"""Latents [N, C, T, H, W] to clips [N, F, H, W, 3] uint8."""


def show(folder: Path, plan: Plan, *, device: torch.device) -> Iterator[Path]:
    """Make pictures, and clips for `score`; yields each file when it is there."""
    clips, captions = held_out_clips(max(MEASURED, plan.judged), size=plan.picture, frames=plan.frames)
    vae = _load_vae(folder, device)
    for dtype in dict.fromkeys((torch.float32, wan_vae.compute_dtype(device))):
        figure = train_vae.measure(wan_vae.load(folder / VAE_NAME, device=device, dtype=dtype), clips[:MEASURED])
        say(f"vae  {VAE_NAME} in {dtype}: {figure:.2f} dB on held-out clips")
    yield folder / VAE_NAME
    copies = decode(vae, wan_vae.encode(vae, latents.to_pixels(torch.from_numpy(clips[:COPIED]))))
    yield draw_copies(clips[:COPIED], copies, folder / "vae.png", title=f"VAE, {figure:.2f} dB")
    made, captions = {}, captions[: plan.judged]
    for kind, name in FILES.items():
        if not (folder / name).exists() or not captions:
            continue
        first = latents.first_frames(_load_vae(folder, device), clips[: len(captions)], compiled=False).float()
        for guidance in plan.guidance:
            made[f"{kind}_{guidance:g}"] = generate(
                folder / name, captions, first_NCTHW=first if kind == "i2v" else None, size=plan.picture,
                frames=plan.frames, device=device, steps=plan.steps, guidance=guidance,
            ).half()  # fmt: skip
            say(f"{kind}  {len(captions)} clips, guidance {guidance:g}, {plan.steps} steps")
        yield draw_made(made, kind, captions, folder, guidance=plan.guidance[0], decode=partial(decode, vae))
    yield from keep_made(made, captions, folder)


def score(folder: Path, plan: Plan, *, device: torch.device) -> None:
    """Say what the judge finds in the clips that `show` has made, and how image-to-video clips begin."""
    say_shares(folder, plan, decode=partial(decode, _load_vae(folder, device)))


def _load_vae(folder: Path, device: torch.device) -> wan_vae.WanVae:
    return wan_vae.load(folder / VAE_NAME, device=device, dtype=wan_vae.compute_dtype(device))


# ------------------------------------------------------------------------------------- for whichever family made them


def draw_made(
    made: dict[str, Tensor], kind: str, captions: list[str], folder: Path, *, guidance: float, decode: Decode
) -> Path:
    """A contact sheet of the first clips of a kind."""
    clips = decode(made[f"{kind}_{guidance:g}"][:_SHOWN].float())
    rows = list(zip(captions[:_SHOWN], clips, strict=True))
    return draw_clips(rows, folder / f"{kind}.png", title=f"Held-out captions, guidance {guidance:g}")


def keep_made(made: dict[str, Tensor], captions: list[str], folder: Path) -> Iterator[Path]:
    """The file that `say_shares` reads, where anything was made."""
    if made:
        write_weights(folder / MADE_NAME, made, metadata={"captions": json.dumps(captions)})
        yield folder / MADE_NAME


def say_shares(folder: Path, plan: Plan, *, decode: Decode) -> None:
    """Say what the judge finds in the clips of `keep_made`, and how those begin that had a first frame."""
    from .judge import judge, shares  # needs packages that a bare GPU machine lacks

    file = open_weights(folder / MADE_NAME, role="--out")
    captions = json.loads(file.metadata["captions"])
    drawn, _ = held_out_clips(len(captions), size=plan.picture, frames=plan.frames)
    for name in sorted(file.shapes):
        clips = decode(file.read(name).float())
        found = shares(judge(clip, read_caption(caption)) for clip, caption in zip(clips, captions, strict=True))
        told = ", ".join(f"{fact} {share:.1%}" for fact, share in found.items())
        if name.startswith("i2v"):
            told += f", first frame {first_frame_psnr(clips, drawn):.1f} dB"
        say(f"{name}  {len(captions)} held-out captions: {told}")


def first_frame_psnr(clips_NFHWC: np.ndarray, drawn_NFHWC: np.ndarray) -> float:
    """How close the clips begin to the pictures that they were asked to begin with, in dB."""
    error = (clips_NFHWC[:, 0].astype(np.float32) - drawn_NFHWC[:, 0]) / 127.5
    return train_vae.psnr(float(np.square(error).mean()))
