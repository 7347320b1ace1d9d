"""Command lines as guides for musubi-tuner write them, for HunyuanVideo, FramePack and the LoRA tools; Wan's are in
lines.py. Each row: (name, line, the values that must come out). Fragments of the guides stand behind a whole command.
"""

from __future__ import annotations

from .lines import LAUNCH, SCRIPTS, Line

UV = "uv run --extra cu124"
CKPTS = "path/to/ckpts"
HV_DIT = f"{CKPTS}/hunyuan-video-t2v-720p/transformers/mp_rank_00_model_states.pt"
HV_VAE = f"{CKPTS}/hunyuan-video-t2v-720p/vae/pytorch_model.pt"
HV_TEXTS = f"--text_encoder1 {CKPTS}/text_encoder --text_encoder2 {CKPTS}/text_encoder_2"
HV_TRAIN = f"{LAUNCH} {SCRIPTS}/hv_train_network.py --dit path/to/dit --dataset_config path/to/toml"
HV_GENERATE = (
    f"python {SCRIPTS}/hv_generate_video.py --dit {HV_DIT} --vae {HV_VAE} {HV_TEXTS} --prompt cat --save_path out"
)
FP_TEXTS = "--text_encoder1 path/to/text_encoder1 --text_encoder2 path/to/text_encoder2"
FP_MODELS = f"--vae path/to/vae_model.safetensors {FP_TEXTS} --image_encoder path/to/image_encoder_model.safetensors"
FP_GENERATE = f"python {SCRIPTS}/fpack_generate_video.py --dit path/to/dit_model {FP_MODELS} --save_path out"
FP_IMAGE = f"{FP_GENERATE} --prompt girl --video_sections 1 --output_type latent_images --image_path start_image.png"
MAG_RATIOS = "1.00000,1.26562,1.08594,1.02344,0.77734"
LORA = "path/to/lora.safetensors"

