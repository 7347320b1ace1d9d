"""What a checkpoint is, from its tensor names and shapes (and the file's metadata) alone.

`detect` gives the variant and every dimension of a HunyuanVideo DiT in any public layout. `role_of` and `check_role`
name files of other kinds, so that a text encoder given as --dit is answered by a sentence. Reads no weights.
Cannot tell apart: HunyuanVideo and SkyReels V1 text-to-video, and Tencent's second image-to-video release (token
replacement), which all have one layout; the last would run, but not as it was trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...contract.errors import WeightsError
from ...parts import file_kinds
from ...parts.arrangement import arranged_shapes
from ...parts.dit_sizes import DEFAULT_HEAD_DIM, count_blocks, head_dim, only_part, rope_axes
from ...parts.file_kinds import Kind, has, has_any
from .keys import arrange, dit_name

Shapes = Mapping[str, tuple[int, ...]]

FAMILY = "hunyuan_video"
REFINER = "txt_in.individual_token_refiner.blocks"


@dataclass(frozen=True, kw_only=True)
class HunyuanVideoConfig:
    """Every size of a HunyuanVideo DiT. Channels count latent channels, `in_dim` those of noise and what is added."""

    dim: int
    ffn_dim: int
    refiner_ffn_dim: int
    text_dim: int
    pooled_dim: int
    in_dim: int
    out_dim: int
    num_double_blocks: int
    num_single_blocks: int
    num_refiner_blocks: int
    num_heads: int
    head_dim: int
    has_guidance: bool
    freq_dim: int = 256
    patch_size: tuple[int, int, int] = (1, 2, 2)
    rope_theta: float = 256.0

    @property
    def rope_axes(self) -> tuple[int, int, int]:
        """Columns of a head that turn with t, h and w: 16, 56, 56 of 128."""
        return rope_axes(self.head_dim)

    @property
    def concat_dim(self) -> int:
        """Channels that image conditioning adds to the noisy latents."""
        return self.in_dim - self.out_dim


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A member of the family: "t2v", "t2v-no-guidance", "i2v" or "skyreels-i2v"."""

    family: str
    name: str
    config: HunyuanVideoConfig


_TASKS = {  # task -> variants that can do it
    "t2v": ("t2v", "t2v-no-guidance"),
    "i2v": ("i2v",),
    "skyreels-i2v": ("skyreels-i2v",),
}
_HOW = {"skyreels-i2v": " --dit_in_channels 32 or --image_path asks for it;", "i2v": " no command does that yet;"}
_WORDS = {
    "t2v": "text-to-video",
    "t2v-no-guidance": "text-to-video without embedded guidance",
    "i2v": "image-to-video with image latents and a mask",
    "skyreels-i2v": "SkyReels image-to-video",
}


def detect(shapes: Shapes, metadata: Mapping[str, str], *, source: str = "This file") -> Variant:
    """The variant of a HunyuanVideo DiT in any public layout. `source` begins the messages: a flag and a file name.

    Sizes come from shapes; the head size is 128 unless the metadata key `head_dim` says otherwise.
    Raises WeightsError that says what the file looks like instead, or what of it is not supported.
    """
    check_role(shapes, wanted="dit", flag="--dit", source=source)
    names = arranged_shapes(arrange(shapes), shapes, source=source)
    config = _config(names, metadata, source)
    return Variant(family=FAMILY, name=_variant_name(config, source), config=config)


def fullest() -> HunyuanVideoConfig:
    """13B text-to-video, with embedded guidance."""
    return HunyuanVideoConfig(
        dim=3072, ffn_dim=12288, refiner_ffn_dim=12288, text_dim=4096, pooled_dim=768, in_dim=16, out_dim=16,
        num_double_blocks=20, num_single_blocks=40, num_refiner_blocks=2, num_heads=24, head_dim=DEFAULT_HEAD_DIM,
        has_guidance=True,
    )  # fmt: skip


def role_of(shapes: Shapes) -> str | None:
    """One of "dit", "vae", "text-encoder", "clip-text-encoder", "lora", another family's kind; None if unknown."""
    kind = file_kinds.kind_of(_KINDS, shapes)
    return kind.role if kind else None


def check_role(shapes: Shapes, *, wanted: str, flag: str, source: str = "This file") -> None:
    """WeightsError unless the file has the role `wanted`; the message says what it looks like and where to give it."""
    file_kinds.check_role(_KINDS, shapes, wanted=wanted, flag=flag, source=source)


