"""What a checkpoint is, from its tensor names and shapes (and the file's metadata) alone.

`detect` gives the variant and every dimension of a Wan DiT in any public layout. `role_of` and `check_role` name
files of other kinds, so that a text encoder given as --dit is answered by a sentence. `check_task` compares a
checkpoint with the job. Reads no weights. Cannot tell apart: t2v-14B, t2i-14B and each expert of t2v-A14B (one
layout), 480p and 720p, t2v- and i2v-FC.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from ...contract.errors import WeightsError
from ...parts import file_kinds
from ...parts.dit_sizes import DEFAULT_HEAD_DIM, count_blocks, head_dim, only_part
from ...parts.file_kinds import Kind, has, has_any
from ...parts.workload import BlockRun
from .keys import dit_name

Shapes = Mapping[str, tuple[int, ...]]

CLIP_TOKENS = 257
TEXT_TOKENS = 512


@dataclass(frozen=True, kw_only=True)
class WanConfig:
    """Every size of a Wan DiT. Channels count latent channels, `in_dim` those of the noise and all that is added."""

    dim: int
    ffn_dim: int
    freq_dim: int
    text_dim: int
    in_dim: int
    out_dim: int
    num_layers: int
    num_heads: int
    head_dim: int
    text_len: int = TEXT_TOKENS
    eps: float = 1e-6
    patch_size: tuple[int, int, int] = (1, 2, 2)
    image_dim: int | None = None  # width of the CLIP features; None: no image cross-attention
    image_tokens: int | None = None  # 257 for one image; 514 for two, which then carry learned positions
    reference_dim: int | None = None  # channels of the reference image latent; None: no ref_conv
    camera_dim: int | None = None  # channels of rays, 64 pixels of a frame each; None: no camera adapter
    vace_dim: int | None = None  # channels of VACE's context; None: no second row of blocks
    vace_count: int = 0  # blocks in it, spread evenly over those of the first

    @property
    def has_image_positions(self) -> bool:
        return self.image_tokens is not None and self.image_tokens > CLIP_TOKENS

    @property
    def has_ref_conv(self) -> bool:
        return self.reference_dim is not None

    @property
    def is_control(self) -> bool:
        """Fun-Control: the noise, a control and an image, of equally many channels each."""
        return self.in_dim == 3 * self.out_dim

    @property
    def vace_places(self) -> range:
        """Numbers of the blocks that hints are added to: all that a checkpoint tells of them is how many there are."""
        count = self.vace_count
        return range(0, self.num_layers, self.num_layers // count)[:count] if count else range(0)

    @property
    def runs(self) -> tuple[BlockRun, ...]:
        """The blocks in the order in which they run."""
        whole = BlockRun(kind="cross", prefix="blocks", count=self.num_layers, ffn_dim=self.ffn_dim)
        if not self.vace_count:
            return (whole,)
        ends = [*self.vace_places[1:], self.num_layers]
        found: list[BlockRun] = []
        for number, (start, end) in enumerate(zip(self.vace_places, ends, strict=True)):
            found.append(dataclasses.replace(whole, prefix="vace_blocks", first=number, count=1))
            found.append(dataclasses.replace(whole, first=start, count=end - start))
        return tuple(found)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A member of the family. `name` is a task's name where one fits ("t2v-14B"), else its kind ("t2v")."""

    family: str
    name: str
    config: WanConfig


_SIZES = {1536: "1.3B", 5120: "14B"}
_TASKS = {  # task -> (kind of checkpoint, its size)
    "t2v-1.3B": ("t2v", "1.3B"),
    "t2v-14B": ("t2v", "14B"),
    "t2i-14B": ("t2v", "14B"),
    "t2v-A14B": ("t2v", "14B"),
    "i2v-14B": ("i2v", "14B"),
    "flf2v-14B": ("flf2v", "14B"),
    "i2v-A14B": ("i2v-A", "14B"),
    "t2v-1.3B-FC": ("control", "1.3B"),
    "t2v-14B-FC": ("control", "14B"),
    "i2v-14B-FC": ("control", "14B"),
    "camera-1.3B": ("camera", "1.3B"),
    "camera-14B": ("camera", "14B"),
    "vace-1.3B": ("vace", "1.3B"),
    "vace-14B": ("vace", "14B"),
}
_TI2V_CHANNELS = 48  # Wan2.2 5B works on the latents of another VAE
_KIND_WORDS = {
    "t2v": "text-to-video",
    "i2v": "image-to-video with CLIP features",
    "flf2v": "first and last frame to video",
    "i2v-A": "image-to-video without CLIP features, as Wan2.2",
    "control": "Fun-Control",
    "camera": "Fun-Control with a camera",
    "vace": "VACE, with a second row of blocks",
    "ti2v": "Wan2.2 TI2V, which has another VAE",
}


