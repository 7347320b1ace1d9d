"""Command lines as guides for musubi-tuner write them, for Wan: what stands before the first flag, and the flags.

Each row: (name, line, the values that must come out). Fragments of the guides stand behind a whole command.
"""

from __future__ import annotations

from typing import Any

from engine.contract import cli
from engine.contract.job import Job

LAUNCH = "accelerate launch --num_cpu_threads_per_process 1 --mixed_precision bf16"
SCRIPTS = "src/musubi_tuner"
T5, CLIP = "models_t5_umt5-xxl-enc-bf16.pth", "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
TRAIN = f"{LAUNCH} {SCRIPTS}/wan_train_network.py --task t2v-14B --dit dit.safetensors --dataset_config data.toml"
GENERATE = (
    f"python {SCRIPTS}/wan_generate_video.py --dit dit.safetensors --vae vae.safetensors --t5 {T5} --save_path out"
)
LATENTS = f"python {SCRIPTS}/wan_cache_latents.py --dataset_config path/to/toml --vae path/to/wan_vae.safetensors"
TEXT = f"python {SCRIPTS}/wan_cache_text_encoder_outputs.py --dataset_config path/to/toml --t5 path/to/{T5}"

Line = tuple[str, str, dict[str, Any]]

CACHING: list[Line] = [
    ("latents", LATENTS, {"dataset_config": "path/to/toml", "vae": "path/to/wan_vae.safetensors", "batch_size": None}),
    ("latents low memory", f"{LATENTS} --vae_cache_cpu", {"vae_cache_cpu": True}),
    ("latents i2v", f"{LATENTS} --i2v --clip path/to/{CLIP}", {"i2v": True, "clip": f"path/to/{CLIP}"}),
    ("latents one frame", f"{LATENTS} --one_frame --i2v --clip c", {"one_frame": True}),
    (
        "latents options",
        f"{LATENTS} --vae_dtype bfloat16 --device cuda --batch_size 1 --num_workers 4 --skip_existing --keep_cache "
        "--debug_mode console --console_width 100 --console_back white --console_num_images 3 --disable_cudnn_backend",
        {
            "vae_dtype": "bfloat16", "device": "cuda", "batch_size": 1, "num_workers": 4, "skip_existing": True,
            "keep_cache": True, "debug_mode": "console", "console_width": 100, "console_back": "white",
            "console_num_images": 3, "disable_cudnn_backend": True,
        },
    ),
    ("text", f"{TEXT} --batch_size 16", {"t5": f"path/to/{T5}", "batch_size": 16, "fp8_t5": False}),
    ("text fp8", f"{TEXT} --batch_size 16 --fp8_t5", {"fp8_t5": True}),
]  # fmt: skip

