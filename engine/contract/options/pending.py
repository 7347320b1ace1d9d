"""What shared options cannot do yet, and which need not do anything: two tables. Delete a row when the work is done.

A key of `PENDING` is an option, or `option=choice`. Using one is a clear error, never ignored. Each family has such a
table for its own options. `ACCEPTED` are options of musubi-tuner that change nothing in this engine, and why.
"""

from __future__ import annotations

PENDING: dict[str, str] = {}

ACCEPTED = {
    "lycoris": "LoHa, LoKr and DoRA files are read and merged without it",
    "persistent_data_loader_workers": "caches are read by threads, which cost nothing to start",
    "disable_numpy_memmap": "files are read piece by piece, without mapping them",
    "block_swap_h2d_only": "blocks are always streamed one way",
    "fp8_fast": "scaled weights are multiplied in fp8 wherever the GPU can",
    "ddp_gradient_as_bucket_view": "gradients are exchanged once a step in one piece, without buckets",
    "ddp_static_graph": "gradients are exchanged after the backward pass, which may be any graph",
    "img_in_txt_in_offloading": "the embedders, at most 0.6 GB, stay with the DiT",
    "split_attn": "attention never pads the items of a batch, so there is nothing to split",
}
