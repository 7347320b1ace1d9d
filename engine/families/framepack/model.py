"""The FramePack DiT: build, load, blocks, velocity.

HunyuanVideo's double- and single-stream blocks over a row of tokens in which the section that is made comes last:
history embedded with patches four, two and one times as large stands before it, each frame at its own place in time.
SigLIP tokens stand before the text. One class for the first release and F1, which differ in how history is laid out
(`sections`). Modules have the published checkpoint's names, which are diffusers'; the maths of the blocks is
`parts.mmdit`. Embeddings of time, guidance and pooled text, norms, sums and the last layer compute in float32
whatever the weights' type; the rest, residual stream included, in the weights' type.
Checked against lllyasviel/FramePack 97fe5dbe and diffusers 0.42.1 to 1e-5 (tests/golden, tests/families/framepack).
Knows nothing of samplers, sections, training, memory or LoRA: these act on `blocks(dit)`; a step cache wraps
`run_blocks`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ...ops.attention import check_backend
from ...parts.block_stack import BlockStack
from ...parts.dit import build_frozen, load_frozen, recognised
from ...parts.embeddings import Float32Linear, modulated_norm
from ...parts.mmdit import EPS, Modulation, from_patches, key_lengths, with_text
from ..values import StepCache
from .detect import FramePackConfig, Shapes, Variant, check_task, detect
from .embedders import (
    ConditionEmbedding,
    HistoryEmbedding,
    ImageProjection,
    PatchEmbedding,
    TextEmbedding,
    packed_table,
)
from .keys import dit_name
from .layers import HunyuanVideoSingleTransformerBlock, HunyuanVideoTransformerBlock

GUIDANCE_SCALE = 10.0
"""Embedded guidance that the published models are made for."""

Indices = Sequence[Sequence[int]]


class History(NamedTuple):
    """Clean latent frames that condition a section: [B, C, T, H, W] and for each sample their T places in time."""

    latents_BCTHW: torch.Tensor
    indices: Indices


class Tokens(NamedTuple):
    """What the blocks work on, and what they are given beside it. Rotary tables are [L, D/2] or [B, L, D/2]."""

    image_BLD: torch.Tensor
    text_BLD: torch.Tensor
    vector_BD: torch.Tensor
    cos_LD: torch.Tensor
    sin_LD: torch.Tensor
    key_lengths_B: torch.Tensor | None


class FramePackModel(nn.Module):
    """The whole DiT. `variant` is set by `load`. A forward pass is `embed`, `run_blocks`, `finish`."""

    def __init__(self, config: FramePackConfig, *, attention_backend: str = "auto"):
        super().__init__()
        check_backend(attention_backend)
        self.config = config
        self.variant: Variant | None = None
        dim = config.dim
        self.x_embedder = PatchEmbedding(config.in_dim, dim, patch_size=config.patch_size)
        self.context_embedder = TextEmbedding(config, backend=attention_backend)
        self.time_text_embed = ConditionEmbedding(config.pooled_dim, dim, has_guidance=config.has_guidance)
        self.transformer_blocks = nn.ModuleList(
            HunyuanVideoTransformerBlock(config, backend=attention_backend) for _ in range(config.num_layers)
        )
        self.single_transformer_blocks = nn.ModuleList(
            HunyuanVideoSingleTransformerBlock(config, backend=attention_backend)
            for _ in range(config.num_single_layers)
        )
        self.norm_out = Modulation(dim, 2)
        cells = config.patch_size[0] * config.patch_size[1] * config.patch_size[2]
        self.proj_out = Float32Linear(dim, cells * config.out_dim)
        if config.image_dim is not None:
            self.image_projection = ImageProjection(config.image_dim, dim)
        self.clean_x_embedder = HistoryEmbedding(config.in_dim, dim, patch_size=config.patch_size)
        # in a tuple, so that the blocks are not registered a second time under other names
        self._in_order = (nn.ModuleList([*self.transformer_blocks, *self.single_transformer_blocks]),)

    @property
    def dtype(self) -> torch.dtype:
        """The type that blocks compute in. Read from a layer that never becomes fp8."""
        return self.context_embedder.proj_in.weight.dtype

    def forward(
        self,
        x_BCTHW: torch.Tensor,
        timestep_B: torch.Tensor,
        text: Sequence[torch.Tensor],
        pooled_BD: torch.Tensor,
        *,
        step_cache: StepCache = BlockStack.run,
        **conditioning: Any,
    ) -> torch.Tensor:
        """Velocity, float32 [B, C, T, H, W]; timestep_B in 0..1000. The conditioning is that of `embed`."""
        tokens = self.embed(x_BCTHW, timestep_B, text, pooled_BD, **conditioning)
        vector_BD = tokens.vector_BD
        first = partial(self.transformer_blocks[0].modulated, vector_BD=vector_BD)
        stack = BlockStack(tokens.image_BLD, self.run_blocks(tokens), modulated=first)
        return self.finish(step_cache(stack), vector_BD, x_BCTHW.shape[2:])

    def embed(
        self,
        x_BCTHW: torch.Tensor,
        timestep_B: torch.Tensor,
        text: Sequence[torch.Tensor],
        pooled_BD: torch.Tensor,
        *,
        image_BLD: torch.Tensor | None = None,
        guidance_scale: float | torch.Tensor = GUIDANCE_SCALE,
        indices: Indices | None = None,
        history: Sequence[History | None] = (None, None, None),
        rope_scaling: tuple[float, float] | None = None,
    ) -> Tokens:
        """The tokens that go into the blocks. The arguments are explained at `velocity`.

        `history` is for patches 1, 2 and 4 times as large.
        """
        config, (_, _, frames, height, width) = self.config, x_BCTHW.shape
        clean = self.clean_x_embedder([None if one is None else one.latents_BCTHW for one in history])
        oldest_first = [part for part in reversed(clean) if part is not None]
        tokens_BLD = torch.cat([*oldest_first, self.x_embedder(x_BCTHW)], dim=1)
        places = [None if one is None else one.indices for one in history]
        table = packed_table(
            [[range(frames)] if indices is None else indices, *places],
            height=height // config.patch_size[1],
            width=width // config.patch_size[2],
            axes=config.rope_axes,
            theta=config.rope_theta,
            timestep_B=timestep_B,
            scaling=rope_scaling,
        )
        if table[0].shape[-2] != tokens_BLD.shape[1]:
            raise ValueError(f"places in time for {table[0].shape[-2]} tokens, but there are {tokens_BLD.shape[1]}")
        vector_BD = self.time_text_embed(timestep_B, pooled_BD, guidance_scale)
        text_BLD, lengths = self.context_embedder(text, timestep_B)
        if image_BLD is not None:
            text_BLD = torch.cat([self.image_projection(image_BLD.to(self.dtype)), text_BLD], dim=1)
        cos_LD, sin_LD = with_text(table, text_BLD.shape[1])
        before = tokens_BLD.shape[1] + text_BLD.shape[1] - max(lengths)
        return Tokens(tokens_BLD, text_BLD, vector_BD, cos_LD, sin_LD, key_lengths(lengths, before=before))

    def run_blocks(self, tokens: Tokens) -> Iterator[torch.Tensor]:
        """The image tokens, history included, after each block."""
        image_BLD, text_BLD, *given = tokens
        for block in self.transformer_blocks:
            image_BLD, text_BLD = block(image_BLD, text_BLD, *given)
            yield image_BLD
        count, x_BLD = image_BLD.shape[1], torch.cat([image_BLD, text_BLD], dim=1)
        for block in self.single_transformer_blocks:
            x_BLD = block(x_BLD, *given)
            yield x_BLD[:, :count]

    def finish(self, image_BLD: torch.Tensor, vector_BD: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        """The section's tokens, which are the last, to velocity of latent size (T, H, W): float32 [B, C, T, H, W]."""
        patch = self.config.patch_size
        grid = [n // step for n, step in zip(size, patch, strict=True)]
        scale, shift = self.norm_out(vector_BD)
        own_BLD = image_BLD[:, image_BLD.shape[1] - grid[0] * grid[1] * grid[2] :]
        values = self.proj_out(modulated_norm(own_BLD, shift, scale, eps=EPS))
        return from_patches(values, grid, patch)


def build(
    config: FramePackConfig,
    *,
    device: torch.device | str = "meta",
    dtype: torch.dtype = torch.float32,
    attention_backend: str = "auto",
) -> FramePackModel:
    """A model of this configuration, frozen; on "meta" it takes no memory and has names and shapes only."""
    return build_frozen(lambda: FramePackModel(config, attention_backend=attention_backend), device=device, dtype=dtype)


def load(
    path: str | Path,
    *,
    task: str | None,
    device: torch.device | str,
    dtype: torch.dtype | None = None,
    transform: Callable[[str, torch.Tensor], torch.Tensor] | None = None,
    attention_backend: str = "auto",
    role: str = "--dit",
) -> FramePackModel:
    """Load a checkpoint in any public layout; `.variant` of the result says what it is. Weights are frozen.

    `task` "f1" or "i2v" names the variant, which the file cannot tell; None means "i2v". dtype None takes the type
    that most of the file's weights have (bfloat16 for an fp8 file). `transform(name, tensor)` sees each tensor before
    it is cast: LoRA merging. Raises WeightsError: no readable file, another kind of file, no such task.
    """
    file, variant = recognised(path, role=role, task=task, detect=detect, check_task=check_task)
    return load_frozen(
        file,
        replace(variant, name=task or variant.name),
        build,
        rename=dit_name,
        device=device,
        dtype=dtype,
        transform=transform,
        attention_backend=attention_backend,
    )


def blocks(dit: FramePackModel) -> nn.ModuleList:
    """The blocks in the order in which they run, double-stream ones first: the same list at every call.

    What streaming, checkpointing, compile, fp8 and LoRA act on. Not part of the model's names.
    """
    return dit._in_order[0]


def velocity(
    dit: FramePackModel,
    x_BCTHW: torch.Tensor,
    timestep_B: torch.Tensor,
    cond: dict[str, Any],
    *,
    step_cache: StepCache = BlockStack.run,
) -> torch.Tensor:
    """Noise - clean of one section, float32 [B, C, T, H, W]; timestep_B in 0..1000. `step_cache` wraps the blocks.

    cond, where indices are Python numbers (a list for each sample, or one for all) so that nothing waits for a GPU:
    "text"            list of LLaMA states [L, 4096], each at its own length, at least 1
    "pooled"          CLIP's pooled text [B, 768]
    "image"           SigLIP states of the start image [B, 729, 1152]
    "guidance"        embedded guidance scale, a number or [B] (10 is what the models are made for; the default)
    "indices"         the places in time of the section's latent frames (default 0 … T-1)
    "clean", "clean_2x", "clean_4x"                           latents [B, C, T, H, W] of history and start, or absent
    "clean_indices", "clean_2x_indices", "clean_4x_indices"   their places in time
    "rope_scaling"    (factor, threshold): multiply the h and w positions by factor at timesteps >= threshold
    """
    history = [
        History(cond[name], cond[f"{name}_indices"]) if cond.get(name) is not None else None
        for name in ("clean", "clean_2x", "clean_4x")
    ]
    return dit(
        x_BCTHW,
        timestep_B,
        cond["text"],
        cond["pooled"],
        image_BLD=cond.get("image"),
        guidance_scale=cond.get("guidance", GUIDANCE_SCALE),
        indices=cond.get("indices"),
        history=history,
        rope_scaling=cond.get("rope_scaling"),
        step_cache=step_cache,
    )


def cond_from_batch(
    batch: Mapping[str, Any],
    *,
    guidance_scale: float = GUIDANCE_SCALE,
    rope_scaling: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """The conditioning in a training batch of cached tensors, which are on the CPU (see musubi-tuner's names there).

    "llama_vec" [B, 512, 4096] is cut to what "llama_attention_mask" counts. Where 2x or 4x indices are cached without
    latents (one-frame training), the latents are zeros. `rope_scaling`: see `velocity`.
    """
    lengths = batch["llama_attention_mask"].sum(dim=1).tolist()
    cond: dict[str, Any] = {
        "text": [row[: int(length)] for row, length in zip(batch["llama_vec"], lengths, strict=True)],
        "pooled": batch["clip_l_pooler"],
        "image": batch["image_embeddings"],
        "guidance": guidance_scale,
        "indices": batch["latent_indices"].tolist(),
        "rope_scaling": rope_scaling,
    }
    clean = batch["latents_clean"]
    for name in ("clean", "clean_2x", "clean_4x"):
        key = f"{name.replace('clean', 'clean_latent')}_indices"
        if key not in batch:
            continue
        indices = batch[key].tolist()
        cond[f"{name}_indices"] = indices
        cond[name] = batch.get(f"latents_{name}")
        if cond[name] is None:
            cond[name] = clean.new_zeros(*clean.shape[:2], len(indices[0]), *clean.shape[3:])
    return cond


CACHED_LATENTS = ("latents_clean", "latent_indices", "clean_latent_indices")
CACHED_TEXT = ("llama_vec", "llama_attention_mask", "clip_l_pooler")


CACHED_STATES = "llama_vec"


def check_cache(shapes: Shapes, *, guidance_scale: float = GUIDANCE_SCALE) -> str:
    """What a cache file of these tensors lacks for training, with the command that adds it; "" when it will do."""
    if any(name not in shapes for name in CACHED_TEXT):
        return "its text cache lacks LLaMA's or CLIP's part. Run cache-text framepack."
    if any(name not in shapes for name in CACHED_LATENTS):
        return "it has no history of a FramePack section. Run cache-latents framepack."
    if "image_embeddings" not in shapes:
        return "it lacks SigLIP's view of the start image. Run cache-latents framepack with --image_encoder."
    return ""


CHECKED_VALUES = ("latent_indices", "clean_latent_indices")


def check_values(values: Mapping[str, torch.Tensor], *, task: str | None) -> str:
    """What is wrong with the places in time in a cache, when its history is the other release's; "" when it will do.

    The first release has the newest frame of history behind the section, F1 before it (sections.py), in musubi-tuner's
    caches too. A single frame stands anywhere, so both releases take it.
    """
    if any(name not in values for name in CHECKED_VALUES) or values["latent_indices"].numel() < 2:
        return ""
    of_f1 = bool(values["clean_latent_indices"].max() < values["latent_indices"].min())
    if of_f1 and task != "f1":
        return (
            "it was made with --f1 (its history comes before the section), but this training is without --f1. "
            "Add --f1 if --dit is FramePack F1; else run cache-latents framepack again without --f1."
        )
    if not of_f1 and task == "f1":
        return (
            "it was made without --f1 (its history comes after the section), but this training has --f1. "
            "Run cache-latents framepack again with --f1; or leave out --f1 here if --dit is the first FramePack."
        )
    return ""
