"""Small Wan checkpoints in the original file layout, written in seconds: what demos and tests run on.

Nothing here is trained. The weights are random where that does no harm and built where it would:
- the VAE keeps a picture: three of its latent channels carry the colours of 8x8 pixels, which the decoder paints back
  smoothly; the other thirteen are random features. Its latents have the published mean and deviation.
- the DiT's patch embedding and head are each other's reverse, its blocks small random updates beside the residual
  stream. So what comes in can come out, and a LoRA on the blocks is enough to learn a clip by heart. A head of
  random numbers would hide from a LoRA (which never touches it) what has to be predicted.
- the text encoder is random; its SentencePiece model is trained on the spot on a few sentences.

Does not know the demo. Given up: any use as a real model.
"""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ...contract.files import write_bytes
from ...parts.tiny_weights import COLOUR_AXES, SENTENCES, DrawnTensors
from ...parts.weights import write_weights
from . import model as wan_model
from . import tiny_clip
from . import vae as wan_vae
from .detect import WanConfig
from .expert_options import HIGH_NOISE
from .variants import VARIANTS

TASK = "t2v-1.3B"
VAE_NAME, TEXT_NAME = "Wan2.1_VAE_tiny.safetensors", "models_t5_umt5-tiny-enc.pth"
CLIP_NAME = "models_clip_tiny.pth"
TOKENIZER_NAME = "google/umt5-xxl/spiece.model"

DIT_CONFIG = WanConfig(
    dim=256, ffn_dim=512, freq_dim=256, text_dim=64, in_dim=16, out_dim=16, num_layers=4, num_heads=2, head_dim=128
)
_IMAGE = {"image_dim": tiny_clip.WIDTH, "image_tokens": tiny_clip.TOKENS}
CONFIGS = {
    "t2v-1.3B": DIT_CONFIG,
    "i2v-14B": dataclasses.replace(DIT_CONFIG, in_dim=36, **_IMAGE),
    "flf2v-14B": dataclasses.replace(DIT_CONFIG, in_dim=36, **{**_IMAGE, "image_tokens": 2 * tiny_clip.TOKENS}),
    "t2v-1.3B-FC": dataclasses.replace(DIT_CONFIG, in_dim=48, **_IMAGE),
    "fun-v1.1": dataclasses.replace(DIT_CONFIG, in_dim=48, reference_dim=16, **_IMAGE),
    "camera-1.3B": dataclasses.replace(DIT_CONFIG, in_dim=32, camera_dim=24 * 64, **_IMAGE),
    "vace-1.3B": dataclasses.replace(DIT_CONFIG, vace_dim=96, vace_count=2),
    "t2v-A14B": DIT_CONFIG,
    "i2v-A14B": dataclasses.replace(DIT_CONFIG, in_dim=36),
}
"""The variants whose checkpoints differ, by a task that each does; those of Wan 2.2 have two."""
TASKS = {"fun-v1.1": "t2v-1.3B-FC"}
TEXT_FFN, TEXT_LAYERS, TEXT_HEADS, TEXT_BUCKETS, VOCABULARY = 128, 2, 2, 32, 384
VAE_WIDTHS = (8, 16, 32, 32)
CHANNELS = wan_vae.LATENT_CHANNELS

CONSTANT_CHANNEL, CONSTANT = 3, 8.0  # VAE: colours run in channels 0 … 2, then a constant that steadies the norms
CLEAN_CHANNELS = CONSTANT_CHANNEL + 1
SMALL = 0.1
"""Gain of the VAE's colour channels before its last SiLU, which halves what is small and bends what is large."""