def detect(shapes: Shapes, metadata: Mapping[str, str], *, source: str = "This file") -> Variant:
    """The variant of a Wan DiT in any public layout. `source` begins the messages: a flag and a file name.

    Sizes come from shapes; the head size is 128 unless the metadata key `head_dim` says otherwise.
    Raises WeightsError that says what the file looks like instead, or what of it is not supported.
    """
    check_role(shapes, wanted="dit", flag="--dit", source=source)
    names = {ours: tuple(shape) for name, shape in shapes.items() if (ours := dit_name(name)) is not None}
    config = _config(names, metadata, source)
    return Variant(family="wan", name=_variant_name(config), config=config)


def fullest() -> WanConfig:
    """14B with images at both ends, a reference image, a camera and VACE's blocks."""
    return WanConfig(
        dim=5120, ffn_dim=13824, freq_dim=256, text_dim=4096, in_dim=36, out_dim=16, num_layers=40, num_heads=40,
        head_dim=DEFAULT_HEAD_DIM, image_dim=1280, image_tokens=2 * CLIP_TOKENS, reference_dim=16, camera_dim=24 * 64,
        vace_dim=96, vace_count=8,
    )  # fmt: skip


def role_of(shapes: Shapes) -> str | None:
    """One of "dit", "vae", "text-encoder", "clip-vision", "lora", a kind of another family's file; None if unknown."""
    kind = file_kinds.kind_of(_KINDS, shapes)
    return kind.role if kind else None


def check_role(shapes: Shapes, *, wanted: str, flag: str, source: str = "This file") -> None:
    """WeightsError unless the file has the role `wanted`; the message says what it looks like and where to give it."""
    file_kinds.check_role(_KINDS, shapes, wanted=wanted, flag=flag, source=source)


def check_task(variant: Variant, task: str) -> None:
    """WeightsError when the checkpoint cannot do the job's task. One of no public size does any task of its kind."""
    if task not in _TASKS:
        raise WeightsError(f"There is no Wan task {task!r}.", f"Choose one of {', '.join(_TASKS)}.")
    kind, size = _kind_and_size(variant.config)
    wanted_kind, wanted_size = _TASKS[task]
    fitting = [name for name, (k, s) in _TASKS.items() if k == kind and size in (s, None)]
    fitting = fitting or [name for name, (k, _) in _TASKS.items() if k == kind]
    if task in fitting:
        return
    hint = f"Choose --task {' or '.join(fitting)}, or another --dit." if fitting else "Choose another --dit."
    if kind != wanted_kind:
        told = f"This checkpoint takes {variant.config.in_dim} input channels ({_KIND_WORDS[kind]})"
    else:
        told = f"This checkpoint is a {size} model (width {variant.config.dim})"
    raise WeightsError(f"{told} but the job says {task}.", hint)


