"""What a shared workflow may ask of the engine: tables that turn free text into names from a list.

A workflow is untrusted input. An option that takes a class, a module, a path, free arguments, a secret or an address is
either here with its allowed values or in `LEFT_OUT` with the reason; the command line, being the person's own shell,
has them all. A test makes sure that every text option of a node is of one kind or the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ..engine import families
from ..engine.contract.options.training import LR_SCHEDULERS, OTHER_ADAPTERS

_SHELL = "a class or module name: for the command line only"
_RECORD = "the node keeps the job's record"
_SERVER = "set on the server, not in a workflow"
_UPLOAD = "uploads, and the keys for them, do not belong in a workflow"
_PAGE = "the page shows it"
_NAMED = "its keys have widgets of their own"

LEFT_OUT: dict[str, str] = {
    "optimizer_args": _NAMED,
    "network_args": _NAMED,
    "lr_scheduler_args": _NAMED,
    "lr_scheduler_type": _SHELL,
    "config_file": _RECORD,
    "print_config": _RECORD,
    "events": _RECORD,
    "job_dir": _RECORD,
    "log_level": _SERVER,
    "device": _SERVER,
    "num_processes": _SERVER,
    "gpu_ids": _SERVER,
    "main_process_port": _SERVER,
    "ddp_timeout": _SERVER,
    "shard_base": _SERVER,
    "ddp_gradient_as_bucket_view": _SERVER,
    "ddp_static_graph": _SERVER,
    "huggingface_repo_id": _UPLOAD,
    "huggingface_repo_type": _UPLOAD,
    "huggingface_path_in_repo": _UPLOAD,
    "huggingface_token": _UPLOAD,
    "huggingface_repo_visibility": _UPLOAD,
    "save_state_to_huggingface": _UPLOAD,
    "resume_from_huggingface": _UPLOAD,
    "async_upload": _UPLOAD,
    "log_with": _UPLOAD,
    "wandb_run_name": _UPLOAD,
    "wandb_api_key": _UPLOAD,
    "log_tracker_name": _UPLOAD,
    "log_tracker_config": _UPLOAD,
    "log_prefix": "the node names its logs itself",
    "log_config": "the job's record has them",
    "show_timesteps": "draws in a terminal, and trains nothing",
    "debug_mode": "draws in a terminal, and caches nothing",
    "console_width": "draws in a terminal",
    "console_back": "draws in a terminal",
    "console_num_images": "draws in a terminal",
    "interactive": "asks questions in a terminal",
    "compile_args": "the old form of four other options",
    "dynamo_backend": "compiles a second time: see compile",
    "dynamo_mode": "compiles a second time: see compile",
    "dynamo_fullgraph": "compiles a second time: see compile",
    "dynamo_dynamic": "compiles a second time: see compile",
    "sage_attn": "cannot train",
    "magcache_calibration": "measures, and makes no video",
    "step_cache_calibrate": "measures, and makes no video",
    "output_type": "the node's result is a video",
    "latent_path": "the node's result is a video; latents are kept by the command line only",
    "save_merged_model": "the LoRA Merger does it, into ComfyUI's model folder",
    "save_merged_lora": "the node names its files",
    "max_shard_size": "ComfyUI reads models of one file",
    "output": "the node names its files",
    "output_file": "the node names its files",
    "ckpt_dir": "models are chosen from ComfyUI's folders, file by file",
    "tokenizer": "found beside the text encoder, or in ComfyUI",
    "tokenizer1": "found beside the text encoder, or in ComfyUI",
    "tokenizer2": "found beside the text encoder, or in ComfyUI",
    "sheet_path": _PAGE,
    "output_dir": "LoRAs go to ComfyUI's loras folder",
    "save_path": "the node names its files",
    "dit_in_channels": "read from the model file",
    "control_camera_txt": "a file of numbers, for the command line only; camera_pose has the motions by name",
}
"""Options that no node has, and why."""

CHOICES: dict[str, tuple[str, ...]] = {
    "optimizer_type": (
        "AdamW", "AdamW8bit", "PagedAdamW8bit", "Lion8bit", "Adafactor", "Adam", "NAdam", "RAdam", "SGD",
    ),
    "lr_scheduler": LR_SCHEDULERS,
    "family": tuple(name.replace("_", "-") for name in families.names(extra=False)),
    "compile_backend": ("inductor", "cudagraphs", "aot_eager", "eager"),
    "preset": ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"),
    "vram": ("6GB", "8GB", "10GB", "12GB", "16GB", "20GB", "24GB", "32GB", "48GB", "80GB"),
    "pixel_format": ("yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv422p10le", "yuv444p10le"),
}  # fmt: skip
"""Options that take any name on the command line and are pick lists on a node. The first entry is not the default: the
option declares that."""

DEFAULTS: dict[str, Any] = {"memory": "auto", "preview_latent_every": 2}
"""Defaults of nodes that differ from those of the command line, which follow other programs."""

FAMILYS_OWN: dict[str, tuple[str, ...]] = {
    "network_module": ("LoRA", *(name for name in OTHER_ADAPTERS if name.startswith("networks."))),
    "lora_format": ("auto", "default", "other", "diffusers"),
}
"""Pick lists whose first entry stands for each family's own value: the option is then not given."""

