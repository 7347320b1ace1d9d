"""Teaches Pocket Wan a concept in ComfyUI and lets the judge count: zoo/try_lora.py by nodes instead of commands.

    python -m tests.comfyui.taught OUT

Clips, captions, settings and prompts are those of zoo/try_lora.py. The shipped workflows are queued: the training with
a second dataset node, for the ordinary clips, then the generation once for each prompt. `OUT/report.json` holds what
the judge found, `OUT/taught.jpg` shows samples along the training. What is there already is not made again. Needs what
test_faults.py needs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.contract.files import write_text
from engine.demo.kits import POCKET
from engine.media.video import read_frames
from zoo.along import write_picture
from zoo.generating import SHIFT, STEPS
from zoo.pace import say
from zoo.pocket_wan import FRAMES, SIZE
from zoo.try_lora import Trial, figures, near_captions, new_captions, plain_captions, told, write_dataset

from .demo_models import install_demo
from .graphs import NO_WORDS
from .prompts import of_workflow
from .server import Server, link_pack
from .test_workflows import read

TRAIN, GENERATE = "Wan 2.1 - train a LoRA from a folder", "Wan 2.1 - generate with a LoRA"
NAME, SEEDS = "taught", 24
SAMPLED, SAMPLES = 200, 3  # every so many steps; prompts of what the clips show, beside an ordinary one
SHOWN = (0, 200, 400, 800)  # steps on the picture, beside the last one
TRAINING_S, CLIP_S = 3600.0, 600.0
KEPT_MINUTES = 10  # that an engine waits for the next clip


def main() -> None:
    parser = argparse.ArgumentParser("python -m tests.comfyui.taught", description="A LoRA taught in ComfyUI, judged.")
    parser.add_argument("out", type=Path, metavar="OUT")
    base = parser.parse_args().out.resolve() / "comfyui"
    if not (base / "custom_nodes").exists():
        link_pack(base)
        install_demo(base)
    trial = told([
        "--models", str(POCKET), "--out", str(base / "input" / NAME), "--concept", "striped_hexagon",
        "--seeds", str(SEEDS),
    ])  # fmt: skip
    if not trial.out.exists():
        write_dataset(trial)
    with Server(base) as server:
        report = teach(server, trial)
    write_text(base.parent / "report.json", json.dumps(report, indent=2) + "\n")


def teach(server: Server, trial: Trial) -> dict[str, Any]:
    """Train and generate; the judge's shares, 0..1, of each set of prompts, and the seconds of the training."""
    near, plain = near_captions(trial), plain_captions(trial.seeds)
    sampled = [*near[:SAMPLES], plain[0]]
    report: dict[str, Any] = {"seconds": queue_training(server, trial, sampled)}
    say(f"trained in {report['seconds']:.0f} s")
    training = server.base / "output" / "musubi" / "train" / NAME
    write_picture(training, server.base.parent / f"{NAME}.jpg", steps=[*SHOWN, trial.steps], prompts=sampled)
    server.post("/musubi/settings", {"keep_alive": KEPT_MINUTES})
    for name, prompts in (("word", near), ("new", new_captions(trial.concept, trial.seeds)), ("no_word", plain)):
        clips = queue_clips(server, trial, name, prompts)
        report[name] = figures(trial.concept, clips, prompts)
        say(f"{name:8} " + ", ".join(f"{fact} {share:.1%}" for fact, share in report[name].items()))
    return report


def queue_training(server: Server, trial: Trial, samples: Sequence[str]) -> float:
    """The training's workflow with the trial's clips and settings, to its end; the seconds that it took."""
    size = f'--w {SIZE} --h {SIZE} --f {FRAMES} --s {STEPS} --l {trial.guidance} --fs {SHIFT} --n ""'
    prompt = of_workflow(read(TRAIN), {
        "DatasetConfig": _folder(trial, "concept", trial.repeats),
        "LoRATrainingConfig": {
            "max_train_steps": trial.steps, "seed": 1, "network_dim": trial.rank, "network_alpha": trial.rank,
            "discrete_flow_shift": trial.shift, "prior_loss_weight": trial.prior, "save_every_n_steps": 0,
        },
        "OptimizerConfig": {"learning_rate": trial.rate},
        "SamplingConfig": {
            "prompts": "\n".join(f"{text} {size} --d {number}" for number, text in enumerate(samples)),
            "sample_every_n_steps": SAMPLED, "sample_at_first": True,
        },
        "Wan21LoRATrainer": {"output_name": NAME},
    })  # fmt: skip
    _add_ordinary(prompt, trial)
    begun = time.monotonic()
    _succeeded(server, server.queue(prompt), TRAINING_S)
    return time.monotonic() - begun


def _add_ordinary(prompt: dict[str, Any], trial: Trial) -> None:
    """A second dataset node behind the first one, for the clips without the concept."""
    first, concept = next(entry for entry in prompt.items() if entry[1]["class_type"].endswith("DatasetConfig"))
    for node in prompt.values():
        if node["inputs"].get("dataset") == [first, 0]:
            node["inputs"]["dataset"] = ["ordinary", 0]
    inputs = {**concept["inputs"], **_folder(trial, "ordinary", 1), "previous": [first, 0]}
    prompt["ordinary"] = {**concept, "inputs": inputs}


def _folder(trial: Trial, name: str, repeats: int) -> dict[str, Any]:
    """A dataset node's widgets for one of the folders that `write_dataset` makes."""
    return {
        "source.folder": f"input/{trial.out.name}/clips/{name}", "source.num_repeats": repeats,
        "preserve_prior": name == "ordinary" and bool(trial.prior), "name": f"{NAME}_{name}",
    }  # fmt: skip


def queue_clips(server: Server, trial: Trial, name: str, prompts: Sequence[str]) -> list[np.ndarray]:
    """A clip for each prompt, [F, H, W, 3] uint8: each a prompt of the queue."""
    queued = []
    for number, text in enumerate(prompts):
        queued.append(server.queue(of_workflow(read(GENERATE), {
            "Wan21LoRAStack": {"lora_1": f"musubi/{NAME}.safetensors"},
            "Wan21Generator": {
                "prompt": text, "negative_prompt": NO_WORDS, "seed": number, "cpu_noise": True,
                "infer_steps": STEPS, "flow_shift": SHIFT, "guidance_scale": trial.guidance,
                "filename_prefix": f"{NAME}/{name}_{number:02}",
            },
            "VideoOutput": {"filename_prefix": f"video/{NAME}/{name}_{number:02}"},
        })))  # fmt: skip
    for prompt in queued:
        _succeeded(server, prompt, CLIP_S)
    videos = [sorted((server.base / "output" / NAME).glob(f"{name}_{number:02}*.mp4")) for number in range(len(queued))]
    return [np.stack(list(read_frames(found[-1]))) for found in videos]


def _succeeded(server: Server, prompt: str, seconds: float) -> None:
    status = server.ended(prompt, seconds)["status"]
    if status["status_str"] != "success":
        raise SystemExit(f"The prompt failed: {json.dumps(status['messages'])[-2000:]}")


if __name__ == "__main__":
    main()
