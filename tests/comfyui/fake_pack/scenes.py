"""What the runs of the fake pack do: each scene yields the engine's events, one after the other, without any clock."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any

Event = dict[str, Any]


def progress(done: int, total: int, unit: str, rate: float) -> Event:
    left_s = (total - done) / rate
    return {"event": "progress", "done": done, "total": total, "unit": unit, "rate": rate, "eta_s": left_s, "label": ""}


PLAN: Event = {
    "event": "plan", "asked_mib": 18740.0, "needed_mib": 11620.0, "limit_mib": 22840.0, "ram_mib": 9410.0, "fits": True,
    "options": {"blocks_to_swap": 12, "gradient_checkpointing": True, "use_pinned_memory_for_block_swap": False},
    "message": "", "scratch_mib": 7321.0, "scratch_folder": "/home/me/.local/share/musubi/scratch",
    "stages": [
        {"name": "encoding text", "needed_mib": 10890.0, "device_mib": {"t5": 10410.0}, "main_mib": {}},
        {"name": "training step", "needed_mib": 11620.0, "device_mib": {"DiT weights": 7210.0}, "main_mib": {}},
        {"name": "sample: decoding", "needed_mib": 8120.0, "device_mib": {"frames in the VAE": 6100.0}, "main_mib": {}},
    ],
}  # fmt: skip


def training(steps: int) -> Iterator[Event]:
    """A loss that falls and jitters, a warm-up, samples and LoRAs on the way."""
    random.seed(7)
    yield PLAN
    yield {"event": "stage", "name": "Loading the DiT", "message": "wan2.1_t2v_1.3B.safetensors on cuda:0"}
    yield {"event": "stage", "name": "training", "message": f"{steps} steps, 10 epochs"}
    for step in range(1, steps + 1):
        loss = 0.055 + 0.16 * math.exp(-step / (steps * 0.25)) + abs(random.gauss(0, 0.022))
        rate = 2e-4 * min(1, step / (steps * 0.1)) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        yield {"event": "metric", "step": step, "values": {"loss/current": loss, "loss/average": loss, "lr/unet": rate}}
        yield progress(step, steps, "steps", 3.42)
        used = {"vram_mib": 11200 + 300 * math.sin(step / 4), "ram_mib": 14300 + step}
        yield {"event": "resource", "values": {**used, "vram_total_mib": 24564, "vram_peak_mib": 11540}}
        if step % 10 == 0:
            yield {"event": "log", "level": "info", "message": f"step {step}: loss {loss:.4f}"}
        if step % max(steps // 4, 1) == 0:
            yield {"event": "preview", "path": f"sample-{step:05d}.mp4", "label": f"step {step}", "step": step}
            yield {"event": "artifact", "kind": "LoRA", "path": f"my-lora-step{step:05d}.safetensors"}
    yield {"event": "warning", "message": "2 captions are longer than 512 tokens and were cut"}
    yield {"event": "done", "message": "my-lora.safetensors"}


def generating(steps: int) -> Iterator[Event]:
    yield {"event": "stage", "name": "Sampling", "message": "832x480, 81 frames"}
    for step in range(1, steps + 1):
        yield progress(step, steps, "steps", 0.4)
        if step == steps // 2:
            yield {"event": "preview", "path": "preview.jpg", "label": "half way"}
    yield {"event": "artifact", "kind": "video", "path": "video.mp4"}
    yield {"event": "done", "message": "video.mp4"}


def caching(steps: int) -> Iterator[Event]:
    yield {"event": "stage", "name": "Loading the VAE", "message": "wan_2.1_vae.safetensors on cuda:0"}
    for step in range(1, steps + 1):
        yield progress(step, steps, "clips", 2.0)
        yield {"event": "log", "level": "info", "message": f"clip_{step:04d}.mp4: 21 x 60 x 104 latents"}
    yield {"event": "done", "message": f"{steps} caches"}


def tight(steps: int) -> Iterator[Event]:
    yield {**PLAN, "limit_mib": 8190.0, "fits": False}
    yield from (event for event in training(steps) if event["event"] != "plan")


def failing(steps: int) -> Iterator[Event]:
    yield from (event for event in training(max(steps // 2, 1)) if event["event"] not in ("done", "warning"))
    yield {"event": "failed", "kind": "memory", "message": "The GPU has 24564 MiB and this job needs about 31000 MiB.",
           "hint": "Set blocks_to_swap to 20 or more, or fp8_base to true, in the Memory Optimizer node."}  # fmt: skip


def diverging(steps: int) -> Iterator[Event]:
    for event in training(steps):
        if event["event"] == "metric" and event["step"] > steps // 2:
            event["values"] = {**event["values"], "loss/current": "NaN", "loss/average": "NaN"}
        yield event


SCENES = {
    "train": training, "generate": generating, "cache-latents": caching, "fail": failing, "diverge": diverging,
    "tight": tight,
}  # fmt: skip
VERBS = {"fail": "train", "diverge": "train", "tight": "train"}