PLAIN_TEXT = frozenset(
    """prompt negative_prompt custom_system_prompt output_name training_comment metadata_title metadata_author
    metadata_description metadata_license metadata_tags metadata_reso metadata_arch include_patterns exclude_patterns
    one_frame_inference latent_paddings slg_layers magcache_mag_ratios step_cache_ratios
    step_cache_coefficients diffusers_prefix""".split()
)
"""Texts that the engine parses strictly or stores as they are: they cannot open or run anything."""

GROUPS: dict[str, tuple[str, ...]] = {"attention": ("sdpa", "flash_attn", "flash3", "xformers", "attn_8bit")}
"""Switches of which only one may be on: one pick list, with "auto" for none."""

SEEDS = frozenset({"seed"})
MULTILINE = frozenset({"prompt", "negative_prompt", "custom_system_prompt", "metadata_description"})
STEPS = {"height": 16, "width": 16}
"""Steps of a widget's arrows, by the last part of its name."""


@dataclass(frozen=True, kw_only=True)
class Argument:
    """One key of a `key=value` option, as a widget. `unset`: the value that leaves it out."""

    key: str
    kind: Literal["float", "int", "text", "bool"]
    unset: Any
    help: str
    low: float | None = None
    high: float | None = None
    step: float | None = None


ARGUMENTS: dict[str, tuple[Argument, ...]] = {
    "optimizer_args": (
        Argument(
            key="weight_decay", kind="float", unset=-1.0, low=-1, high=10, step=0.001,
            help="How strongly each step pulls the weights towards zero. -1: the optimizer's own.",
        ),
    ),
    "network_args": (
        Argument(
            key="loraplus_lr_ratio", kind="float", unset=0.0, low=0, high=1000, step=1,
            help="LoRA+: how many times as fast the up matrices learn; 4 is a good start. 0: off.",
        ),
        Argument(
            key="rank_dropout", kind="float", unset=0.0, low=0, high=0.99, step=0.01,
            help="Share of the LoRA's ranks that is dropped in each step. 0: off.",
        ),
        Argument(
            key="module_dropout", kind="float", unset=0.0, low=0, high=0.99, step=0.01,
            help="Share of the LoRA's modules that is left out in each step. 0: off.",
        ),
        Argument(
            key="dora_wd", kind="bool", unset=False,
            help="DoRA: train the size of each weight row apart from its direction. Often closer to full training, but "
            "slower.",
        ),
        Argument(
            key="factor", kind="int", unset=-1, low=-1, high=4096, step=1,
            help="For networks.lokr: the size of its smaller block. -1: as even as possible.",
        ),
        Argument(
            key="include_patterns", kind="text", unset="",
            help="Regular expression: modules whose name it matches get a LoRA too. Empty: the family's own choice.",
        ),
        Argument(
            key="exclude_patterns", kind="text", unset="",
            help="Regular expression: modules whose name it matches get no LoRA. Empty: the family's own choice.",
        ),
    ),
    "lr_scheduler_args": (),
}  # fmt: skip

HELP: dict[str, str] = {
    "network_module": "Kind of adapter. Every program reads LoRA; LoHa and LoKr learn more in a file of the same size.",
    "optimizer_type": "AdamW is the usual one. Those with 8bit keep their state in a quarter of the memory and need a "
    "CUDA GPU; Adafactor sets its own learning rate.",
    "dit": "The diffusion model, from ComfyUI's diffusion_models folder.",
    "dit_high_noise": "The diffusion model for high noise, from ComfyUI's diffusion_models folder.",
    "vae": "The VAE, from ComfyUI's vae folder.",
    "t5": "The UMT5-XXL text encoder, from ComfyUI's text_encoders folder.",
    "text_encoder1": "LLaVA-LLaMA-3-8B such as llava_llama3_fp16.safetensors, from ComfyUI's text_encoders folder.",
    "text_encoder2": "CLIP-L such as clip_l.safetensors, from ComfyUI's text_encoders folder.",
    "image_encoder": "SigLIP such as sigclip_vision_patch14_384.safetensors, from ComfyUI's clip_vision folder.",
    "clip": "CLIP vision, for Wan 2.1 image-to-video, from ComfyUI's clip_vision folder.",
    "preview_latent_every": "Show here what the video looks like so far every N steps, and after the last. 0: never.",
    "preview_vae": "Tiny autoencoder that makes previews sharper, from ComfyUI's vae_approx folder: taehv for "
    "HunyuanVideo and FramePack, taew2_1 for Wan. none: colours straight from the latents, at next to no cost.",
    "codec": "Video encoder; libx264 plays everywhere. prores_ks makes .mov, ffv1 (lossless) .mkv, libvpx-vp9 .webm.",
    "preset": "Speed of the encoder: faster ones make larger files.",
    "lora_weight": "LoRAs that are merged into the model, from a LoRA Stack node or a trainer.",
    "base_weights": "LoRAs that are merged into the model before training, from a LoRA Stack node.",
}
"""Help that replaces an option's own, if that is about files and classes of the command line."""
