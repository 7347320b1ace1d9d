"""What shared options cannot do yet, and which need not do anything: two tables. Delete a row when the work is done.

A key of `PENDING` is an option, or `option=choice`. Using one is a clear error, never ignored. Each family has such a
table for its own options. `ACCEPTED` are options of musubi-tuner that change nothing in this engine, and why.
"""

from __future__ import annotations

_HUGGINGFACE = "uploading to and resuming from Hugging Face"
_SAMPLES = "samples during training; generate with the saved LoRA instead"
_OTHER_ADAPTERS = "adapters other than LoRA"
_GPUS = "training on several GPUs"
_DYNAMO = "compiling through accelerate; use --compile"
_SHOWING = "showing clips instead of caching them; use `dataset preview`"

PENDING = {
    "huggingface_repo_id": _HUGGINGFACE,
    "huggingface_repo_type": _HUGGINGFACE,
    "huggingface_path_in_repo": _HUGGINGFACE,
    "huggingface_token": _HUGGINGFACE,
    "huggingface_repo_visibility": _HUGGINGFACE,
    "save_state_to_huggingface": _HUGGINGFACE,
    "resume_from_huggingface": _HUGGINGFACE,
    "async_upload": _HUGGINGFACE,
    "sample_prompts": _SAMPLES,
    "sample_every_n_steps": _SAMPLES,
    "sample_every_n_epochs": _SAMPLES,
    "sample_at_first": _SAMPLES,
    "lycoris": _OTHER_ADAPTERS,
    "network_module=networks.loha": _OTHER_ADAPTERS,
    "network_module=networks.lokr": _OTHER_ADAPTERS,
    "network_module=lycoris.kohya": _OTHER_ADAPTERS,
    "num_processes": _GPUS,
    "gpu_ids": _GPUS,
    "main_process_port": _GPUS,
    "ddp_timeout": _GPUS,
    "ddp_gradient_as_bucket_view": _GPUS,
    "ddp_static_graph": _GPUS,
    "dynamo_backend": _DYNAMO,
    "dynamo_mode": _DYNAMO,
    "dynamo_fullgraph": _DYNAMO,
    "dynamo_dynamic": _DYNAMO,
    "log_tracker_config": "settings files for trackers",
    "debug_mode": _SHOWING,
    "console_width": _SHOWING,
    "console_back": _SHOWING,
    "console_num_images": _SHOWING,
}

ACCEPTED = {
    "persistent_data_loader_workers": "caches are read by threads, which cost nothing to start",
    "disable_numpy_memmap": "files are read piece by piece, without mapping them",
    "block_swap_h2d_only": "blocks are always streamed one way",
    "fp8_fast": "scaled weights are multiplied in fp8 wherever the GPU can",
    "split_attn": "attention never pads the items of a batch, so there is nothing to split",
}
