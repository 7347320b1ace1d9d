"""HunyuanVideo's video VAE, which FramePack shares: clip -> posterior, latents -> frames.

Frames are packed 4 (time) x 8 x 8, the first frame by itself: 4n+1 frames make n+1 latent frames. Latents here are in
the VAE's own scale; a DiT works on them times SCALING_FACTOR.

A clip of more than 64 frames is processed in tiles of 65 frames that overlap by a quarter and are blended, as the
model's authors do, so memory does not grow with the clip's length; `Tiles` adds tiles in space. Tiles change the
result a little (norms see a tile, not the clip). Within a tile everything is exact.

Loads Tencent's file, diffusers' (the same names) and ComfyUI's (LDM-style names), with prefixes. Does not know cache
files or DiTs. Given up: training the VAE.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from ..contract.errors import DataError, WeightsError
from .causal_conv import lay_channels_last
from .hunyuan_vae_network import HunyuanVae
from .hunyuan_vae_public import SPACE_STRIDE, TIME_STRIDE
from .tiles import Run, Tiling, tiled_in_space, tiled_in_time
from .vae_checks import check_clip, check_latents
from .weights import WeightFile, load_into, metadata_number

SCALING_FACTOR = 0.476986
NORM_GROUPS = 32
LOGVAR_RANGE = (-30.0, 20.0)

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Tiles:
    """Which clips are processed in tiles, and how large these are; None: no tiles.

    `frames` (a multiple of 16): clips of more frames, in tiles of frames + 1. `pixels` (a multiple of 32): clips of
    larger height or width, in tiles of this side. Tiles overlap by a quarter. DataError for other sizes.
    """

    frames: int | None = 64
    pixels: int | None = 256

    def __post_init__(self) -> None:
        for name, size, step in (("frames", self.frames, 4 * TIME_STRIDE), ("pixels", self.pixels, 4 * SPACE_STRIDE)):
            if size is not None and (size < step or size % step):
                raise DataError(
                    f"VAE tiles of {size} {name} are not possible.",
                    hint=f"Use a multiple of {step}, e.g. {max(1, round(size / step)) * step}.",
                )

    def of_pixels(self) -> tuple[Tiling | None, Tiling | None]:
        """Tiles of a clip that is encoded, in time and in space."""
        return (
            Tiling(self.frames, self.frames * 3 // 4, Fraction(1, TIME_STRIDE)) if self.frames else None,
            Tiling(self.pixels, self.pixels * 3 // 4, Fraction(1, SPACE_STRIDE)) if self.pixels else None,
        )

    def of_latents(self) -> tuple[Tiling | None, Tiling | None]:
        """Tiles of latents that are decoded, in time and in space."""
        time, space = self.of_pixels()
        return time and time.reversed(), space and space.reversed()


ENCODE_TILES = Tiles(pixels=None)
DECODE_TILES = Tiles()


@dataclass(frozen=True)
class Posterior:
    """The encoder's result for a clip: a normal distribution for each latent. float32, [B, C, T, H, W]."""

    mean_BCTHW: Tensor
    logvar_BCTHW: Tensor

    def sample(self, *, generator: torch.Generator | None = None) -> Tensor:
        """One draw, float32. The noise is drawn on the generator's device, in the order of mean_BCTHW."""
        mean_BCTHW = self.mean_BCTHW
        device = mean_BCTHW.device if generator is None else generator.device
        noise = torch.randn(mean_BCTHW.shape, generator=generator, device=device, dtype=torch.float32)
        return torch.addcmul(mean_BCTHW, torch.exp(0.5 * self.logvar_BCTHW), noise.to(mean_BCTHW.device))


_LDM_MIDDLE = {
    "mid.block_1": "mid_block.resnets.0",
    "mid.block_2": "mid_block.resnets.1",
    "mid.attn_1.norm": "mid_block.attentions.0.group_norm",
    "mid.attn_1.q": "mid_block.attentions.0.to_q",
    "mid.attn_1.k": "mid_block.attentions.0.to_k",
    "mid.attn_1.v": "mid_block.attentions.0.to_v",
    "mid.attn_1.proj_out": "mid_block.attentions.0.to_out.0",
    "norm_out": "conv_norm_out",
}
_PREFIXES = ("first_stage_model.", "vae.", "module.", "model.")


