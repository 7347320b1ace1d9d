"""The HunyuanVideo DiT: build, load, blocks, velocity.

One class for every variant (text-to-video with and without embedded guidance, image-to-video that adds channels, 16
or 17, to the noisy latents, as SkyReels V1 does); which parts exist follows from HunyuanVideoConfig. Modules have
Tencent's names (layers.py); the maths is in parts/mmdit. Embeddings of time, guidance and pooled text, norms,
modulation sums and the last layer compute in float32 whatever the weights' type; the rest, residual stream
included, in the weights' type.
Checked against HunyuanVideo fa14b001 and diffusers 0.42.1 to 1e-5 (tests/golden, tests/families/hunyuan_video).
Knows nothing of samplers, training, memory or LoRA: these act on `blocks(dit)`. Given up: token replacement, which
Tencent's second image-to-video release needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...ops.attention import check_backend
from ...ops.device import dtype_of
from ...parts import mmdit
from ...parts.block_stack import BlockStack
from ...parts.dit import build_frozen, load_frozen, recognised
from ...parts.hunyuan_vae import SCALING_FACTOR
from ...parts.weight_views import ArrangedWeights
from ...parts.weights import main_dtype
from ..values import StepCache
from .detect import HunyuanVideoConfig, Variant, check_task, detect
from .keys import arrange, dit_name
from .layers import (
    FinalLayer,
    MMDoubleStreamBlock,
    MMSingleStreamBlock,
    PatchEmbedder,
    PooledEmbedder,
    TokenRefiner,
    ValueEmbedder,
)

GUIDANCE_UNIT = 1000.0
"""The model takes guidance times this, in training as in generation (musubi-tuner trains with it unscaled)."""


class HunyuanVideoModel(nn.Module):
    """The whole DiT: embeddings, blocks, last layer. `variant` is set by `load`."""

    def __init__(self, config: HunyuanVideoConfig, *, attention_backend: str = "auto"):
        super().__init__()
        check_backend(attention_backend)
        self.config = config
        self.variant: Variant | None = None
        self.img_in = PatchEmbedder(config)
        self.txt_in = TokenRefiner(config, backend=attention_backend)
        self.time_in = ValueEmbedder(config)
        self.vector_in = PooledEmbedder(config)
        if config.has_guidance:
            self.guidance_in = ValueEmbedder(config)
        self.double_blocks = nn.ModuleList(
            MMDoubleStreamBlock(config, backend=attention_backend) for _ in range(config.num_double_blocks)
        )
        self.single_blocks = nn.ModuleList(
            MMSingleStreamBlock(config, backend=attention_backend) for _ in range(config.num_single_blocks)
        )
        self.final_layer = FinalLayer(config)

    @property
    def dtype(self) -> torch.dtype:
        """The type that blocks compute in. Read from a layer that never becomes fp8."""
        return self.txt_in.input_embedder.weight.dtype

    def forward(
        self,
        x_BCTHW: Tensor,
        timestep_B: Tensor,
        text: Sequence[Tensor],
        *,
        pooled_BD: Tensor,
        guidance_B: Tensor | None = None,
        concat_BCTHW: Tensor | None = None,
        step_cache: StepCache = BlockStack.run,
    ) -> Tensor:
        """Velocity (noise - clean), float32 [B, out_dim, T, H, W]. All samples of one size; H and W even.

        timestep_B in 0..1000. `text`: for each sample its valid LLaMA states, [L, text_dim], unpadded. `pooled_BD`:
        CLIP's. `guidance_B`: embedded guidance times 1000; models without it ignore it. `concat_BCTHW` is put after
        x on channels (image latents; in Tencent's first image-to-video release a mask after them).
        `step_cache` wraps the blocks; TeaCache looks at the image tokens as the first block modulates them.
        Raises ValueError for a wrong number of channels, or when the model needs guidance and gets none.
        """
        if concat_BCTHW is not None:
            x_BCTHW = torch.cat([x_BCTHW, concat_BCTHW.to(x_BCTHW.dtype)], dim=1)
        if x_BCTHW.shape[1] != self.config.in_dim:
            raise ValueError(f"{x_BCTHW.shape[1]} channels for a model that takes {self.config.in_dim}")
        tokens_BTHWD = self.img_in(x_BCTHW).to(self.dtype)
        grid = tuple(tokens_BTHWD.shape[1:4])
        image_BLD = tokens_BTHWD.flatten(1, 3)
        text_BLD, lengths = mmdit.pad_text(text, dtype=self.dtype)
        text_BLD = self.txt_in(text_BLD, timestep_B, lengths)
        vector_BD = self._vector(timestep_B, pooled_BD, guidance_B)
        count = image_BLD.shape[1]
        key_lengths_B = mmdit.key_lengths(lengths, before=count)
        table = mmdit.cached_table(
            grid, axes=self.config.rope_axes, theta=self.config.rope_theta, device=image_BLD.device
        )
        cos_LD, sin_LD = mmdit.with_text(table, text_BLD.shape[1])
        given = (vector_BD, cos_LD, sin_LD, key_lengths_B)
        blocks = self._through_blocks(image_BLD, text_BLD, given)
        first = partial(self.double_blocks[0].modulated, vector_BD=vector_BD)
        stack = BlockStack(image_BLD, blocks, modulated=first)
        return mmdit.from_patches(self.final_layer(step_cache(stack), vector_BD), grid, self.config.patch_size)

    def _through_blocks(self, image_BLD: Tensor, text_BLD: Tensor, given: Sequence[Tensor | None]) -> Iterator[Tensor]:
        """The image tokens after each block."""
        for block in self.double_blocks:
            image_BLD, text_BLD = block(image_BLD, text_BLD, *given)
            yield image_BLD
        count, x_BLD = image_BLD.shape[1], torch.cat([image_BLD, text_BLD], dim=1)
        for block in self.single_blocks:
            x_BLD = block(x_BLD, *given)
            yield x_BLD[:, :count]

    def _vector(self, timestep_B: Tensor, pooled_BD: Tensor, guidance_B: Tensor | None) -> Tensor:
        vector_BD = self.time_in(timestep_B) + self.vector_in(pooled_BD)
        if not self.config.has_guidance:
            return vector_BD
        if guidance_B is None:
            raise ValueError("this model has embedded guidance and needs a value for it (times 1000)")
        return vector_BD + self.guidance_in(guidance_B)


def build(
    config: HunyuanVideoConfig,
    *,
    device: torch.device | str = "meta",
    dtype: torch.dtype = torch.float32,
    attention_backend: str = "auto",
) -> HunyuanVideoModel:
    """A model of this configuration, frozen; on "meta" it takes no memory and has names and shapes only."""
    return build_frozen(
        lambda: HunyuanVideoModel(config, attention_backend=attention_backend), device=device, dtype=dtype
    )


def load(
    path: str | Path,
    *,
    task: str | None,
    device: torch.device | str,
    dtype: torch.dtype | None = None,
    transform: Callable[[str, Tensor], Tensor] | None = None,
    attention_backend: str = "auto",
    dit_dtype: str | None = None,
    role: str = "--dit",
) -> HunyuanVideoModel:
    """Load a checkpoint in any public layout; `.variant` of the result says what it is. Weights are frozen.

    `task` None skips the comparison with the job. dtype None takes the type that most of the file's weights have
    (bfloat16 for an fp8 file); `dit_dtype` says it in a word, as --dit_dtype does. `transform(name, tensor)` sees each
    tensor, under our name and whole, before it is cast.
    Raises WeightsError: no readable file, another kind of file, not the task's.
    """
    file, variant = recognised(path, role=role, task=task, detect=detect, check_task=check_task)
    return load_frozen(
        ArrangedWeights(file, arrange(file.shapes)),
        variant,
        build,
        rename=dit_name,
        device=device,
        dtype=dtype_of(dit_dtype, main_dtype(file) if dtype is None else dtype, flag="--dit_dtype"),
        transform=transform,
        attention_backend=attention_backend,
    )


def blocks(dit: HunyuanVideoModel) -> nn.ModuleList:
    """Double-stream, then single-stream blocks: what streaming, checkpointing, compile, fp8 and LoRA act on.

    A list made for the call around the same modules: it is no child of the model, and names stay Tencent's.
    """
    return nn.ModuleList([*dit.double_blocks, *dit.single_blocks])


def velocity(
    dit: HunyuanVideoModel,
    x_BCTHW: Tensor,
    timestep_B: Tensor,
    cond: dict[str, Any],
    *,
    step_cache: StepCache = BlockStack.run,
) -> Tensor:
    """Noise - clean, float32 [B, C, T, H, W]; timestep_B in 0..1000. `step_cache` wraps the blocks.

    cond: "text", a list of [L, text_dim] (unpadded), or [B, L, text_dim] with "text_mask" [B, L] (only the list never
    waits for a GPU); "pooled" [B, pooled_dim]; "guidance" [B], times 1000; "concat" [B, C, T, H, W] where the variant
    takes image latents.
    """
    return dit(
        x_BCTHW,
        timestep_B,
        valid_text(cond["text"], cond.get("text_mask")),
        pooled_BD=cond["pooled"],
        guidance_B=cond.get("guidance"),
        concat_BCTHW=cond.get("concat"),
        step_cache=step_cache,
    )


def cond_from_batch(
    batch: Mapping[str, Any], *, guidance_scale: float = 1.0, first_frame: bool = False
) -> dict[str, Any]:
    """The conditioning in a batch of cached tensors, in training and in generation.

    "llm" [B, 256, text_dim] with "llm_mask" [B, 256], "clipL" [B, pooled_dim]. `guidance_scale` is what the model is
    told to have been guided by, in the unit of the options: it is multiplied by 1000 here. `first_frame`, for SkyReels
    image-to-video: the clip's own first latent frame ("latents", unscaled) is the image that it starts from.
    """
    pooled_BD = batch["clipL"]
    cond = {
        "text": valid_text(batch["llm"], batch["llm_mask"]),
        "pooled": pooled_BD,
        "guidance": embedded_guidance(guidance_scale, count=len(pooled_BD), device=pooled_BD.device),
    }
    if first_frame:
        cond["concat"] = first_frame_only(SCALING_FACTOR * batch["latents"].float())
    return cond


CACHED_STATES = "llm"


def check_cache(
    shapes: Mapping[str, tuple[int, ...]], *, guidance_scale: float = 1.0, first_frame: bool = False
) -> str:
    """What the cache of a sample lacks, "" when it will do; every variant needs the same tensors.

    musubi-tuner leaves text caches with one half when it is cut off between its two passes.
    """
    lacking = [name for name in ("llm", "llm_mask", "clipL") if name not in shapes]
    if not lacking:
        return ""
    return f"its text cache lacks {' and '.join(lacking)}. Run cache-text with --text_encoder1 and --text_encoder2."


def embedded_guidance(scale: float, *, count: int, device: torch.device | str) -> Tensor:
    """What `cond["guidance"]` takes for a guidance scale: the scale times 1000, float32 [count]."""
    return torch.full((count,), scale * GUIDANCE_UNIT, device=device)


def first_frame_only(latents_BCTHW: Tensor) -> Tensor:
    """What SkyReels image-to-video takes as "concat": latents (scaled) of the first frame, zeros after it."""
    kept = torch.zeros_like(latents_BCTHW)
    kept[:, :, :1] = latents_BCTHW[:, :, :1]
    return kept


def valid_text(text: Tensor | Sequence[Tensor], mask: Tensor | None) -> list[Tensor]:
    """[B, L, D] and a mask [B, L] of valid tokens as a list of [L, D]; without a mask every token is valid."""
    if mask is None:
        return list(text)
    return [sample[valid] for sample, valid in zip(text, mask.bool(), strict=True)]
