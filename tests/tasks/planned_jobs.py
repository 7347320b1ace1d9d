"""Command lines of whole jobs on files that are headers only, and what is planned for them on a machine of known size.

The checkpoints have the names and shapes of the public files (tests/layouts) and no weights: nothing may read any.
"""

from __future__ import annotations

import json

from engine.contract import cli
from engine.memory.estimate import largest
from engine.tasks import fitting
from engine.tasks.planning import Survey
from tests.layouts.checks import HERE, read_layout
from tests.memory.measured import header_only

MODELS = {
    "wan-1.3b": ("wan", "wan21_t2v_1_3b", "wan21_vae", ("--task", "t2v-1.3B")),
    "wan-14b": ("wan", "wan21_t2v_14b", "wan21_vae", ("--task", "t2v-14B")),
    "hunyuan-video-13b": ("hunyuan-video", "hunyuanvideo_t2v_13b", "hunyuanvideo_vae_tencent", ()),
    "framepack": ("framepack", "framepack_i2v_hy", "hunyuanvideo_vae_tencent", ()),
}


def write_headers(folder):
    """The files of `MODELS`, and one that passes for any encoder."""
    for _, dit, vae, _ in MODELS.values():
        for layout in (dit, vae):
            header_only(folder / f"{layout}.safetensors", read_layout(HERE / f"{layout}.json.gz"))
    header_only(folder / "encoder.safetensors", {"shared.weight": (256, 64), "layer.weight": (4096, 4096)})
    return folder


def dataset(folder, size, **more):
    height, width, frames = size
    keys = {"resolution": [width, height], "target_frames": [frames], "batch_size": 1, **more}
    lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
    for name in ("clips", "cache"):
        (folder / name).mkdir(exist_ok=True)
    path = folder / "dataset.toml"
    path.write_text(
        f'[[datasets]]\nvideo_directory = "{folder}/clips"\ncache_directory = "{folder}/cache"\n'
        f'caption_extension = ".txt"\n{lines}'
    )
    return path


def training_line(headers, folder, model, size, *more):
    family, dit, _, task = MODELS[model]
    return [
        "train", family, *task, "--dit", f"{headers}/{dit}.safetensors", "--dataset_config", str(dataset(folder, size)),
        "--gradient_checkpointing", "--network_dim", "32", "--output_dir", f"{folder}/out", "--output_name", "x", *more,
    ]  # fmt: skip


def generation_line(headers, folder, model, size, *more):
    family, dit, vae, task = MODELS[model]
    names = ["t5"] if family == "wan" else ["text_encoder1", "text_encoder2"]
    names += ["image_encoder"] if family == "framepack" else []
    encoders = [word for name in names for word in (f"--{name}", f"{headers}/encoder.safetensors")]
    height, width, frames = map(str, size)
    return [
        "generate", family, *task, "--dit", f"{headers}/{dit}.safetensors", "--vae", f"{headers}/{vae}.safetensors",
        *encoders, "--prompt", "a cat", "--video_size", height, width, "--video_length", frames,
        "--save_path", f"{folder}/videos", *more,
    ]  # fmt: skip


def worst(words):
    job = cli.parse(words)
    return largest(Survey(job).stages(job))


def planned(words):
    job = cli.parse(words)
    return fitting.plan(job, survey=Survey(job))