def _config(names: Shapes, metadata: Mapping[str, str], source: str) -> WanConfig:
    try:
        dim, in_dim, *patch = names["patch_embedding.weight"]
        image = names.get("img_emb.proj.0.weight")
        positions = names.get("img_emb.emb_pos")
        reference, camera = names.get("ref_conv.weight"), names.get("control_adapter.conv.weight")
        vace = names.get("vace_patch_embedding.weight")
        layers, vace_count = count_blocks(names, "blocks"), count_blocks(names, "vace_blocks") if vace else 0
        if vace_count > layers:
            raise ValueError(f"{vace_count} VACE blocks for {layers}")
        cells = patch[0] * patch[1] * patch[2]
        columns = head_dim(dim, metadata, source=source)
        return WanConfig(
            dim=dim,
            ffn_dim=names["blocks.0.ffn.0.weight"][0],
            freq_dim=names["time_embedding.0.weight"][1],
            text_dim=names["text_embedding.0.weight"][1],
            in_dim=in_dim,
            out_dim=names["head.head.weight"][0] // cells,
            num_layers=layers,
            num_heads=dim // columns,
            head_dim=columns,
            patch_size=(patch[0], patch[1], patch[2]),
            image_dim=image[0] if image else None,
            image_tokens=(positions[1] if positions else CLIP_TOKENS) if image else None,
            reference_dim=reference[1] if reference else None,
            camera_dim=camera[1] if camera else None,
            vace_dim=vace[1] if vace else None,
            vace_count=vace_count,
        )
    except (KeyError, ValueError, IndexError) as error:
        raise only_part(source, "a Wan DiT", error) from error


def _kind_and_size(config: WanConfig) -> tuple[str, str | None]:
    """The kind of checkpoint and its public size, None for a size that nobody published."""
    extra = config.in_dim - config.out_dim
    if config.vace_dim is not None:
        kind = "vace"
    elif config.camera_dim is not None:
        kind = "camera"
    elif extra == 0:
        kind = "ti2v" if config.out_dim == _TI2V_CHANNELS else "t2v"
    elif config.has_image_positions:
        kind = "flf2v"
    elif extra == 2 * config.out_dim:
        kind = "control"
    else:
        kind = "i2v" if config.image_dim else "i2v-A"
    return kind, _SIZES.get(config.dim)


def _variant_name(config: WanConfig) -> str:
    kind, size = _kind_and_size(config)
    for task, pair in _TASKS.items():
        if pair == (kind, size):
            return task
    return f"{kind}-{size}" if size else kind


def _is_wan_dit(shapes: Shapes) -> bool:
    names = {dit_name(name) for name in shapes}
    return {"blocks.0.self_attn.q.weight", "blocks.0.cross_attn.q.weight"} <= names or {
        "patch_embedding.weight",
        "head.modulation",
    } <= names


def _is_plain_t5(shapes: Shapes) -> bool:
    """T5 keeps its position biases in the first block only; UMT5, which Wan needs, has them in every block."""
    layer = "encoder.block.1.layer.0.SelfAttention"
    return has(f"{layer}.q.weight")(shapes) and not has(f"{layer}.relative_attention_bias.weight")(shapes)


_KINDS = (
    file_kinds.LORA,
    Kind("dit", "a Wan DiT", "Give it as --dit.", _is_wan_dit),
    Kind("vae", "a Wan VAE", "Give it as --vae.", file_kinds.is_wan_vae),
    Kind("t5-text-encoder", "a T5 text encoder", "Wan needs UMT5, a multilingual relative of it.", _is_plain_t5),
    Kind("text-encoder", "a UMT5 text encoder", "Give it as --t5.", file_kinds.is_t5),
    Kind("clip-vision", "a CLIP image encoder", "Give it as --clip.", file_kinds.is_clip_vision),
    Kind("framepack-dit", "a FramePack DiT", "Use the framepack commands for it.", file_kinds.is_framepack_dit),
    Kind(
        "hunyuan-video-dit",
        "a HunyuanVideo DiT",
        "Use the hunyuan-video commands for it.",
        has_any("double_blocks.0.img_attn_qkv.weight", "transformer_blocks.0.attn.add_q_proj.weight"),
    ),
    Kind(
        "hunyuan-video-vae",
        "a HunyuanVideo VAE",
        "Use the hunyuan-video or framepack commands for it.",
        file_kinds.is_hunyuan_vae,
    ),
    Kind(
        "llama-text-encoder",
        "a LLaMA text encoder",
        "HunyuanVideo and FramePack take it as --text_encoder1.",
        file_kinds.is_llama,
    ),
    Kind(
        "clip-text-encoder",
        "a CLIP text encoder",
        "HunyuanVideo and FramePack take it as --text_encoder2.",
        file_kinds.is_clip_text,
    ),
    Kind("siglip-vision", "a SigLIP image encoder", "FramePack takes it as --image_encoder.", file_kinds.is_siglip),
    file_kinds.TINY_VAE,
)
