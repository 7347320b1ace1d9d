"""What the files of Pocket HunyuanVideo and Pocket FramePack can do: pictures, PSNR, clips, and what the judge says.

A person uses `python -m engine generate hunyuan-video` or `framepack`; this does the same in batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine.families.framepack import image
from engine.families.hunyuan_video import vae as family_vae
from engine.families.hunyuan_video.model import embedded_guidance
from engine.parts.hunyuan_vae_network import HunyuanVae
from engine.parts.tokenizers import Tokenizer
from engine.sampling.guidance import Velocity, guided
from engine.sampling.samplers import euler
from engine.sampling.schedules import linear_schedule

from . import pocket_framepack, pocket_hunyuan, train_framepack, train_vae
from .data import held_out_clips, padded_ids
from .generating import draw_copies, to_frames
from .hunyuan_guided import UNGUIDED_NAME
from .hunyuan_words import Words
from .latents import to_pixels
from .pace import say
from .plan import Plan
from .pocket_framepack import FRAMEPACK_NAME, SIGLIP_NAME
from .pocket_hunyuan import CLIP_NAME, DIT_NAME, LLAMA_NAME, VAE_NAME
from .showing import COPIED, MEASURED, draw_made, keep_made, say_shares
from .train_framepack import FramePackPocket, image_states
from .train_hunyuan import PLAIN, HunyuanPocket, HunyuanText, without_caption
from .train_vae_hunyuan import HUNYUAN
from .whole_clip import mixed_precision

SHIFT = 3.0
EMBEDDED = 6.0  # the engine's default
_BATCH, _DECODED = 128, 16


def show(folder: Path, plan: Plan, drawn: Tokenizer, *, device: torch.device) -> Iterator[Path]:
    """Make pictures, and clips for `score`; yields each file when it is there."""
    clips, captions = held_out_clips(max(MEASURED, plan.judged), size=plan.picture, frames=plan.frames)
    vae = _load_vae(folder, device)
    figure = train_vae.measure(vae, clips[:MEASURED], kind=HUNYUAN)
    say(f"vae  {VAE_NAME} in {vae.dtype}: {figure:.2f} dB on held-out clips")
    yield folder / VAE_NAME
    copies = decode(vae, family_vae.encode(vae, to_pixels(torch.from_numpy(clips[:COPIED]))).cpu())
    yield draw_copies(clips[:COPIED], copies, folder / "vae.png", title=f"VAE, {figure:.2f} dB")
    captions, made = captions[: plan.judged], {}
    for kind, name in (("t2v", DIT_NAME), ("i2v", FRAMEPACK_NAME)):
        if not (folder / name).exists() or not captions:
            continue
        make = _maker(folder, drawn, kind, vae, captions, clips[: len(captions)], plan)
        for guidance in plan.guidance:
            made[f"{kind}_{guidance:g}"] = make(guidance=guidance).half()
            say(f"{kind}  {len(captions)} clips, guidance {guidance:g}, {plan.steps} steps")
        if kind == "t2v" and (folder / UNGUIDED_NAME).exists():
            made["t2v_embedded"] = make(guidance=1.0, embedded=EMBEDDED).half()
            say(f"t2v  {len(captions)} clips, embedded guidance {EMBEDDED:g}, {plan.steps} steps")
        yield draw_made(made, kind, captions, folder, guidance=plan.guidance[0], decode=partial(decode, vae))
    yield from keep_made(made, captions, folder)


def _maker(
    folder: Path,
    drawn: Tokenizer,
    kind: str,
    vae: HunyuanVae,
    captions: list[str],
    clips_NFHWC: np.ndarray,
    plan: Plan,
) -> Callable[..., Tensor]:
    """The `generate` of HunyuanVideo ("t2v") or FramePack for these captions and pictures; guidance is to be given."""
    pocket = read_pocket(folder, drawn)
    if kind == "t2v":
        pocket = pocket.to(vae.device)
        return partial(generate, pocket, captions, drawn, size=plan.picture, frames=plan.frames, steps=plan.steps)
    framepack = FramePackPocket(pocket_framepack.read_dit(folder / FRAMEPACK_NAME), pocket.text).to(vae.device)
    encoder = image.load({"image_encoder": str(folder / SIGLIP_NAME)}, device=vae.device)
    pictures_N1HWC = torch.from_numpy(clips_NFHWC[:, :1])
    first_NCTHW = torch.cat([family_vae.encode(vae, to_pixels(part)) for part in pictures_N1HWC.split(_DECODED)])
    states_NLD = image_states(encoder, clips_NFHWC[:, 0]).float()
    return partial(
        train_framepack.generate, framepack, captions, drawn, first_NCTHW=first_NCTHW, image_NLD=states_NLD,
        frames=plan.frames, steps=plan.steps,
    )  # fmt: skip


def score(folder: Path, plan: Plan, *, device: torch.device) -> None:
    """Say what the judge finds in the clips that `show` has made, and how those begin that had a first frame."""
    say_shares(folder, plan, decode=partial(decode, _load_vae(folder, device)))


@torch.no_grad()
def generate(
    pocket: HunyuanPocket,
    captions: Sequence[str],
    drawn: Tokenizer,
    *,
    size: int,
    frames: int,
    steps: int,
    guidance: float,
    embedded: float = PLAIN,
    seed: int = 0,
) -> Tensor:
    """Latents of a clip for each caption, [N, C, T, H, W] on the CPU: Euler's method and real guidance.

    `embedded`: the guidance that the model is told. The first clip has the noise of `seed`, the next that of the next.
    """
    nothing_1L = without_caption(drawn)
    device, made = next(pocket.parameters()).device, []
    side = size // family_vae.SPACE_STRIDE
    shape = (1, family_vae.LATENT_CHANNELS, (frames - 1) // family_vae.TIME_STRIDE + 1, side, side)
    for start in range(0, len(captions), _BATCH):
        part = captions[start : start + _BATCH]
        sources = [torch.Generator().manual_seed(seed + start + n) for n in range(len(part))]
        noise_BCTHW = torch.cat([torch.randn(shape, generator=source) for source in sources]).to(device)
        ids_BL = torch.stack([torch.from_numpy(padded_ids(drawn, caption)) for caption in part]).long()
        both = (_under(pocket, ids, embedded) for ids in (ids_BL, nothing_1L.expand(len(part), -1)))
        velocity = guided(*both, guidance)
        made.append(euler(velocity, noise_BCTHW, linear_schedule(steps, SHIFT)).cpu())
    return torch.cat(made)


def _under(pocket: HunyuanPocket, ids_BL: Tensor, embedded: float) -> Velocity:
    device = next(pocket.parameters()).device
    guidance_B = embedded_guidance(embedded, count=len(ids_BL), device=device)
    cond = {"ids": ids_BL.to(device), "guidance": guidance_B}

    def velocity(x_BCTHW: Tensor, timestep_B: Tensor) -> Tensor:
        with mixed_precision(device):
            return pocket.velocity(x_BCTHW, timestep_B, cond)

    return velocity


def read_pocket(folder: Path, drawn: Tokenizer) -> HunyuanPocket:
    """The models in a folder, to train on or to look at: float32, on the CPU."""
    llama, clip = pocket_hunyuan.read_llama(folder / LLAMA_NAME), pocket_hunyuan.read_clip(folder / CLIP_NAME)
    return HunyuanPocket(pocket_hunyuan.read_dit(folder / DIT_NAME), HunyuanText(llama, clip, Words(drawn)))


def decode(vae: HunyuanVae, latents_NCTHW: Tensor) -> np.ndarray:
    """Clips of latents, [N, F, H, W, 3] uint8, a few at a time."""
    return np.concatenate([to_frames(family_vae.decode(vae, part)) for part in latents_NCTHW.split(_DECODED)])


def _load_vae(folder: Path, device: torch.device) -> HunyuanVae:
    return family_vae.load(folder / VAE_NAME, device=device, dtype=family_vae.compute_dtype(device))