HUNYUAN_VIDEO: list[Line] = [
    (
        "hv latents",
        f"python {SCRIPTS}/cache_latents.py --dataset_config path/to/toml --vae {HV_VAE} "
        "--vae_chunk_size 32 --vae_tiling",
        {"vae": HV_VAE, "vae_chunk_size": 32, "vae_tiling": True},
    ),
    (
        "hv latents uv",
        f"{UV} {SCRIPTS}/cache_latents.py --dataset_config c --vae {HV_VAE} --vae_spatial_tile_sample_min_size 128",
        {"vae_spatial_tile_sample_min_size": 128, "batch_size": None},
    ),
    (
        "hv text",
        f"{UV} {SCRIPTS}/cache_text_encoder_outputs.py --dataset_config path/to/toml {HV_TEXTS} --batch_size 16",
        {"text_encoder1": f"{CKPTS}/text_encoder", "batch_size": 16, "fp8_llm": False},
    ),
    (
        "hv train",
        f"{UV} {LAUNCH} {SCRIPTS}/hv_train_network.py --dit {HV_DIT} --dataset_config path/to/toml --sdpa "
        "--mixed_precision bf16 --fp8_base --optimizer_type adamw8bit --learning_rate 2e-4 --gradient_checkpointing "
        "--max_data_loader_n_workers 2 --persistent_data_loader_workers --network_module networks.lora "
        "--network_dim 32 --timestep_sampling shift --discrete_flow_shift 7.0 --max_train_epochs 16 "
        "--save_every_n_epochs 1 --seed 42 --output_dir path/to/output_dir --output_name name-of-lora",
        {"dit": HV_DIT, "network_module": "networks.lora", "discrete_flow_shift": 7.0, "fp8_base": True,
         "metadata_title": "name-of-lora", "max_train_epochs": 16},
    ),
    (
        "hv train with samples",
        f"{HV_TRAIN} --vae {HV_VAE} --vae_chunk_size 32 --vae_spatial_tile_sample_min_size 128 {HV_TEXTS} "
        "--sample_prompts /path/to/prompt_file.txt --sample_every_n_epochs 1 --sample_every_n_steps 1000 "
        "--sample_at_first",
        {"sample_prompts": "/path/to/prompt_file.txt", "sample_every_n_steps": 1000, "sample_at_first": True},
    ),
    (
        "hv loha",
        f"{HV_TRAIN} --sdpa --network_module networks.loha --network_dim 32 --network_alpha 16",
        {"network_module": "networks.loha", "network_alpha": 16.0},
    ),
    (
        "hv lokr",
        f'{HV_TRAIN} --network_module networks.lokr --network_dim 32 --network_args "factor=4"',
        {"network_module": "networks.lokr", "network_args": ("factor=4",)},
    ),
    (
        "hv blocks of one kind",
        HV_TRAIN + r""" --network_args "exclude_patterns=[r'.*']" """
        r""""include_patterns=[r'.*single_blocks\.\d{2}\.linear.*']" """,
        {"network_args": ("exclude_patterns=[r'.*']", r"include_patterns=[r'.*single_blocks\.\d{2}\.linear.*']")},
    ),
    (
        "hv compile",
        f"{HV_TRAIN} --compile --compile_mode max-autotune-no-cudagraphs --compile_cache_size_limit 32 "
        "--cuda_allow_tf32 --cuda_cudnn_benchmark",
        {"compile": True, "compile_cache_size_limit": 32, "cuda_cudnn_benchmark": True},
    ),
    (
        "hv compile default",
        f"{HV_TRAIN} --compile --compile_mode default --compile_dynamic auto",
        {"compile_mode": "default", "compile_dynamic": "auto"},
    ),
    (
        "hv dynamo",
        f"{HV_TRAIN} --dynamo_backend INDUCTOR --dynamo_mode default",
        {"dynamo_backend": "INDUCTOR", "dynamo_mode": "default"},
    ),
    (
        "hv timestep range",
        f"{HV_TRAIN} --min_timestep 200 --max_timestep 800 --preserve_distribution_shape",
        {"min_timestep": 200, "max_timestep": 800, "preserve_distribution_shape": True},
    ),
    (
        "hv block swap",
        f"{HV_TRAIN} --gradient_checkpointing --blocks_to_swap 36 --use_pinned_memory_for_block_swap "
        "--block_swap_h2d_only --block_swap_ring_size 2",
        {"blocks_to_swap": 36, "block_swap_ring_size": 2, "block_swap_h2d_only": True},
    ),
    (
        "hv generate",
        f"{UV} {SCRIPTS}/hv_generate_video.py --fp8 --video_size 544 960 --video_length 5 --infer_steps 30 "
        f"--prompt cat --save_path path/to/save/dir "
        f"--output_type both --dit {HV_DIT} --attn_mode sdpa --split_attn --vae {HV_VAE} "
        f"--vae_chunk_size 32 --vae_spatial_tile_sample_min_size 128 {HV_TEXTS} --seed 1234 --lora_multiplier 1.0 "
        f"--lora_weight {LORA}",
        {"video_size": (544, 960), "video_length": 5, "infer_steps": 30, "lora_weight": (LORA,), "negative_prompt": ""},
    ),
    (
        "skyreels",
        f"{HV_GENERATE} --guidance_scale 6.0 --embedded_cfg_scale 1.0 --negative_prompt bad --split_uncond "
        "--image_path path/to/image.jpg",
        {"guidance_scale": 6.0, "embedded_cfg_scale": 1.0, "dit_in_channels": 32, "negative_prompt": "bad"},
    ),
    ("hv lycoris", f"{HV_GENERATE} --lora_weight {LORA} --lycoris", {"lycoris": True}),
]  # fmt: skip