def _pass_through(out_channels: int, in_channels: int, kernel: tuple[int, ...], tap: Tensor | None = None) -> Tensor:
    """A kernel that copies channel i to channel i: at the newest frame's centre, or spread over space by `tap`."""
    weight = torch.zeros(out_channels, in_channels, *kernel)
    shared = min(out_channels, in_channels)
    if tap is None:
        tap = torch.zeros(kernel)
        tap[(-1, *(size // 2 for size in kernel[1:]))] = 1.0
    weight[range(shared), range(shared)] = tap
    return weight


def _residual(tensors: DrawnTensors, name: str, in_channels: int, out_channels: int, *, strength: float) -> None:
    """A residual block that leaves the clean channels alone and adds random features of `strength` to the others."""
    tensors[f"{name}.residual.0.gamma"] = torch.ones(in_channels, 1, 1, 1)
    tensors[f"{name}.residual.3.gamma"] = torch.ones(out_channels, 1, 1, 1)
    for number, width in ((2, in_channels), (6, out_channels)):
        weight = tensors.normal(out_channels, width, 3, 3, 3, std=(27 * width) ** -0.5)
        tensors.layer(f"{name}.residual.{number}", weight)
    tensors[f"{name}.residual.6.weight"][:CLEAN_CHANNELS] = 0.0
    tensors[f"{name}.residual.6.weight"] *= strength
    if in_channels != out_channels:
        tensors.layer(f"{name}.shortcut", _pass_through(out_channels, in_channels, (1, 1, 1)))


def _middle(tensors: DrawnTensors, name: str, channels: int, *, strength: float) -> None:
    _residual(tensors, f"{name}.0", channels, channels, strength=strength)
    tensors[f"{name}.1.norm.gamma"] = torch.ones(channels, 1, 1)
    tensors.layer(f"{name}.1.to_qkv", tensors.normal(3 * channels, channels, 1, 1, std=channels**-0.5))
    mixing = tensors.normal(channels, channels, 1, 1, std=strength * channels**-0.5)
    mixing[:CLEAN_CHANNELS] = 0.0
    tensors.layer(f"{name}.1.proj", mixing)
    _residual(tensors, f"{name}.2", channels, channels, strength=strength)


def _vae_encoder(tensors: DrawnTensors) -> None:
    first, last = VAE_WIDTHS[0], VAE_WIDTHS[-1]
    weight = tensors.normal(first, 3, 3, 3, 3, std=0.2)
    weight[:CLEAN_CHANNELS] = _pass_through(CLEAN_CHANNELS, 3, (3, 3, 3))
    bias = torch.zeros(first)
    bias[CONSTANT_CHANNEL] = CONSTANT
    tensors.layer("encoder.conv1", weight, bias)
    number, previous = 0, first
    for level, width in enumerate(VAE_WIDTHS):
        for _ in range(2):
            _residual(tensors, f"encoder.downsamples.{number}", previous, width, strength=0.5)
            number, previous = number + 1, width
        if level == len(VAE_WIDTHS) - 1:
            break
        average = torch.zeros(3, 3)
        average[:2, :2] = 0.25
        tensors.layer(f"encoder.downsamples.{number}.resample.1", _pass_through(width, width, (3, 3), average))
        if level > 0:
            latest = torch.tensor([0.0, 0.5, 0.5]).view(3, 1, 1)
            kernel = _pass_through(width, width, (3, 1, 1), latest)
            tensors.layer(f"encoder.downsamples.{number}.time_conv", kernel)
        number += 1
    _middle(tensors, "encoder.middle", last, strength=0.5)
    tensors["encoder.head.0.gamma"] = torch.ones(last, 1, 1, 1)
    tensors["encoder.head.0.gamma"][:CONSTANT_CHANNEL] = SMALL
    tensors.layer("encoder.head.2", _pass_through(2 * CHANNELS, last, (3, 3, 3)))


def _vae_decoder(tensors: DrawnTensors) -> None:
    last = VAE_WIDTHS[-1]
    bias = torch.zeros(last)
    bias[CONSTANT_CHANNEL] = CONSTANT
    colours_only = _pass_through(last, CHANNELS, (3, 3, 3))
    colours_only[CONSTANT_CHANNEL:] = 0.0
    tensors.layer("decoder.conv1", colours_only, bias)
    _middle(tensors, "decoder.middle", last, strength=0.05)
    smooth = torch.tensor([0.25, 0.5, 0.25])
    number, previous = 0, last
    for level, width in enumerate(reversed(VAE_WIDTHS)):
        for _ in range(3):
            _residual(tensors, f"decoder.upsamples.{number}", previous, width, strength=0.05)
            number, previous = number + 1, width
        if level == len(VAE_WIDTHS) - 1:
            break
        kernel = _pass_through(width // 2, width, (3, 3), torch.outer(smooth, smooth))
        tensors.layer(f"decoder.upsamples.{number}.resample.1", kernel)
        if level < 2:
            twice = _pass_through(width, width, (3, 1, 1)).repeat(2, 1, 1, 1, 1)
            tensors.layer(f"decoder.upsamples.{number}.time_conv", twice)
        number, previous = number + 1, width // 2
    width = VAE_WIDTHS[0]
    tensors["decoder.head.0.gamma"] = torch.full((width, 1, 1, 1), SMALL)
    tensors.layer("decoder.head.2", _pass_through(3, width, (3, 3, 3)) * _unsquash(width))


def _unsquash(channels: int) -> float:
    """What undoes the last norm (a pixel's length is about CONSTANT), SMALL and SiLU for the colour channels."""
    return 2.0 * CONSTANT / (SMALL * channels**0.5)


def _calibration_clip(tensors: DrawnTensors) -> Tensor:
    """Smooth random colours with hard-edged patches, [4, 3, 17, 64, 64] RGB in -1..1: enough like a picture."""
    batch, frames, size = 4, 17, 64
    coarse = tensors.normal(batch, 3, 5, 4, 4, std=0.7)
    clip = functional.interpolate(coarse, size=(frames, size, size), mode="trilinear")
    for sample in clip:
        for frame in range(frames):
            left = 2 * frame
            sample[:, frame, 16:40, left : left + 20] = sample[:, :1, :1, :1].reshape(3, 1, 1).neg()
    return clip.clamp(-1, 1)


def _fit_latents(tensors: DrawnTensors, features_NC: Tensor, colours_N3: Tensor) -> None:
    """Set `conv1` (features to latents) and `conv2` (latents to colours) from what the encoder makes of a clip.

    Latents 0 … 2 are the colour axes, the others the strongest directions of what colour does not explain; each with
    the published mean and deviation, so that they are standard normal after normalisation.
    """
    mean, std = torch.tensor(wan_vae.LATENT_MEAN), torch.tensor(wan_vae.LATENT_STD)
    centre_C, colour_centre_3 = features_NC.mean(0), colours_N3.mean(0)
    features_NC, colours_N3 = features_NC - centre_C, colours_N3 - colour_centre_3
    axes = torch.tensor(COLOUR_AXES)
    read = torch.zeros(CHANNELS, features_NC.shape[1])
    read[:3, :3] = axes @ torch.linalg.lstsq(features_NC[:, :3], colours_N3).solution.T
    rest = features_NC.clone()
    rest[:, :CLEAN_CHANNELS] = 0.0
    explained = torch.linalg.lstsq(features_NC[:, :3], rest).solution
    _, directions = torch.linalg.eigh((rest - features_NC[:, :3] @ explained).T.cov())
    read[3:] = directions[:, -(CHANNELS - 3) :].T
    read[3:, :3] -= read[3:] @ explained.T
    spread = (features_NC @ read.T).std(0)
    read *= (std / spread)[:, None]
    weight = torch.zeros(2 * CHANNELS, features_NC.shape[1])
    weight[:CHANNELS] = read
    bias = torch.cat([mean - read @ centre_C, torch.full((CHANNELS,), -6.0)])
    tensors.layer("conv1", weight.reshape(*weight.shape, 1, 1, 1), bias)
    paint = torch.zeros(CHANNELS, CHANNELS)
    paint[:3, :3] = torch.linalg.inv(axes) * (spread / std)[:3]
    painted = torch.zeros(CHANNELS)
    painted[:3] = colour_centre_3 - paint[:3, :3] @ mean[:3]
    tensors.layer("conv2", paint.reshape(*paint.shape, 1, 1, 1), painted)


def vae_tensors(seed: int) -> dict[str, Tensor]:
    """A Wan VAE of width 8 under the original names, float32."""
    tensors = DrawnTensors(seed)
    _vae_encoder(tensors)
    _vae_decoder(tensors)
    tensors.layer("conv1", torch.eye(2 * CHANNELS).reshape(2 * CHANNELS, 2 * CHANNELS, 1, 1, 1))
    tensors.layer("conv2", torch.eye(CHANNELS).reshape(CHANNELS, CHANNELS, 1, 1, 1))
    vae = wan_vae.build({name: tuple(value.shape) for name, value in tensors.items()}, device="cpu")
    vae.load_state_dict(tensors)
    clip_BCFHW = _calibration_clip(tensors)
    colours = torch.cat(  # what a latent frame covers: the first frame, then four each
        [clip_BCFHW[:, :, :1], functional.avg_pool3d(clip_BCFHW[:, :, 1:], (4, 1, 1))], dim=2
    )
    colours_BCTHW = functional.avg_pool3d(colours, (1, 8, 8))
    features_BCTHW = wan_vae.encode_features(vae, clip_BCFHW)
    _fit_latents(tensors, features_BCTHW.movedim(1, -1).flatten(0, 3), colours_BCTHW.movedim(1, -1).flatten(0, 3))
    return dict(tensors)


def dit_tensors(seed: int, config: WanConfig = DIT_CONFIG) -> dict[str, Tensor]:
    """A Wan DiT under the original names, float32, which a LoRA on its blocks can teach a clip.

    Learnable because: the patch embedding keeps every number of a patch (orthonormal columns) beside a constant, which
    norms cannot wash out; the head reads the same columns back, with room for more than the norm leaves of them; gates
    are open, so that what a LoRA adds arrives; and the time shifts the norms enough to be seen. Untrained it answers
    with a mixture of its input, which is wrong by more than saying nothing.
    """
    tensors = DrawnTensors(seed)
    for name, parameter in wan_model.build(config).named_parameters():
        shape = tuple(parameter.shape)
        if name.endswith(".bias"):
            tensors[name] = torch.zeros(shape)
        elif "norm" in name or len(shape) == 1:
            tensors[name] = torch.ones(shape)
        elif name.startswith(("text_embedding", "time_embedding", "time_projection", "img_emb.proj")):
            tensors[name] = tensors.normal(*shape, std=shape[1] ** -0.5)
        else:
            tensors[name] = tensors.normal(*shape, std=0.02)
    tensors["time_embedding.2.weight"] *= 0.1
    tensors["time_projection.1.weight"] *= 10.0
    for number in range(config.num_layers):
        tensors[f"blocks.{number}.modulation"][:, [2, 5]] += 1.0  # the gates
    _join_ends(tensors, config)
    return dict(tensors)


def _join_ends(tensors: DrawnTensors, config: WanConfig) -> None:
    """Make patch embedding and head each other's reverse, up to gain; other channels get axes of their own."""
    patch = (*config.patch_size, config.in_dim)  # the head's order; the patch embedding has channels first
    axes_DP, _ = torch.linalg.qr(tensors.normal(config.dim, math.prod(patch), std=1.0))
    aside_D = tensors.normal(config.dim, std=1.0)
    aside_D -= aside_D.mean()
    aside_D -= axes_DP @ (axes_DP.T @ aside_D)
    values = math.prod(config.patch_size) * config.out_dim
    token_length = 0.25 * config.dim**0.5  # of a patch of unit variance; short beside what blocks can add
    gain = token_length / values**0.5
    tensors["patch_embedding.weight"] = (gain * axes_DP).reshape(config.dim, *patch).permute(0, 4, 1, 2, 3).contiguous()
    tensors["patch_embedding.bias"] = 2.0 * token_length * aside_D / aside_D.norm()
    noise_DP = axes_DP.reshape(config.dim, -1, config.in_dim)[..., : config.out_dim].flatten(1)
    tensors["head.head.weight"] = (2.0 * (values / config.dim) ** 0.5) * noise_DP.T.contiguous()


def text_tensors(seed: int, *, rows: int, width: int = DIT_CONFIG.text_dim) -> dict[str, Tensor]:
    """A UMT5 encoder under Wan's names, float32; its outputs have unit variance."""
    tensors = DrawnTensors(seed)
    tensors["token_embedding.weight"] = tensors.normal(rows, width, std=1.0)
    for number in range(TEXT_LAYERS):
        block = f"blocks.{number}"
        for norm in ("norm1", "norm2"):
            tensors[f"{block}.{norm}.weight"] = torch.ones(width)
        for letter, gain in (("q", 0.5), ("k", 0.5), ("v", 1.0), ("o", 1.0)):
            tensors[f"{block}.attn.{letter}.weight"] = tensors.normal(width, width, std=gain * width**-0.5)
        tensors[f"{block}.ffn.gate.0.weight"] = tensors.normal(TEXT_FFN, width, std=width**-0.5)
        tensors[f"{block}.ffn.fc1.weight"] = tensors.normal(TEXT_FFN, width, std=width**-0.5)
        tensors[f"{block}.ffn.fc2.weight"] = tensors.normal(width, TEXT_FFN, std=TEXT_FFN**-0.5)
        tensors[f"{block}.pos_embedding.embedding.weight"] = tensors.normal(TEXT_BUCKETS, TEXT_HEADS, std=0.5)
    tensors["norm.weight"] = torch.ones(width)
    return dict(tensors)


def train_tokenizer() -> bytes:
    """A tokenizer with bytes for whatever it never saw."""
    return umt5_tokenizer(SENTENCES, model_type="unigram", vocab_size=VOCABULARY, byte_fallback=True)


def umt5_tokenizer(sentences: Iterable[str], **options: Any) -> bytes:
    """A SentencePiece model with UMT5's special ids (pad 0, end 1, unknown 2). `options`: the trainer's own."""
    import sentencepiece

    stream = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(sentences), model_writer=stream, hard_vocab_limit=False, character_coverage=1.0,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, num_threads=1, minloglevel=2, **options,
    )  # fmt: skip
    return stream.getvalue()


def write_tiny_models(folder: str | Path, *, seed: int = 42, variant: str = TASK) -> dict[str, Path]:
    """Write the files of a variant (see CONFIGS) into `folder`, made if missing. Under 20 MB for each DiT.

    The same seed gives the same weights; several variants can share a folder. Returns their paths: "dit", "vae", "t5",
    "tokenizer", "clip" where the variant sees images, "dit_high_noise" where there are two experts. The tokenizer lies
    where Wan's own repository has it, so that it is found beside the text encoder. Each file appears whole or not at
    all.
    """
    paths = _paths(Path(folder), variant)
    paths["tokenizer"].parent.mkdir(parents=True, exist_ok=True)
    makers: dict[str, Callable[[], Any]] = {
        "dit": lambda: write_dit(paths["dit"], seed, variant),
        "dit_high_noise": lambda: write_dit(paths["dit_high_noise"], seed + 4, variant),
        "vae": lambda: write_weights(paths["vae"], vae_tensors(seed + 1), metadata={"format": "pt"}),
        "t5": lambda: write_bytes(paths["t5"], _pickled(text_tensors(seed + 2, rows=VOCABULARY))),
        "tokenizer": lambda: write_bytes(paths["tokenizer"], train_tokenizer()),
        "clip": lambda: write_bytes(paths["clip"], _pickled(tiny_clip.clip_tensors(seed + 3))),
    }
    for name in paths:
        makers[name]()
    return paths


def write_dit(path: Path, seed: int, variant: str) -> None:
    """A DiT of one variant."""
    write_weights(path, dit_tensors(seed, CONFIGS[variant]), metadata={"format": "pt"})


def _pickled(tensors: dict[str, Tensor]) -> bytes:
    """As torch.save writes it: the original text and image encoders are .pth files."""
    stream = io.BytesIO()
    torch.save(tensors, stream)
    return stream.getvalue()


def tiny_model_options(folder: str | Path, *, variant: str = TASK) -> dict[str, dict[str, Any]]:
    """What the job files of each verb must say to use a variant's models in `folder`."""
    paths = {name: str(path) for name, path in _paths(Path(folder), variant).items()}
    dits = {name: path for name, path in paths.items() if name.startswith("dit")}
    denoiser = {"task": TASKS.get(variant, variant), **dits}
    clip = {"clip": paths["clip"]} if "clip" in paths else {}
    return {
        "cache-latents": {"vae": paths["vae"], **clip},
        "cache-text": {"t5": paths["t5"]},
        "train": denoiser,
        "generate": {**denoiser, "vae": paths["vae"], "t5": paths["t5"], **clip},
    }


def _paths(folder: Path, variant: str) -> dict[str, Path]:
    kind = variant.partition("-")[0] if variant == TASK else variant
    names = {"dit": f"wan2.1_{kind}_tiny.safetensors", "vae": VAE_NAME, "t5": TEXT_NAME, "tokenizer": TOKENIZER_NAME}
    if CONFIGS[variant].image_dim is not None:
        names["clip"] = CLIP_NAME
    if VARIANTS[TASKS.get(variant, variant)].boundary is not None:
        names |= {f"dit{end}": f"wan2.2_{variant}{end or '_low_noise'}_tiny.safetensors" for end in ("", HIGH_NOISE)}
    return {key: folder / name for key, name in names.items()}
