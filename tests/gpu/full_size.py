"""`python -m tests.gpu.full_size OUT.json [CASE …]`: full-size Wan with random weights through the ordinary command.

Writes a DiT of the real size in the original names, caches of random latents, and runs `python -m engine train wan`
on them; the step times are read from the job's own events. Needs a CUDA GPU and room on the disk.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from engine.families.wan.detect import WanConfig
from engine.families.wan.model import build

CONFIGS = {
    "1.3B": {"dim": 1536, "ffn_dim": 8960, "num_heads": 12, "num_layers": 30},
    "14B": {"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40},
}
WARM_UP = 3


@dataclass(frozen=True)
class Case:
    """One row: model size, frames of 480x832, further flags of the command."""

    size: str
    frames: int
    mode: str
    flags: tuple[str, ...]
    steps: int = 10


CASES = {
    f"train-wan-{size.lower()}-480x832x{frames}/{mode}": Case(size, frames, mode, flags)
    for size, frames in (("1.3B", 33), ("1.3B", 81), ("14B", 33))
    for mode, flags in (
        ("bf16", ()),
        ("fp8_scaled", ("--fp8_base", "--fp8_scaled")),
        ("swap", ("--fp8_base", "--fp8_scaled", "--blocks_to_swap", "20", "--use_pinned_memory_for_block_swap",
                  "--block_swap_h2d_only")),
    )
}  # fmt: skip


def write_dit(path: Path, size: str) -> None:
    """Random bf16 weights at the scale of a trained model's."""
    config = WanConfig(
        freq_dim=256, text_dim=4096, in_dim=16, out_dim=16, head_dim=128, **CONFIGS[size],
    )  # fmt: skip
    tensors = {}
    for name, parameter in build(config).state_dict().items():
        std = 0.0 if name.endswith("bias") else 0.02
        value = torch.ones(parameter.shape) if "norm" in name and name.endswith("weight") else None
        if value is None:
            value = torch.randn(parameter.shape, device="cuda") * std
        tensors[name] = value.to("cpu", torch.bfloat16)
    save_file(tensors, path)


def write_caches(folder: Path, frames: int) -> Path:
    """One clip of random latents and one caption of random embeddings, as musubi-tuner writes them."""
    cache, clips = folder / "cache", folder / "clips"
    cache.mkdir(parents=True, exist_ok=True)
    clips.mkdir(exist_ok=True)
    latent_frames = (frames - 1) // 4 + 1
    latents = {f"latents_{latent_frames}x60x104_bfloat16": torch.randn(16, latent_frames, 60, 104).bfloat16()}
    said = {"architecture": "wan", "width": "832", "height": "480", "format_version": "1.0.1"}
    name = f"clip_00000-{frames:03d}_0832x0480_wan.safetensors"
    save_file(latents, cache / name, metadata={**said, "frame_count": str(frames)})
    text = {"varlen_t5_bfloat16": torch.randn(120, 4096).bfloat16() * 0.1}
    save_file(text, cache / "clip_wan_te.safetensors", metadata={**said, "caption1": "a clip"})
    config = folder / "dataset.toml"
    config.write_text(
        f'[general]\nresolution = [832, 480]\ncaption_extension = ".txt"\n[[datasets]]\n'
        f'video_directory = "{clips}"\ncache_directory = "{cache}"\ntarget_frames = [{frames}]\n'
    )
    return config


def measure(name: str, case: Case, dit: Path, folder: Path) -> dict[str, Any]:
    """Run the command and read the step times (wall clock between steps) and the memory from its events."""
    config = write_caches(folder / f"{case.size}-{case.frames}", case.frames)
    out = folder / name.replace("/", "-")
    command = [
        sys.executable, "-m", "engine", "train", "wan", "--task", f"t2v-{case.size}", "--dit", str(dit),
        "--dataset_config", str(config), "--mixed_precision", "bf16", "--gradient_checkpointing", "--network_dim", "32",
        "--network_alpha", "32", "--learning_rate", "1e-4", "--timestep_sampling", "shift", "--discrete_flow_shift",
        "3.0", "--max_train_steps", str(case.steps), "--seed", "1", "--output_dir", str(out), "--job_dir",
        str(out / "job"), "--events", *case.flags,
    ]  # fmt: skip
    started = time.monotonic()
    times, losses, last, peak = [], [], "", {}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        event, last = json.loads(line), line
        if event["event"] == "metric":
            times.append(time.monotonic())
            losses.append(event["values"]["loss/current"])
        if event["event"] == "resource":
            peak = event["values"]
    errors = process.stderr.read()
    if process.wait():
        return {"case": name, "failed": json.loads(last), "stderr": errors[-1500:]}
    steps = [after - before for before, after in zip(times, times[1:], strict=False)][WARM_UP - 1 :]
    return {
        "case": name.split("/")[0], "mode": case.mode, "device": torch.cuda.get_device_name(), "n": len(steps),
        "torch": torch.__version__, "seconds": round(statistics.median(steps), 3),
        "losses": [round(loss, 4) for loss in losses],
        "first_step_after_s": round(times[0] - started, 1), **peak,
    }  # fmt: skip


def main(argv: list[str]) -> int:
    target, wanted = Path(argv[0]), argv[1:] or list(CASES)
    folder = Path(tempfile.mkdtemp(prefix="full-size-"))
    rows, weights = [], {}
    for name in [case for case in CASES if case in wanted]:
        case = CASES[name]
        if case.size not in weights:
            for old in weights.values():
                old.unlink()
            weights = {case.size: folder / f"wan-{case.size}.safetensors"}
            write_dit(weights[case.size], case.size)
        rows.append(measure(name, case, weights[case.size], folder))
        print(json.dumps(rows[-1]), flush=True)
        target.write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