FRAMEPACK: list[Line] = [
    (
        "fp latents",
        f"python {SCRIPTS}/fpack_cache_latents.py --dataset_config path/to/toml --vae path/to/vae_model.safetensors "
        "--image_encoder path/to/image_encoder_model.safetensors --vae_chunk_size 32",
        {"image_encoder": "path/to/image_encoder_model.safetensors", "f1": False},
    ),
    (
        "fp latents f1",
        f"python {SCRIPTS}/fpack_cache_latents.py --dataset_config c --vae v --image_encoder i --f1 "
        "--vae_spatial_tile_sample_min_size 128 --vae_tiling",
        {"f1": True, "vae_tiling": True},
    ),
    (
        "fp latents one frame",
        f"python {SCRIPTS}/fpack_cache_latents.py --dataset_config c --vae v --image_encoder i --one_frame "
        "--one_frame_no_2x --one_frame_no_4x",
        {"one_frame": True, "one_frame_no_2x": True, "one_frame_no_4x": True},
    ),
    (
        "fp text",
        f"python {SCRIPTS}/fpack_cache_text_encoder_outputs.py --dataset_config c {FP_TEXTS} --batch_size 16 --fp8_llm",
        {"batch_size": 16, "fp8_llm": True},
    ),
    (
        "fp train",
        f"{LAUNCH} {SCRIPTS}/fpack_train_network.py --dit path/to/dit_model {FP_MODELS} --dataset_config path/to/toml "
        "--sdpa --mixed_precision bf16 --optimizer_type adamw8bit --learning_rate 2e-4 --gradient_checkpointing "
        "--timestep_sampling shift --weighting_scheme none --discrete_flow_shift 3.0 --max_data_loader_n_workers 2 "
        "--persistent_data_loader_workers --network_module networks.lora_framepack --network_dim 32 "
        "--max_train_epochs 16 --save_every_n_epochs 1 --seed 42 --output_dir path/to/output_dir "
        "--output_name name-of-lora",
        {"network_module": "networks.lora_framepack", "discrete_flow_shift": 3.0, "latent_window_size": 9},
    ),
    (
        "fp train one frame",
        f"{LAUNCH} {SCRIPTS}/fpack_train_network.py --dit d {FP_MODELS} --dataset_config c --one_frame --f1 "
        "--fp8_base --fp8_scaled --fp8_llm --latent_window_size 9 --bulk_decode",
        {"one_frame": True, "fp8_scaled": True, "bulk_decode": True, "f1": True},
    ),
    (
        "fp generate",
        f"{FP_GENERATE} --image_path path/to/start_image.jpg --prompt cat --video_size 512 768 "
        "--video_seconds 5 --fps 30 --infer_steps 25 --attn_mode sdpa --fp8_scaled --vae_chunk_size 32 "
        f"--output_type both --seed 1234 --lora_multiplier 1.0 --lora_weight {LORA}",
        {"video_seconds": 5.0, "video_size": (512, 768), "guidance_scale": 1.0, "video_length": None},
    ),
    ("fp from file", f"{FP_GENERATE} --from_file prompts.txt", {"from_file": "prompts.txt", "infer_steps": 25}),
    ("fp interactive", f"{FP_GENERATE} --interactive", {"interactive": True}),
    (
        "fp sections",
        f'{FP_GENERATE} --prompt "0:a dog runs;;;1:it turns;;;2:it is back" --image_path "0:./a.png;;;1:./b.png" '
        "--end_image_path ./end.png --video_sections 3 --latent_paddings 2,1,0",
        {"image_path": "0:./a.png;;;1:./b.png", "end_image_path": "./end.png", "latent_paddings": "2,1,0"},
    ),
    (
        "fp memory",
        f"{FP_GENERATE} --prompt cat --blocks_to_swap 26 --fp8_llm --vae_spatial_tile_sample_min_size 128 "
        "--bulk_decode --disable_numpy_memmap --fp8 --rope_scaling_timestep_threshold 800 --rope_scaling_factor 0.5",
        {"blocks_to_swap": 26, "rope_scaling_timestep_threshold": 800, "bulk_decode": True},
    ),
    (
        "fp guidance",
        f"{FP_GENERATE} --prompt cat --guidance_scale 1.0 --embedded_cfg_scale 10.0 --guidance_rescale 0.0 "
        "--custom_system_prompt look --f1 --flow_shift 7 --sample_solver unipc --latent_window_size 9",
        {"embedded_cfg_scale": 10.0, "custom_system_prompt": "look", "flow_shift": 7.0},
    ),
    (
        "fp latents decoded",
        f"{FP_GENERATE} --latent_path a.safetensors b.safetensors --output_type images",
        {"latent_path": ("a.safetensors", "b.safetensors")},
    ),
    (
        "fp magcache",
        f"{FP_GENERATE} --prompt cat --magcache_mag_ratios {MAG_RATIOS}",
        {"magcache_mag_ratios": MAG_RATIOS},
    ),
    (
        "fp magcache settings",
        f"{FP_GENERATE} --prompt cat --magcache_mag_ratios 0 --magcache_retention_ratio 0.2 --magcache_threshold 0.24 "
        "--magcache_k 6",
        {"magcache_mag_ratios": "0", "magcache_k": 6, "magcache_threshold": 0.24},
    ),
    ("fp magcache calibration", f"{FP_GENERATE} --prompt cat --magcache_calibration", {"magcache_calibration": True}),
    (
        "fp kisekaeichi",
        f"python fpack_generate_video.py --video_size 832 480 --video_sections 1 --infer_steps 25 --prompt girl "
        f"--save_path path/to/output --output_type latent_images --dit path/to/dit {FP_MODELS} --attn_mode sdpa "
        "--vae_spatial_tile_sample_min_size 128 --vae_chunk_size 32 --image_path start.png --control_image_path "
        "start.png ref.png --control_image_mask_path start_mask.png ref_mask.png --seed 1234 "
        '--lora_weight lora.safetensors --lora_multiplier 1.0 '
        '--one_frame_inference "target_index=1,control_index=0;10,no_post,no_2x,no_4x"',
        {"control_image_path": ("start.png", "ref.png"), "control_image_mask_path": ("start_mask.png", "ref_mask.png"),
         "one_frame_inference": "target_index=1,control_index=0;10,no_post,no_2x,no_4x", "video_length": 1},
    ),
    (
        "fp one frame",
        f"{FP_IMAGE} --one_frame_inference default --control_image_path start_image.png --one_frame_auto_resize",
        {"one_frame_inference": "default", "one_frame_auto_resize": True},
    ),
    (
        "fp one frame of two images",
        f"{FP_IMAGE} --control_image_path a.png b.png --one_frame_inference "
        '"target_index=9,control_index=0;1,no_2x,no_4x"',
        {"one_frame_inference": "target_index=9,control_index=0;1,no_2x,no_4x"},
    ),
]  # fmt: skip

