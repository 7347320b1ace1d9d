"""What a checkpoint is, from its tensor names and shapes (and the file's metadata) alone.

`detect` gives every dimension of a FramePack DiT in any public layout. `role_of` and `check_role` name files of other
kinds, so that a HunyuanVideo DiT given as --dit is answered by a sentence. Reads no weights. Cannot tell apart: the
first release and F1, which differ in training and in how history is laid out, not in a single shape; the job says
which it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...contract.errors import WeightsError
from ...parts import file_kinds
from ...parts.dit_sizes import DEFAULT_HEAD_DIM, count_blocks, head_dim, only_part, rope_axes
from ...parts.file_kinds import Kind, has_any
from .keys import dit_name

Shapes = Mapping[str, tuple[int, ...]]

ROPE_THETA = 256.0
_REFINER = "context_embedder.token_refiner.refiner_blocks"
TASKS = ("i2v", "f1")
"""i2v: the first release, which makes a video from its end to its start. f1: forward in time."""


@dataclass(frozen=True, kw_only=True)
class FramePackConfig:
    """Every size of a FramePack DiT. Widths are numbers of features, channels those of latents."""

    dim: int
    ffn_dim: int
    refiner_ffn_dim: int  # always four times dim in diffusers, whatever ffn_dim
    in_dim: int
    out_dim: int
    text_dim: int
    pooled_dim: int
    num_layers: int  # double-stream blocks
    num_single_layers: int
    num_refiner_layers: int
    num_heads: int
    head_dim: int
    patch_size: tuple[int, int, int] = (1, 2, 2)
    image_dim: int | None = None  # width of the SigLIP features; None: no image tokens
    has_guidance: bool = True
    rope_axes: tuple[int, int, int]  # columns of a head that turn with t, h and w
    rope_theta: float = ROPE_THETA


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A member of the family. `name` is "i2v" unless the job says "f1"; the file cannot tell."""

    family: str
    name: str
    config: FramePackConfig


def detect(shapes: Shapes, metadata: Mapping[str, str], *, source: str = "This file") -> Variant:
    """The variant of a FramePack DiT in any public layout. `source` begins the messages: a flag and a file name.

    Sizes come from shapes; the head size is 128 unless the metadata key `head_dim` says otherwise.
    Raises WeightsError that says what the file looks like instead.
    """
    check_role(shapes, wanted="dit", flag="--dit", source=source)
    names = {ours: tuple(shape) for name, shape in shapes.items() if (ours := dit_name(name)) is not None}
    return Variant(family="framepack", name=TASKS[0], config=_config(names, metadata, source))


def fullest() -> FramePackConfig:
    """The published model."""
    return FramePackConfig(
        dim=3072, ffn_dim=12288, refiner_ffn_dim=12288, in_dim=16, out_dim=16, text_dim=4096, pooled_dim=768,
        num_layers=20, num_single_layers=40, num_refiner_layers=2, num_heads=24, head_dim=DEFAULT_HEAD_DIM,
        image_dim=1152, rope_axes=rope_axes(DEFAULT_HEAD_DIM),
    )  # fmt: skip


def role_of(shapes: Shapes) -> str | None:
    """One of "dit", "vae", "text-encoder", "clip-text-encoder", "image-encoder", "lora", another family's kind, None.

    text-encoder is LLaMA, image-encoder SigLIP. None: not known.
    """
    kind = file_kinds.kind_of(_KINDS, shapes)
    return kind.role if kind else None


def check_role(shapes: Shapes, *, wanted: str, flag: str, source: str = "This file") -> None:
    """WeightsError unless the file has the role `wanted`; the message says what it looks like and where to give it."""
    file_kinds.check_role(_KINDS, shapes, wanted=wanted, flag=flag, source=source)


def check_task(variant: Variant, task: str) -> None:
    """WeightsError for a task that FramePack does not have. Every checkpoint fits both: see the module's docstring."""
    if task not in TASKS:
        raise WeightsError(f"There is no FramePack task {task!r}.", f"Choose one of {', '.join(TASKS)}.")


def _config(names: Shapes, metadata: Mapping[str, str], source: str) -> FramePackConfig:
    try:
        dim, in_dim, *patch = names["x_embedder.proj.weight"]
        image = names.get("image_projection.up.weight")
        columns = head_dim(dim, metadata, source=source)
        return FramePackConfig(
            dim=dim,
            ffn_dim=names["transformer_blocks.0.ff.net.0.proj.weight"][0],
            refiner_ffn_dim=names[f"{_REFINER}.0.ff.net.0.proj.weight"][0],
            in_dim=in_dim,
            out_dim=names["proj_out.weight"][0] // (patch[0] * patch[1] * patch[2]),
            text_dim=names["context_embedder.proj_in.weight"][1],
            pooled_dim=names["time_text_embed.text_embedder.linear_1.weight"][1],
            num_layers=count_blocks(names, "transformer_blocks"),
            num_single_layers=count_blocks(names, "single_transformer_blocks"),
            num_refiner_layers=count_blocks(names, _REFINER),
            num_heads=dim // columns,
            head_dim=columns,
            patch_size=(patch[0], patch[1], patch[2]),
            image_dim=image[1] if image else None,
            has_guidance="time_text_embed.guidance_embedder.linear_1.weight" in names,
            rope_axes=rope_axes(columns),
        )
    except (KeyError, ValueError, IndexError) as error:
        raise only_part(source, "a FramePack DiT", error) from error


_KINDS = (
    file_kinds.LORA,
    Kind("dit", "a FramePack DiT", "Give it as --dit.", file_kinds.is_framepack_dit),
    Kind(
        "hunyuan-video-dit",
        "a HunyuanVideo DiT",
        "Use the hunyuan-video commands for it.",
        has_any(  # the token refiner, which Flux does not have
            "txt_in.individual_token_refiner.blocks.0.self_attn_qkv.weight",
            "txt_in.individual_token_refiner.blocks.0.self_attn.qkv.weight",
            f"{_REFINER}.0.attn.to_q.weight",
        ),
    ),
    file_kinds.WAN_DIT,
    *file_kinds.HUNYUAN_FILES,
    Kind("wan-vae", "a Wan VAE", "Use the wan commands for it.", file_kinds.is_wan_vae),
    Kind(
        "t5-text-encoder", "a T5 or UMT5 text encoder", "Use the wan commands for it, if it is UMT5.", file_kinds.is_t5
    ),
    Kind(
        "clip-vision",
        "a CLIP image encoder",
        "FramePack sees images through SigLIP instead.",
        file_kinds.is_clip_vision,
    ),
    Kind("image-encoder", "a SigLIP image encoder", "Give it as --image_encoder.", file_kinds.is_siglip),
)
