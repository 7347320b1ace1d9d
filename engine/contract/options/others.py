"""Options of blissful-tuner, a fork of musubi-tuner, that this engine does not have: what is said of each, by name.

Options of musubi-tuner itself all parse. What does the same under a name of ours is named; of the rest it is said what
it would be, so that a person knows that it was not misspelt.
"""

from __future__ import annotations

_HERE = {
    "allow_linear_for_compile": "--compile, which compiles linear layers too",
    "disable_linear_for_compile": "--compile",
    "optimized_compile": "--compile",
    "compile_args": "--compile_backend, --compile_mode, --compile_dynamic and --compile_fullgraph",
    "simple_modulation": "--force_v2_1_time_embedding",
    "denoise_strength": "--strength, with --video_path",
    "v2v_denoise": "--strength, with --video_path",
    "from_latent": "--video_path with --strength, which begins from a video",
    "keep_pngs": "--output_type images, which keeps every frame",
    "container": "--codec, which decides the kind of file",
    "mixed_precision_transformer": "--dit, read as its tensors are",
    "upcast_quantization": "--fp8_scaled, whose scales are always computed in float32",
    "upcast_linear": "--fp8_scaled",
    "scheduler": "--sample_solver",
    "image_flow_shift": "--discrete_flow_shift, for images and videos alike",
}
_NOT_HERE = {
    "multires_noise_iterations": "noise of several resolutions",
    "multires_noise_discount": "noise of several resolutions",
    "noise_offset": "noise with an offset",
    "noise_offset_random_strength": "noise with an offset",
    "adaptive_noise_scale": "noise with an offset",
    "rope_func": "another way to compute positions",
    "lower_precision_attention": "modulation in half precision",
    "disable_blockwise_quant": "one fp8 scale for each tensor",
    "disable_embedded_for_cfg": "leaving the embedded guidance out",
    "hidden_state_skip_layer": "another layer of the text encoder",
    "apply_final_norm": "the text encoder's last norm",
    "reproduce": "sampling in the text encoder",
    "prompt_2": "a prompt of its own for CLIP",
    "te_multiplier": "scaled text encoders",
    "riflex_index": "RIFLEx",
    "cfgzerostar_scaling": "CFG-Zero*",
    "cfgzerostar_multiplier": "CFG-Zero*",
    "cfgzerostar_init_steps": "CFG-Zero*",
    "cfg_schedule": "a schedule of guidance",
    "perp_neg": "perpendicular negative guidance",
    "nag_scale": "normalized attention guidance",
    "nag_tau": "normalized attention guidance",
    "nag_alpha": "normalized attention guidance",
    "nag_prompt": "normalized attention guidance",
    "prompt_wildcards": "wildcards in prompts",
    "prompt_weighting": "weighted words in prompts",
    "i2i_path": "an image to begin from",
    "v2_extra_noise": "extra noise on a video",
    "v2v_extra_noise": "extra noise on a video",
    "i2_extra_noise": "extra noise on an image",
    "i2v_extra_noise": "extra noise on an image",
    "noise_mode": "another meaning of the strength",
    "v2v_noise_mode": "another meaning of the strength",
    "v2v_pad_mode": "repeating frames of a short video",
}


def of_others(name: str) -> str:
    """What is said of an option that only blissful-tuner has; empty for any other name."""
    if name in _HERE:
        return f"It is blissful-tuner's; here it is {_HERE[name]}."
    if name in _NOT_HERE:
        return f"It is blissful-tuner's ({_NOT_HERE[name]}), and this engine does not have it: leave it out."
    return ""