THREE = "lora_epoch_001.safetensors lora_epoch_002.safetensors lora_epoch_003.safetensors"
FILES = tuple(THREE.split())
TOOLS: list[Line] = [
    (
        "convert",
        f"python {SCRIPTS}/convert_lora.py --input a.safetensors --output b.safetensors --target other",
        {"input": "a.safetensors", "output": "b.safetensors", "target": "other"},
    ),
    ("convert uv", f"{UV} {SCRIPTS}/convert_lora.py --input a --output b --target default", {"target": "default"}),
    (
        "merge",
        f"{UV} {SCRIPTS}/merge_lora.py --dit {HV_DIT} --lora_weight {LORA} --save_merged_model "
        "path/to/merged.safetensors --device cpu --lora_multiplier 1.0",
        {"dit": HV_DIT, "lora_weight": (LORA,), "lora_multiplier": (1.0,), "device": "cpu"},
    ),
    (
        "ema",
        f"python {SCRIPTS}/lora_post_hoc_ema.py {THREE} --output_file merged.safetensors --beta 0.95",
        {"path": FILES, "beta": 0.95, "output_file": "merged.safetensors"},
    ),
    (
        "ema from beta to beta",
        f"python {SCRIPTS}/lora_post_hoc_ema.py {THREE} --output_file o --beta 0.90 --beta2 0.95 --no_sort",
        {"beta": 0.9, "beta2": 0.95, "no_sort": True},
    ),
    ("ema power", f"python {SCRIPTS}/lora_post_hoc_ema.py {THREE} --output_file o --sigma_rel 0.2", {"sigma_rel": 0.2}),
]  # fmt: skip

GUIDE_LINES = [*HUNYUAN_VIDEO, *FRAMEPACK, *TOOLS]