TRAINING: list[Line] = [
    (
        "train",
        f"{LAUNCH} {SCRIPTS}/wan_train_network.py --task t2v-1.3B --dit path/to/wan2.1_xxx_bf16.safetensors "
        "--dataset_config path/to/toml --sdpa --mixed_precision bf16 --fp8_base --optimizer_type adamw8bit "
        "--learning_rate 2e-4 --gradient_checkpointing --max_data_loader_n_workers 2 "
        "--persistent_data_loader_workers --network_module networks.lora_wan --network_dim 32 "
        "--timestep_sampling shift --discrete_flow_shift 3.0 --max_train_epochs 16 --save_every_n_epochs 1 --seed 42 "
        "--output_dir path/to/output_dir --output_name name-of-lora",
        {
            "task": "t2v-1.3B", "dit": "path/to/wan2.1_xxx_bf16.safetensors", "dataset_config": "path/to/toml",
            "sdpa": True, "mixed_precision": "bf16", "fp8_base": True, "fp8_scaled": False,
            "optimizer_type": "adamw8bit", "learning_rate": 2e-4, "gradient_checkpointing": True,
            "max_data_loader_n_workers": 2, "persistent_data_loader_workers": True,
            "network_module": "networks.lora_wan", "network_dim": 32, "network_alpha": 1.0,
            "timestep_sampling": "shift", "discrete_flow_shift": 3.0, "max_train_epochs": 16, "save_every_n_epochs": 1,
            "seed": 42, "output_dir": "path/to/output_dir", "output_name": "name-of-lora", "save_precision": "fp32",
        },
    ),
    (
        "train with samples",
        f"{TRAIN} --vae path/to/wan_vae.safetensors --t5 path/to/{T5} --sample_prompts /path/to/prompt_file.txt "
        "--sample_every_n_epochs 1 --sample_every_n_steps 1000 --sample_at_first",
        {"sample_prompts": "/path/to/prompt_file.txt", "sample_every_n_epochs": 1, "sample_every_n_steps": 1000,
         "sample_at_first": True},
    ),
    (
        "train two experts",
        f"{TRAIN} --task t2v-A14B --dit_high_noise high.safetensors --timestep_boundary 900 --offload_inactive_dit",
        {"task": "t2v-A14B", "dit_high_noise": "high.safetensors", "timestep_boundary": 0.9,
         "offload_inactive_dit": True},
    ),
    ("train boundary share", f"{TRAIN} --task t2v-A14B --timestep_boundary 0.875", {"timestep_boundary": 0.875}),
    (
        "train one expert",
        f"{TRAIN} --task i2v-A14B --min_timestep 900 --max_timestep 1000 --preserve_distribution_shape "
        "--force_v2_1_time_embedding",
        {"min_timestep": 900, "max_timestep": 1000, "preserve_distribution_shape": True,
         "force_v2_1_time_embedding": True},
    ),
    ("train one frame", f"{TRAIN} --task flf2v-14B --one_frame --clip c.pth", {"one_frame": True, "task": "flf2v-14B"}),
    (
        "memory",
        f"{TRAIN} --gradient_checkpointing --gradient_checkpointing_cpu_offload --blocks_to_swap 20 "
        "--use_pinned_memory_for_block_swap --block_swap_h2d_only --block_swap_ring_size 1 --disable_numpy_memmap",
        {"blocks_to_swap": 20, "block_swap_h2d_only": True, "block_swap_ring_size": 1, "disable_numpy_memmap": True,
         "gradient_checkpointing_cpu_offload": True, "use_pinned_memory_for_block_swap": True},
    ),
    ("fp8 scaled", f"{TRAIN} --fp8_base --fp8_scaled", {"fp8_base": True, "fp8_scaled": True}),
    (
        "compile",
        f"{TRAIN} --compile --compile_mode max-autotune-no-cudagraphs --compile_cache_size_limit 32 "
        "--cuda_allow_tf32 --cuda_cudnn_benchmark --compile_dynamic auto --compile_backend inductor",
        {"compile": True, "compile_mode": "max-autotune-no-cudagraphs", "compile_cache_size_limit": 32,
         "cuda_allow_tf32": True, "cuda_cudnn_benchmark": True, "compile_dynamic": "auto"},
    ),
    (
        "dynamo",
        f"{TRAIN} --dynamo_backend INDUCTOR --dynamo_mode max-autotune --dynamo_fullgraph",
        {"dynamo_backend": "INDUCTOR", "dynamo_mode": "max-autotune", "dynamo_fullgraph": True},
    ),
    (
        "network args",
        TRAIN + r""" --network_args "verbose=True" "loraplus_lr_ratio=4" "exclude_patterns=[r'.*']" """
        r""""include_patterns=[r'.*blocks\.\d{2}\.linear.*']" --network_alpha 16""",
        {"network_args": ("verbose=True", "loraplus_lr_ratio=4", "exclude_patterns=[r'.*']",
                          r"include_patterns=[r'.*blocks\.\d{2}\.linear.*']"), "network_alpha": 16.0},
    ),
    ("loha", f"{TRAIN} --network_module networks.loha --network_args factor=4", {"network_module": "networks.loha"}),
    (
        "logs",
        f"{TRAIN} --logging_dir=logs --log_prefix=lora_setting1_ --log_with all --log_tracker_name project",
        {"logging_dir": "logs", "log_prefix": "lora_setting1_", "log_with": "all", "log_tracker_name": "project"},
    ),
    ("logs wandb", f"{TRAIN} --log_with wandb --wandb_run_name r --wandb_api_key k", {"log_with": "wandb"}),
    (
        "timesteps",
        f"{TRAIN} --timestep_sampling logsnr --logit_mean -6.0 --logit_std 2.0 --num_timestep_buckets 5 "
        "--show_timesteps image",
        {"timestep_sampling": "logsnr", "logit_mean": -6.0, "logit_std": 2.0, "num_timestep_buckets": 5,
         "show_timesteps": "image"},
    ),
    ("timestep range", f"{TRAIN} --min_timestep 0 --max_timestep 500", {"min_timestep": 0, "max_timestep": 500}),
    (
        "schedule-free",
        f'{TRAIN} --optimizer_type schedulefree.AdamWScheduleFree --optimizer_args "weight_decay=0.01" '
        '"betas=(0.9,0.95)" --max_grad_norm 0',
        {"optimizer_type": "schedulefree.AdamWScheduleFree", "max_grad_norm": 0.0,
         "optimizer_args": ("weight_decay=0.01", "betas=(0.9,0.95)")},
    ),
    (
        "rex",
        f'{TRAIN} --lr_scheduler rex --lr_scheduler_args "rex_alpha=0.1" "rex_beta=0.9" --lr_warmup_steps 5% '
        "--lr_scheduler_min_lr_ratio 0.01",
        {"lr_scheduler": "rex", "lr_scheduler_args": ("rex_alpha=0.1", "rex_beta=0.9"), "lr_warmup_steps": 0.05,
         "lr_scheduler_min_lr_ratio": 0.01},
    ),
    (
        "saving",
        f"{TRAIN} --save_every_n_steps 100 --save_last_n_steps 300 --save_state --save_last_n_steps_state 200 "
        "--save_state_on_train_end --save_precision bf16 --resume out/x-state --metadata_title t --metadata_reso "
        "832,480 --metadata_tags a,b --training_comment hello --no_metadata --scale_weight_norms 1",
        {"save_every_n_steps": 100, "save_last_n_steps": 300, "save_state": True, "save_last_n_steps_state": 200,
         "save_state_on_train_end": True, "save_precision": "bf16", "resume": "out/x-state", "metadata_title": "t",
         "metadata_reso": "832,480", "metadata_tags": "a,b", "training_comment": "hello", "no_metadata": True,
         "scale_weight_norms": 1.0},
    ),
    (
        "hugging face",
        f"{TRAIN} --huggingface_repo_id a/b --huggingface_repo_type model --huggingface_path_in_repo p "
        "--huggingface_token t --huggingface_repo_visibility private --save_state_to_huggingface --async_upload",
        {"huggingface_repo_id": "a/b", "async_upload": True, "save_state_to_huggingface": True},
    ),
    (
        "base weights",
        f"{TRAIN} --base_weights a.safetensors b.safetensors --base_weights_multiplier 1 0.5 --network_weights w "
        "--dim_from_weights",
        {"base_weights": ("a.safetensors", "b.safetensors"), "base_weights_multiplier": (1.0, 0.5),
         "network_weights": "w", "dim_from_weights": True},
    ),
    (
        "several processes",
        "uv run --extra cu124 accelerate launch --multi_gpu --num_processes 2 --gpu_ids 0,1 --mixed_precision=fp16 "
        f"--num_machines 1 --dynamo_backend no {SCRIPTS}/wan_train_network.py --dit d --dataset_config c "
        "--ddp_timeout 60 --ddp_gradient_as_bucket_view --ddp_static_graph",
        {"num_processes": 2, "gpu_ids": "0,1", "mixed_precision": "fp16", "dynamo_backend": "NO", "ddp_timeout": 60,
         "ddp_gradient_as_bucket_view": True, "ddp_static_graph": True},
    ),
]  # fmt: skip

