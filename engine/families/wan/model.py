"""The Wan DiT: build, load, blocks, velocity.

One class for every variant of the Wan2.1 architecture (t2v, i2v with CLIP, first and last frame, Fun-Control with its
reference image or a camera, VACE, and each expert of Wan2.2 A14B); WanConfig decides which parts exist. Modules have
the original checkpoint's names. Time embedding, norms, modulation and head compute in float32 whatever the type of the
weights; everything else, residual stream included, in the type of the weights, as in musubi-tuner and diffusers (the
official code keeps the stream in float32). Checked against Wan-Video/Wan2.1 9737cba9, diffusers 0.42.1 and, with a
camera, ComfyUI, to 1e-5 (tests/golden, tests/families/wan). Knows nothing of samplers, training, memory or LoRA: these
act on `blocks(dit)`. Given up: a timestep per token, as in Wan2.2: only its 5B model, which has another VAE, ever gets
different ones.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...ops.attention import check_backend
from ...parts.block_stack import BlockStack
from ...parts.dit import build_frozen, load_frozen, recognised
from ...parts.embeddings import Float32Linear, PatchConv3d, timestep_features
from ...parts.rope import cached_wan_table
from ..values import StepCache
from .conditions import control_condition
from .detect import CLIP_TOKENS, Variant, WanConfig, check_task, detect
from .keys import dit_name
from .layers import CameraAdapter, Head, ImageEmbedding, VaceWanAttentionBlock, WanAttentionBlock
from .variants import DEFAULT_TASK, MASK_CHANNELS, VARIANTS, takes_two_images


class WanModel(nn.Module):
    """The whole DiT: embeddings, blocks, head. `variant` is set by `load`."""

    def __init__(self, config: WanConfig, *, attention_backend: str = "auto"):
        super().__init__()
        check_backend(attention_backend)
        self.config = config
        self.variant: Variant | None = None
        dim = config.dim
        self.patch_embedding = PatchConv3d(config.in_dim, dim, patch_size=config.patch_size)
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim)
        )
        self.time_embedding = nn.Sequential(Float32Linear(config.freq_dim, dim), nn.SiLU(), Float32Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), Float32Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(
            WanAttentionBlock(config, backend=attention_backend) for _ in range(config.num_layers)
        )
        self.head = Head(config)
        if config.image_dim is not None:
            self.img_emb = ImageEmbedding(config)
        if config.reference_dim is not None:
            patch = config.patch_size[1:]
            self.ref_conv = nn.Conv2d(config.reference_dim, dim, kernel_size=patch, stride=patch)
        if config.camera_dim is not None:
            self.control_adapter = CameraAdapter(config)
        if config.vace_dim is not None:
            self.vace_patch_embedding = PatchConv3d(config.vace_dim, dim, patch_size=config.patch_size)
            self.vace_blocks = nn.ModuleList(
                VaceWanAttentionBlock(config, backend=attention_backend, first=number == 0)
                for number in range(config.vace_count)
            )

    @property
    def dtype(self) -> torch.dtype:
        """The type in which blocks compute, read from a layer that is never fp8."""
        return self.text_embedding[0].weight.dtype

    def forward(
        self,
        x_BCTHW: torch.Tensor,
        timestep_B: torch.Tensor,
        text: Sequence[torch.Tensor],
        *,
        y_BCTHW: torch.Tensor | None = None,
        clip_BLD: torch.Tensor | None = None,
        reference_BCHW: torch.Tensor | None = None,
        camera_BCTHW: torch.Tensor | None = None,
        vace_BCTHW: torch.Tensor | None = None,
        vace_strength: float = 1.0,
        frame_indices: Sequence[Sequence[float]] | None = None,
        skip_blocks: Collection[int] = (),
        step_cache: StepCache = BlockStack.run,
    ) -> torch.Tensor:
        """Velocity (noise - clean), float32 [B, out_dim, T, H, W]. All samples have the same size; H and W are even.

        timestep_B in 0..1000. `text`: [L, text_dim] per sample, L <= 512, unpadded: padding is added here and attended
        to, as in the model's training. `y_BCTHW`: channels appended to x (mask and image, or control latents).
        `clip_BLD`: [B, 257, 1280]; for two images a sample [B, 514, 1280] or [2B, 257, 1280]. `reference_BCHW`: latent
        of Fun-Control's reference image. `camera_BCTHW`: rays (camera.py). `vace_BCTHW`: VACE's context (conditions.py)
        for a video of x's size, whose hints count `vace_strength` times; None: no hints. `frame_indices`: for each
        sample the positions in time of its latent frames, instead of 0 … T-1 (one-frame); Python numbers, so that
        nothing waits for the GPU. `skip_blocks`: numbers of blocks to leave out, for skip layer guidance. `step_cache`
        wraps the blocks; TeaCache is shown the time embedding.
        """
        x_BLD, grid, own = self._tokens(x_BCTHW, y_BCTHW, camera_BCTHW, reference_BCHW)
        cos_LD, sin_LD = self._rotary_table(grid, frame_indices, x_BLD.device)
        time_BD = self.time_embedding(timestep_features(timestep_B, dim=self.config.freq_dim))
        time_B6D = self.time_projection(time_BD).unflatten(1, (6, -1))
        text_BLD = self.text_embedding(self._padded(text))
        image_BLD = None if clip_BLD is None else self.img_emb(self._image_tokens(clip_BLD))
        seen = (time_B6D, cos_LD, sin_LD, text_BLD, image_BLD)
        control_BLD = None if vace_BCTHW is None else self._control_tokens(vace_BCTHW)
        blocks = self._through_blocks(x_BLD, control_BLD, seen, vace_strength=vace_strength, skip_blocks=skip_blocks)
        stack = BlockStack(x_BLD, blocks, modulated=lambda _: time_B6D)
        del control_BLD  # the VACE blocks replace it as they go: do not hold the first one
        values = self.head(step_cache(stack), time_BD)
        return self._to_video(values[:, values.shape[1] - own.numel() :], own)

    def _tokens(
        self,
        x_BCTHW: torch.Tensor,
        y_BCTHW: torch.Tensor | None,
        camera_BCTHW: torch.Tensor | None,
        reference_BCHW: torch.Tensor | None,
    ) -> tuple[torch.Tensor, tuple[int, ...], torch.Size]:
        """(tokens for the blocks, their number in time, height and width, that of the video's own tokens).

        The video's own tokens come last, after those of a reference image.
        """
        if y_BCTHW is not None:
            x_BCTHW = torch.cat([x_BCTHW, y_BCTHW.to(x_BCTHW.dtype)], dim=1)
        tokens_BTHWD = self.patch_embedding(x_BCTHW).to(self.dtype)
        own, x_BLD = tokens_BTHWD.shape[1:4], tokens_BTHWD.flatten(1, 3)
        if camera_BCTHW is not None:
            x_BLD = x_BLD + self.control_adapter(camera_BCTHW)
        if reference_BCHW is None:
            return x_BLD, tuple(own), own
        return *self._prepend_reference(x_BLD, tuple(own), reference_BCHW), own

    def _through_blocks(
        self,
        x_BLD: torch.Tensor,
        control_BLD: torch.Tensor | None,
        seen: Sequence[torch.Tensor | None],
        *,
        vace_strength: float,
        skip_blocks: Collection[int],
    ) -> Iterator[torch.Tensor]:
        """Run the blocks; yields the tokens after each one."""
        for number, block in enumerate(self.blocks):
            hint_BLD = None
            if control_BLD is not None and number in self.config.vace_places:
                control_BLD, hint_BLD = self._hint(number, control_BLD, x_BLD, seen)
            if number not in skip_blocks:
                x_BLD = block(x_BLD, *seen)
            if hint_BLD is not None:
                x_BLD = torch.add(x_BLD, hint_BLD, alpha=vace_strength)
            yield x_BLD

    def _control_tokens(self, vace_BCTHW: torch.Tensor) -> torch.Tensor:
        return self.vace_patch_embedding(vace_BCTHW).to(self.dtype).flatten(1, 3)

    def _hint(
        self, number: int, control_BLD: torch.Tensor, x_BLD: torch.Tensor, seen: Sequence[torch.Tensor | None]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(control tokens, hint) from the VACE block that belongs to block `number`, just before that block runs.

        The official code computes all hints first, and so holds as many tensors of the tokens' size.
        """
        block = self.vace_blocks[self.config.vace_places.index(number)]
        return block(control_BLD, *seen, video_BLD=x_BLD if number == 0 else None)

    def _padded(self, text: Sequence[torch.Tensor]) -> torch.Tensor:
        longest = max(len(sample) for sample in text)
        if longest > self.config.text_len:
            raise ValueError(f"a caption of {longest} tokens, more than the model's {self.config.text_len}")
        length = self._text_length(longest, text[0].device)
        return torch.stack([F.pad(sample.to(self.dtype), (0, 0, 0, length - len(sample))) for sample in text])

    def _text_length(self, longest: int, device: torch.device) -> int:
        """The length that captions are padded to.

        On a CPU only one token of padding, which attention counts as many times as needed (`padded_attention`): it
        saves most of a small model's work. Elsewhere the full length, so that blocks are compiled for one length only.
        """
        return min(longest + 1, self.config.text_len) if device.type == "cpu" else self.config.text_len

    def _rotary_table(
        self, grid: tuple[int, ...], frame_indices: Sequence[Sequence[float]] | None, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(cos, sin), [L, head_dim/2] each for all samples, or [B, L, head_dim/2] if their frame indices differ."""
        rows = [None] if frame_indices is None else [tuple(row) for row in frame_indices]
        rows = rows[:1] if len(set(rows)) == 1 else rows
        tables = [
            cached_wan_table(grid, head_dim=self.config.head_dim, frame_indices=row, device=device) for row in rows
        ]
        if len(tables) == 1:
            return tables[0]
        cosines, sines = zip(*tables, strict=True)
        return torch.stack(cosines), torch.stack(sines)

    def _image_tokens(self, clip_BLD: torch.Tensor) -> torch.Tensor:
        if self.config.has_image_positions and clip_BLD.shape[1] == CLIP_TOKENS:
            clip_BLD = clip_BLD.reshape(-1, self.config.image_tokens, clip_BLD.shape[-1])
        return clip_BLD.to(self.dtype)

    def _prepend_reference(
        self, x_BLD: torch.Tensor, grid: tuple[int, ...], reference_BCHW: torch.Tensor
    ) -> tuple[torch.Tensor, tuple[int, ...]]:
        """Put the reference image before the video, as latent frame 0 (VideoX-Fun, Fun-V1.1-Control)."""
        reference = self.ref_conv(reference_BCHW.to(self.ref_conv.weight.dtype)).flatten(2).transpose(1, 2)
        return torch.cat([reference.to(x_BLD.dtype), x_BLD], dim=1), (grid[0] + 1, *grid[1:])

    def _to_video(self, values_BLP: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
        """Tokens, each holding (pt, ph, pw, channel) values, back to [B, C, T, H, W]."""
        patch, channels = self.config.patch_size, self.config.out_dim
        cells = values_BLP.view(len(values_BLP), *grid, *patch, channels)
        video = cells.permute(0, 7, 1, 4, 2, 5, 3, 6)
        return video.reshape(len(values_BLP), channels, *(n * p for n, p in zip(grid, patch, strict=True)))


def build(
    config: WanConfig,
    *,
    device: torch.device | str = "meta",
    dtype: torch.dtype = torch.float32,
    attention_backend: str = "auto",
) -> WanModel:
    """A frozen model of this configuration; on "meta" it has names and shapes only and takes no memory."""
    return build_frozen(lambda: WanModel(config, attention_backend=attention_backend), device=device, dtype=dtype)


def load(
    path: str | Path,
    *,
    task: str | None,
    device: torch.device | str,
    dtype: torch.dtype | None = None,
    transform: Callable[[str, torch.Tensor], torch.Tensor] | None = None,
    attention_backend: str = "auto",
    role: str = "--dit",
) -> WanModel:
    """Load a checkpoint in any public layout, frozen; `.variant` of the result says which one it is.

    `task` None: do not check it against the job. `dtype` None: the type of most weights in the file (bfloat16 for an
    fp8 file). `transform(name, tensor)` sees each tensor before it is cast, for LoRA merging.
    WeightsError: the file is unreadable, of another kind, or not for this task.
    """
    file, variant = recognised(path, role=role, task=task, detect=detect, check_task=check_task)
    return load_frozen(
        file,
        variant,
        build,
        rename=dit_name,
        device=device,
        dtype=dtype,
        transform=transform,
        attention_backend=attention_backend,
    )


def blocks(dit: WanModel) -> nn.ModuleList:
    """The blocks in the order in which they run: what streaming, checkpointing, compile, fp8 and LoRA act on.

    A VACE block runs before the block that its hint is added to. With VACE the list is made anew by each call.
    """
    if dit.config.vace_dim is None:
        return dit.blocks
    paths = [f"{run.prefix}.{run.first + number}" for run in dit.config.runs for number in range(run.count)]
    return nn.ModuleList(dit.get_submodule(path) for path in paths)


def velocity(
    dit: WanModel, x_BCTHW: torch.Tensor, timestep_B: torch.Tensor, cond: dict[str, Any], *,
    step_cache: StepCache = BlockStack.run,
) -> torch.Tensor:  # fmt: skip
    """Noise - clean, float32 [B, C, T, H, W]; timestep_B in 0..1000. `step_cache` wraps the blocks.

    cond: "text" (list of [L, D]), and where the variant has them "y" [B, C, T, H, W], "clip" [B, 257, 1280],
    "reference" [B, C, H, W], "camera" [B, C, T, H, W], "vace" [B, C, T, H, W] with "vace_strength", "frame_indices" (a
    list of numbers per sample), "skip_blocks" (numbers of blocks to leave out). As in VideoX-Fun, a Fun-Control model
    gets zeros for "clip" without a start image, and zeros for "reference" without a reference image; musubi-tuner
    sends half of the text through the image attention instead.
    """
    config, clip_BLD, reference_BCHW = dit.config, cond.get("clip"), cond.get("reference")
    if clip_BLD is None and config.image_dim is not None and (config.is_control or config.camera_dim is not None):
        clip_BLD = x_BCTHW.new_zeros(len(x_BCTHW), config.image_tokens, config.image_dim)
    if reference_BCHW is None and config.reference_dim is not None:
        reference_BCHW = x_BCTHW.new_zeros(len(x_BCTHW), config.reference_dim, *x_BCTHW.shape[3:])
    return dit(
        x_BCTHW,
        timestep_B,
        cond["text"],
        y_BCTHW=cond.get("y"),
        clip_BLD=clip_BLD,
        reference_BCHW=reference_BCHW,
        camera_BCTHW=cond.get("camera"),
        vace_BCTHW=cond.get("vace"),
        vace_strength=cond.get("vace_strength", 1.0),
        frame_indices=cond.get("frame_indices"),
        skip_blocks=cond.get("skip_blocks", ()),
        step_cache=step_cache,
    )


def cond_from_batch(batch: Mapping[str, Any], *, task: str | None = None) -> dict[str, Any]:
    """The conditioning in a batch of cached tensors (samples.py) that the task uses; task None: all of it.

    "t5" list of [L, D]; "latents_image" [B, 20, T, H, W]; "latents_control" [B, 16, T, H, W]; "clip" [B, 257, 1280],
    or [B, n, 257, 1280] for several images: first-and-last-frame models take two, others the first. "f_indices" [B, T]
    becomes "frame_indices"; musubi-tuner caches it for one-frame training but never uses it.
    """
    wants = VARIANTS[task] if task else None
    cond: dict[str, Any] = {"text": batch["t5"]}
    if wants and not (wants.takes_image or wants.takes_control):
        return cond
    image, control = batch.get("latents_image"), batch.get("latents_control")
    if control is not None and not (wants and wants.takes_image):
        bare_image = None if image is None else image[:, MASK_CHANNELS:]
        cond["y"] = control_condition(control, bare_image)
    elif image is not None:
        cond["y"] = image
    if "clip" in batch and (wants is None or wants.image_encoder):
        several_BNLD = batch["clip"].unsqueeze(1) if batch["clip"].ndim == 3 else batch["clip"]
        if task and not takes_two_images(task):
            several_BNLD = several_BNLD[:, :1]
        cond["clip"] = several_BNLD.flatten(1, 2)
    if "f_indices" in batch:
        cond["frame_indices"] = batch["f_indices"].tolist()
    return cond


CACHED_STATES = "t5"


def check_cache(shapes: Mapping[str, tuple[int, ...]], *, task: str = DEFAULT_TASK) -> str:
    """What a cache of these tensors lacks for the task, and how to add it; "" if nothing."""
    wants = VARIANTS[task]
    needs = "cache-latents with --i2v --clip" if wants.image_encoder else "cache-latents with --i2v"
    if takes_two_images(task):
        needs = "cache-latents with --flf2v --clip"
    if wants.takes_control and "latents_control" not in shapes:
        return f"{task} needs the latents of a control video. Set control_directory and run cache-latents again."
    image_needed = wants.takes_image or (wants.takes_control and task.startswith("i2v"))
    if image_needed and "latents_image" not in shapes:
        return f"{task} needs the latents of its image. Run {needs}."
    if image_needed and wants.image_encoder and "clip" not in shapes:
        return f"{task} needs the CLIP features of its image. Run {needs}."
    if takes_two_images(task) and (len(shapes["clip"]) != 3 or shapes["clip"][0] != 2):
        return f"{task} needs the CLIP features of the first and the last frame. Run {needs}."
    return ""
