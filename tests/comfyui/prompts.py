"""Prompts in the API's form, for what needs no browser: one of our own, and those that saved workflows mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OURS = "MusubiTuner_"
TRAINER = "6"


PAGE_ONLY = "control_after_generate"  # a widget that the page acts on


def of_workflow(workflow: Mapping[str, Any], changes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The prompt that the page makes of a saved workflow; `changes`: class without our prefix → widget → value."""
    sources = {number: [str(node), output] for number, node, output, *_ in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] != "MarkdownNote":
            wired = {slot["name"]: sources[slot["link"]] for slot in node["inputs"] if slot.get("link") is not None}
            named = {name: value for name, value in node["widgets_values_named"].items() if name != PAGE_ONLY}
            name = node["type"].removeprefix(OURS)
            prompt[str(node["id"])] = _node(name, **{**named, **changes.get(name, {}), **wired})
    return prompt


def training(name: str, *, steps: int = 2000, save_every: int = 0) -> dict[str, Any]:
    """From the demo's clips to a Wan LoRA. `steps` many enough to be interrupted."""
    return {
        "1": _node("Wan21ModelPaths", dit="musubi_demo_wan_dit.safetensors", vae="musubi_demo_wan_vae.safetensors",
                   t5="musubi_demo_wan_t5.safetensors", task="t2v-1.3B"),
        "2": _node("DatasetConfig", **{
            "source": "folder", "source.folder": "input/musubi_demo/striped_hexagons", "source.width": 64,
            "source.height": 64, "source.target_frames": "17",
        }),
        "3": _node("VAELatentCache", dataset=["2", 0], models=["1", 0]),
        "4": _node("TextEncoderCache", dataset=["3", 0], models=["1", 0]),
        "5": _node("LoRATrainingConfig", max_train_steps=steps, seed=1, network_dim=4, network_alpha=4.0,
                   timestep_sampling="uniform", save_every_n_steps=save_every),
        TRAINER: _node("Wan21LoRATrainer", dataset=["4", 0], models=["1", 0], training=["5", 0], memory=["7", 0],
                       output_name=name),
        "7": _node("MemoryOptimizer", mixed_precision="no"),
    }  # fmt: skip


def _node(name: str, /, **inputs: Any) -> dict[str, Any]:
    return {"class_type": OURS + name, "inputs": inputs}