GENERATION: list[Line] = [
    (
        "t2v",
        f"python {SCRIPTS}/wan_generate_video.py --fp8 --task t2v-1.3B --video_size  832 480 --video_length 81 "
        '--infer_steps 20 --prompt "prompt for the video" --save_path path/to/save.mp4 --output_type both '
        "--dit path/to/wan2.1_t2v_1.3B_bf16_etc.safetensors --vae path/to/wan_2.1_vae.safetensors "
        f"--t5 path/to/{T5} --attn_mode torch",
        {
            "fp8": True, "task": "t2v-1.3B", "video_size": (832, 480), "video_length": 81, "infer_steps": 20,
            "prompt": "prompt for the video", "save_path": "path/to/save.mp4", "output_type": "both",
            "dit": "path/to/wan2.1_t2v_1.3B_bf16_etc.safetensors", "vae": "path/to/wan_2.1_vae.safetensors",
            "t5": f"path/to/{T5}", "attn_mode": "torch", "fps": 16, "flow_shift": 5.0, "guidance_scale": 5.0,
        },
    ),
    (
        "i2v",
        f"{GENERATE} --fp8 --task i2v-14B --video_size 832 480 --video_length 81 --infer_steps 20 "
        f'--prompt "prompt for the video" --output_type both --clip path/to/{CLIP} --attn_mode torch '
        "--image_path path/to/image.jpg",
        {"task": "i2v-14B", "clip": f"path/to/{CLIP}", "image_path": "path/to/image.jpg"},
    ),
    (
        "from file",
        f"python {SCRIPTS}/wan_generate_video.py --from_file prompts.txt --task t2v-14B --dit path/to/m.safetensors "
        "--vae path/to/vae.safetensors --t5 path/to/t5_model.pth --save_path output_directory",
        {"from_file": "prompts.txt", "prompt": None, "interactive": False, "save_path": "output_directory"},
    ),
    (
        "interactive",
        f"python {SCRIPTS}/wan_generate_video.py --interactive --task t2v-14B --dit path/to/model.safetensors "
        "--vae path/to/vae.safetensors --t5 path/to/t5_model.pth --save_path output_directory",
        {"interactive": True},
    ),
    (
        "lora patterns",
        GENERATE + r""" --prompt p --lora_weight a.safetensors b.safetensors --lora_multiplier 0.8 -1 """
        r"""--include_patterns "cross_attn" ".*" --exclude_patterns "dummy_do_not_exclude" "blocks_(0|1|2|3|4)" """,
        {"lora_weight": ("a.safetensors", "b.safetensors"), "lora_multiplier": (0.8, -1.0),
         "include_patterns": ("cross_attn", ".*"), "exclude_patterns": ("dummy_do_not_exclude", "blocks_(0|1|2|3|4)")},
    ),
    ("lora alone", f"{GENERATE} --prompt p --lora_weight a.safetensors", {"lora_multiplier": (1.0,)}),
    (
        "exclude",
        GENERATE + r' --prompt p --exclude_patterns "blocks_[23]\d_"',
        {"exclude_patterns": (r"blocks_[23]\d_",)},
    ),
    (
        "guidance",
        f'{GENERATE} --prompt p --cfg_skip_mode late --cfg_apply_ratio 0.5 --slg_mode original --slg_layers 4,5,6 '
        '--slg_scale 3.0 --slg_start 0.0 --slg_end 0.5 --guidance_scale 5 --flow_shift 3 --negative_prompt ""',
        {"cfg_skip_mode": "late", "cfg_apply_ratio": 0.5, "slg_layers": "4,5,6", "slg_end": 0.5, "negative_prompt": "",
         "slg_mode": "original", "guidance_scale": 5.0, "flow_shift": 3.0},
    ),
    (
        "experts",
        f"{GENERATE} --prompt p --task t2v-A14B --dit_high_noise h --timestep_boundary 0.875 --lazy_loading "
        "--guidance_scale_high_noise 4 --lora_weight_high_noise a --lora_multiplier_high_noise 0.5 "
        "--force_v2_1_time_embedding",
        {"timestep_boundary": 0.875, "lazy_loading": True, "guidance_scale_high_noise": 4.0,
         "lora_weight_high_noise": ("a",), "lora_multiplier_high_noise": (0.5,)},
    ),
    (
        "control",
        f"{GENERATE} --prompt p --task t2v-14B-FC --control_path control.mp4 --end_image_path end.png "
        "--trim_tail_frames 3",
        {"control_path": "control.mp4", "end_image_path": "end.png", "trim_tail_frames": 3},
    ),
    (
        "VACE, by the official code's names",
        f"{GENERATE} --prompt p --task vace-14B --src_video video.mp4 --src_mask mask.mp4 --src_ref_images a.png b.png "
        "--vace_strength 0.8",
        {"control_path": "video.mp4", "src_mask": "mask.mp4", "src_ref_images": ("a.png", "b.png"),
         "vace_strength": 0.8},
    ),
    (
        "camera",
        f"{GENERATE} --prompt p --task camera-14B --image_path a.png --clip c --camera_pose zoom_in --camera_speed 0.5",
        {"camera_pose": "zoom_in", "camera_speed": 0.5, "flow_shift": 5.0, "guidance_scale": 6.0},
    ),
    (
        "one frame",
        f"{GENERATE} --prompt p --task i2v-14B --output_type latent_images --image_path start_image.png "
        '--control_image_path start_image.png end_image.png --one_frame_inference "control_index=0;2,target_index=1"',
        {"control_image_path": ("start_image.png", "end_image.png"), "output_type": "latent_images",
         "one_frame_inference": "control_index=0;2,target_index=1"},
    ),
    (
        "decode only",
        f"python {SCRIPTS}/wan_generate_video.py --latent_path out/x_latent.safetensors --output_type images "
        "--vae vae.safetensors --save_path out",
        {"latent_path": ("out/x_latent.safetensors",), "output_type": "images", "dit": None},
    ),
    (
        "everything else",
        f"{GENERATE} --prompt p --sample_solver dpm++ --seed 1234 --cpu_noise --fps 24 --no_metadata --fp8 "
        "--fp8_scaled --fp8_fast --fp8_t5 --vae_cache_cpu --blocks_to_swap 39 --use_pinned_memory_for_block_swap "
        "--disable_numpy_memmap --device cuda:1 --vae_dtype float16 --attn_mode sageattn --compile "
        "--compile_args inductor max-autotune-no-cudagraphs False False",
        {"sample_solver": "dpm++", "seed": 1234, "cpu_noise": True, "fps": 24, "no_metadata": True, "fp8_fast": True,
         "blocks_to_swap": 39, "device": "cuda:1", "attn_mode": "sageattn", "compile_mode":
         "max-autotune-no-cudagraphs", "compile_dynamic": "false", "compile_cache_size_limit": 32,
         "compile_args": None},
    ),
]  # fmt: skip

LINES = [*CACHING, *TRAINING, *GENERATION]


def job_of(words: list[str]) -> Job:
    """The job of a line that runs one."""
    job = cli.parse(words)
    assert job is not None
    return job