def vae_name(name: str, *, levels: int = 4) -> str | None:
    """The original checkpoint's name for a VAE parameter, from original, diffusers or LDM-style names.

    LDM numbers the decoder's levels from the other end, hence `levels`. An unknown name comes back unchanged.
    """
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    side, _, rest = name.partition(".")
    if side not in ("encoder", "decoder"):
        return name
    for theirs, ours in _LDM_MIDDLE.items():
        if rest.startswith(theirs + "."):
            return f"{side}.{ours}{rest[len(theirs) :]}"
    found = re.fullmatch(r"(down|up)\.(\d+)\.(block\.(\d+)|downsample|upsample)\.(.+)", rest)
    if not found:
        return name
    way, level, kind, number, tail = found.groups()
    level = int(level) if way == "down" else levels - 1 - int(level)
    part = f"resnets.{number}" if number is not None else f"{kind}rs.0"
    return f"{side}.{way}_blocks.{level}.{part}.{tail.replace('nin_shortcut', 'conv_shortcut')}"


class _Renamed(WeightFile):
    """A VAE file under the original names; LDM's 1x1x1 convolutions appear as matrices."""

    def __init__(self, file: WeightFile) -> None:
        self.path, self.role, self.metadata = file.path, file.role, file.metadata
        self._file = file
        found = _original(file.shapes)
        self._names = {ours: theirs for ours, (theirs, _) in found.items()}
        self.shapes = {ours: shape for ours, (_, shape) in found.items()}
        self.dtypes = {ours: file.dtypes[theirs] for ours, theirs in self._names.items()}

    def read(self, name: str, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Tensor:
        return self._file.read(self._names[name], device=device, dtype=dtype).reshape(self.shapes[name])

    def identity(self) -> str:
        return self._file.identity()


def _original(shapes: Shapes) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Original name -> (the file's name, the original shape)."""
    levels = 1 + max((int(n) for name in shapes for n in re.findall(r"decoder\.up\.(\d+)\.", name)), default=3)
    found = {}
    for theirs, shape in shapes.items():
        ours = vae_name(theirs, levels=levels)
        if ours is not None:
            matrix = ".attentions." in ours and len(shape) == 5
            found[ours] = (theirs, tuple(shape[:2] if matrix else shape))
    return found


def original_shapes(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a VAE file as the original checkpoint has them."""
    return {name: shape for name, (_, shape) in _original(shapes).items()}


def build(shapes: Shapes, *, groups: int = NORM_GROUPS, device: torch.device | str = "meta") -> HunyuanVae:
    """The network for tensors of these names (original layout) and shapes, with uninitialised weights."""
    try:
        with torch.device(device):
            return HunyuanVae(shapes, groups=groups).eval().requires_grad_(False)
    except KeyError as error:
        raise WeightsError(f"The VAE lacks {error.args[0]}.", "Check that the --vae file is whole.") from error
    except ValueError as error:
        raise WeightsError(
            f"The VAE's channels do not divide into {groups} norm groups.",
            "A VAE with another number has to give it in the safetensors metadata key norm_num_groups.",
        ) from error


def load(file: WeightFile, *, device: torch.device | str, dtype: torch.dtype | None) -> HunyuanVae:
    """Load a HunyuanVideo VAE of any public layout. `dtype` None keeps the file's.

    The norms have 32 groups unless the metadata key `norm_num_groups` says otherwise. WeightsError: the file is not
    such a VAE, or it has too few or too many tensors.
    """
    renamed = _Renamed(file)
    vae = build(renamed.shapes, groups=metadata_number(file, "norm_num_groups", default=NORM_GROUPS))
    load_into(vae, renamed, rename=lambda name: name, device=device, dtype=dtype)
    if vae.device.type == "cuda":
        lay_channels_last(vae)
    return vae


def compute_dtype(device: torch.device) -> torch.dtype:
    """The default of `--vae_dtype`: float16, which the VAE was published for; float32 on a CPU."""
    return torch.float32 if device.type == "cpu" else torch.float16


@torch.no_grad()
def encode(vae: HunyuanVae, clip_BCFHW: Tensor, *, tiles: Tiles = ENCODE_TILES) -> Posterior:
    """Encode a clip to the distribution of its latents, in the VAE's own scale, on the VAE's device.

    clip_BCFHW: RGB in -1..1 on any device, 4n+1 frames, height and width multiples of 8; moved tile by tile.
    Raises DataError for a clip of another size.
    """
    check_clip(clip_BCFHW, family="HunyuanVideo", time_stride=TIME_STRIDE, space_stride=SPACE_STRIDE)
    pieces = _tiled(clip_BCFHW, lambda part: vae.to_moments(part.to(vae.device, vae.dtype)), *tiles.of_pixels())
    moments_BCTHW = torch.cat(list(pieces), dim=2).float()
    mean_BCTHW, logvar_BCTHW = moments_BCTHW.chunk(2, dim=1)
    return Posterior(mean_BCTHW, logvar_BCTHW.clamp(*LOGVAR_RANGE))


def pixel_seed(clip_CFHW: Tensor) -> int:
    """A seed that depends only on the pixels of a clip (RGB in -1..1), for draws that can be repeated.

    Neither the clip's batch nor the device changes it: pixels are rounded to 256 steps, frame by frame. Those of files
    are whole numbers 0..255, far from half-way between two, where the last bit would decide.
    """
    checksum = zlib.crc32(repr(tuple(clip_CFHW.shape)).encode())
    for frame_CHW in clip_CFHW.unbind(1):
        steps = ((frame_CHW.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        checksum = zlib.crc32(steps.cpu().contiguous().numpy(), checksum)
    return checksum


@torch.no_grad()
def seeded_latents(vae: HunyuanVae, clips_BCFHW: Tensor, *, tiles: Tiles = ENCODE_TILES) -> Tensor:
    """One draw of the posterior of each clip, float32 [B, C, T, H, W] in the VAE's own scale.

    Each clip has a generator of its own, seeded with its pixels, on the CPU: caching again gives the same latents,
    whatever the batch (musubi-tuner draws new ones each time).
    """
    posterior = encode(vae, clips_BCFHW, tiles=tiles)
    drawn = []
    for clip_CFHW, mean_CTHW, logvar_CTHW in zip(
        clips_BCFHW, posterior.mean_BCTHW, posterior.logvar_BCTHW, strict=True
    ):
        generator = torch.Generator().manual_seed(pixel_seed(clip_CFHW))
        drawn.append(Posterior(mean_CTHW, logvar_CTHW).sample(generator=generator))
    return torch.stack(drawn)


def _tiled(x_BCFHW: Tensor, run: Run, time: Tiling | None, space: Tiling | None) -> Iterator[Tensor]:
    """`run` on as many tiles as x needs; pieces along the frames, in order."""

    def run_part(part_BCFHW: Tensor) -> Tensor:
        if space and (space.needed(part_BCFHW.shape[-1]) or space.needed(part_BCFHW.shape[-2])):
            return tiled_in_space(part_BCFHW, run, space)
        return run(part_BCFHW)

    if time and time.needed(x_BCFHW.shape[2]):
        return tiled_in_time(x_BCFHW, run_part, time)
    return iter((run_part(x_BCFHW),))


@torch.no_grad()
def decode_chunks(vae: HunyuanVae, latents_BCTHW: Tensor, *, tiles: Tiles = DECODE_TILES) -> Iterator[Tensor]:
    """As `decode_frames`, straight from the network: in its dtype, and not clamped to -1..1."""
    check_latents(latents_BCTHW, channels=vae.latent_channels)
    yield from _tiled(latents_BCTHW, lambda part: vae.to_pixels(part.to(vae.device, vae.dtype)), *tiles.of_latents())


def decode_frames(vae: HunyuanVae, latents_BCTHW: Tensor, *, tiles: Tiles = DECODE_TILES) -> Iterator[Tensor]:
    """Decode tile after tile: yields clip_BCFHW pieces along F, in order, float32 RGB in -1..1, on the VAE's device.

    latents_BCTHW: in the VAE's own scale (a DiT's latents / SCALING_FACTOR), on any device.
    """
    for chunk_BCFHW in decode_chunks(vae, latents_BCTHW, tiles=tiles):
        yield chunk_BCFHW.float().clamp_(-1, 1)


def decode(vae: HunyuanVae, latents_BCTHW: Tensor, *, tiles: Tiles = DECODE_TILES) -> Tensor:
    """Decode to a whole clip_BCFHW in main memory, float32 RGB in -1..1: n latent frames make 4n-3 frames."""
    return torch.cat([chunk.cpu() for chunk in decode_frames(vae, latents_BCTHW, tiles=tiles)], dim=2)