def check_task(variant: Variant, task: str) -> None:
    """WeightsError when the checkpoint cannot do the job's task: "t2v", "i2v" or "skyreels-i2v"."""
    if task not in _TASKS:
        raise WeightsError(f"There is no HunyuanVideo task {task!r}.", f"Choose one of {', '.join(_TASKS)}.")
    if variant.name in _TASKS[task]:
        return
    fitting = next(name for name, variants in _TASKS.items() if variant.name in variants)
    raise WeightsError(
        f"This checkpoint takes {variant.config.in_dim} input channels ({_WORDS[variant.name]}) "
        f"but the job says {task}.",
        f"It can do {fitting};{_HOW.get(fitting, '')} for {task} choose another --dit.",
    )


def _config(names: Shapes, metadata: Mapping[str, str], source: str) -> HunyuanVideoConfig:
    try:
        dim, in_dim, *patch = names["img_in.proj.weight"]
        columns = head_dim(dim, metadata, source=source)
        return HunyuanVideoConfig(
            dim=dim,
            ffn_dim=names["double_blocks.0.img_mlp.fc1.weight"][0],
            refiner_ffn_dim=names[f"{REFINER}.0.mlp.fc1.weight"][0],
            text_dim=names["txt_in.input_embedder.weight"][1],
            pooled_dim=names["vector_in.in_layer.weight"][1],
            in_dim=in_dim,
            out_dim=names["final_layer.linear.weight"][0] // (patch[0] * patch[1] * patch[2]),
            num_double_blocks=count_blocks(names, "double_blocks"),
            num_single_blocks=count_blocks(names, "single_blocks"),
            num_refiner_blocks=count_blocks(names, REFINER),
            num_heads=dim // columns,
            head_dim=columns,
            has_guidance="guidance_in.mlp.0.weight" in names,
            freq_dim=names["time_in.mlp.0.weight"][1],
            patch_size=(patch[0], patch[1], patch[2]),
        )
    except (KeyError, ValueError, IndexError) as error:
        raise only_part(source, "a HunyuanVideo DiT", error) from error


def _variant_name(config: HunyuanVideoConfig, source: str) -> str:
    kinds = {
        0: "t2v" if config.has_guidance else "t2v-no-guidance",
        config.out_dim: "skyreels-i2v",
        config.out_dim + 1: "i2v",
    }
    if config.concat_dim not in kinds:
        raise WeightsError(
            f"{source} takes {config.in_dim} input channels for {config.out_dim} latent channels; "
            f"HunyuanVideo models take {', '.join(str(config.out_dim + extra) for extra in kinds)}.",
            "Give another --dit.",
        )
    return kinds[config.concat_dim]


def _is_dit(shapes: Shapes) -> bool:
    """The token refiner beside single-stream blocks: no other public model has both."""
    names = {dit_name(name) for name in shapes}
    return f"{REFINER}.0.norm1.weight" in names and "single_blocks.0.linear2.weight" in names


def _is_part_of_dit(shapes: Shapes) -> bool:
    """One shard of several: names that only this family has."""
    ends = ("double_blocks.0.img_attn_qkv.weight", "single_blocks.39.linear2.weight")
    return any(name.endswith(ends) or dit_name(name) == f"{REFINER}.0.norm1.weight" for name in shapes)


_KINDS = (
    file_kinds.LORA,
    Kind("framepack-dit", "a FramePack DiT", "Use the framepack commands for it.", file_kinds.is_framepack_dit),
    Kind(
        "hunyuan-1.5-dit",
        "a HunyuanVideo 1.5 or HunyuanImage 2.1 DiT",
        "These are not supported.",
        has_any("byt5_in.fc1.weight", "vision_in.proj.0.weight"),
    ),
    Kind("dit", "a HunyuanVideo DiT", "Give it as --dit.", _is_dit),
    Kind("dit", "a HunyuanVideo DiT", "Give it as --dit.", _is_part_of_dit),
    Kind(
        "flux-dit",
        "a Flux DiT",
        "It makes images and is not supported.",
        has("double_blocks.0.img_attn.qkv.weight", "txt_in.weight"),
    ),
    file_kinds.WAN_DIT,
    *file_kinds.HUNYUAN_FILES,
    Kind("wan-vae", "a Wan VAE", "HunyuanVideo has a VAE of its own.", file_kinds.is_wan_vae),
    Kind("t5-text-encoder", "a T5 text encoder", "HunyuanVideo takes LLaMA and CLIP.", file_kinds.is_t5),
    Kind("image-encoder", "an image encoder", "HunyuanVideo takes none.", file_kinds.is_clip_vision),
    Kind("image-encoder", "an image encoder", "HunyuanVideo takes none.", file_kinds.is_siglip),
)
