"""Options of musubi-tuner that change nothing in this engine, and why. Each family has such a table for its own."""

from __future__ import annotations

ACCEPTED = {
    "lycoris": "LoHa, LoKr and DoRA files are read and merged without it",
    "persistent_data_loader_workers": "caches are read by threads, which cost nothing to start",
    "disable_numpy_memmap": "files are read piece by piece; only --block_swap_from_disk maps them",
    "block_swap_h2d_only": "blocks are always streamed one way",
    "fp8_fast": "scaled weights are multiplied in fp8 wherever the GPU can",
    "ddp_gradient_as_bucket_view": "gradients are exchanged once a step in one piece, without buckets",
    "ddp_static_graph": "gradients are exchanged after the backward pass, which may be any graph",
    "img_in_txt_in_offloading": "the embedders, at most 0.6 GB, stay with the DiT",
    "split_attn": "attention never pads the items of a batch, so there is nothing to split",
}
