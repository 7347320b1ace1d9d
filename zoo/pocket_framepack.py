"""What Pocket FramePack has of its own: a DiT and an image encoder. VAE and text encoders are Pocket HunyuanVideo's.

The DiT begins with HunyuanVideo's trained weights, block for block, as the published one does; it has fewer blocks,
and what embeds history is new: patches two and four times as large begin as means over the small ones. The image
encoder is random and stays so: to this model it is one more fixed view of the first frame. Knows nothing of training.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from engine.families.framepack import model as framepack_model
from engine.families.framepack.detect import FramePackConfig
from engine.families.framepack.pocket import FILES
from engine.families.hunyuan_video import keys as hunyuan_keys
from engine.families.hunyuan_video.detect import HunyuanVideoConfig
from engine.parts.tiny_encoders import write_siglip

from .masked_framepack import MaskedFramePack

FRAMEPACK_NAME, SIGLIP_NAME = FILES["dit"], FILES["image_encoder"]
IMAGE_WIDTH = 24
_OWN = ("clean_x_embedder.", "image_projection.")  # what HunyuanVideo does not have


def config_beside(hunyuan: HunyuanVideoConfig) -> FramePackConfig:
    """One double-stream block, and of the single-stream blocks all but one."""
    return FramePackConfig(
        dim=hunyuan.dim, ffn_dim=hunyuan.ffn_dim, refiner_ffn_dim=hunyuan.refiner_ffn_dim, in_dim=hunyuan.in_dim,
        out_dim=hunyuan.out_dim, text_dim=hunyuan.text_dim, pooled_dim=hunyuan.pooled_dim, num_layers=1,
        num_single_layers=max(1, hunyuan.num_single_blocks - 1), num_refiner_layers=hunyuan.num_refiner_blocks,
        num_heads=hunyuan.num_heads, head_dim=hunyuan.head_dim, image_dim=IMAGE_WIDTH, rope_axes=hunyuan.rope_axes,
    )  # fmt: skip


def new_dit(hunyuan_weights: dict[str, Tensor], config: FramePackConfig) -> MaskedFramePack:
    """A DiT on the CPU with the weights of a HunyuanVideo DiT of the same width, by its own names."""
    dit = MaskedFramePack(config)
    own = dit.state_dict()
    for name, weight in own.items():
        if name.startswith("image_projection."):
            nn.init.zeros_(weight) if name.endswith("bias") else nn.init.xavier_uniform_(weight)
    with torch.no_grad():
        shared = {name: tuple(weight.shape) for name, weight in own.items() if not name.startswith(_OWN)}
        for theirs, rows in hunyuan_keys.arrange(shared).items():
            taken = hunyuan_weights[theirs].split([len(own[part.name][part.start : part.stop]) for part in rows])
            for part, values in zip(rows, taken, strict=True):
                own[part.name][part.start : part.stop] = values
        for scale, place in ((1, "proj"), (2, "proj_2x"), (4, "proj_4x")):
            small = own["x_embedder.proj.weight"]
            for axis in (2, 3, 4):
                small = small.repeat_interleave(scale, dim=axis) / scale
            own[f"clean_x_embedder.{place}.weight"].copy_(small)
            own[f"clean_x_embedder.{place}.bias"].copy_(own["x_embedder.proj.bias"])
    return dit


def write_image_encoder(path: Path) -> None:
    """The image encoder: random, always the same."""
    write_siglip(path, seed=7, width=IMAGE_WIDTH)


def read_dit(path: Path) -> MaskedFramePack:
    """A trained DiT, to train on: float32, on the CPU."""
    plain = framepack_model.load(path, task=None, device="cpu", dtype=torch.float32)
    dit = MaskedFramePack(plain.config)
    dit.load_state_dict(plain.state_dict())
    return dit
