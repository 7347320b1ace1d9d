"""The shipped workflows in our own words: nodes, values, links, notes. `make_workflows.py` has ComfyUI write them down.

Each one runs as it is on the demo models; its note says what to change for real ones. Families differ in a table only.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OURS = "MusubiTuner_"
NAMESPACE = uuid.UUID("6f1c1f0a-6f63-4a43-9c39-0d5f2f6f7a11")
DEMO = "musubi_demo"
NOTES = Path(__file__).parent / "notes"
PROMPT = "a large striped yellow hexagon goes down on a light green background"
CLIPS = f"input/{DEMO}/striped_hexagons"
FIRST_CLIP, ITS_PROMPT = "orange_right.mp4", "a big striped orange hexagon moves to the right on a black background"
SIZE, FRAMES, BATCH = 64, 17, 4
NO_WORDS = " "
"""A negative prompt without words. Empty means the model's own: Wan's is Chinese, which Pocket Wan does not know."""
TEXT_HEIGHT = 340  # of a dataset that is written as text


@dataclass(frozen=True)
class Part:
    """A node: a key of our own, its class, its column, and the widgets that are not at their defaults.

    Nodes of a column stand below each other in the order in which they are written. `height` 0: as low as it goes.
    """

    key: str
    type: str
    column: int
    values: dict[str, Any] = field(default_factory=dict)
    height: int = 0
    title: str = ""


@dataclass(frozen=True)
class Graph:
    """A workflow. `links`: (from node, its output, to node, its input). `photographed`: the nodes on its picture."""

    name: str
    parts: tuple[Part, ...]
    links: tuple[tuple[str, str, str, str], ...]
    note: str
    photographed: tuple[str, ...]

    @property
    def id(self) -> str:
        return str(uuid.uuid5(NAMESPACE, self.name))


@dataclass(frozen=True, kw_only=True)
class Family:
    """What is different about a family: its node names and its demo models."""

    key: str
    node: str
    title: str
    models: dict[str, Any]
    prompt: str = PROMPT
    generation: dict[str, Any]
    training: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    sample: str = ""
    dataset: dict[str, Any] | None = None
    starts_from_image: bool = False


def _file(family: str, option: str) -> str:
    return f"{DEMO}_{family}_{option}.safetensors"


def _files(family: str, *options: str) -> dict[str, Any]:
    return {option: _file(family, option) for option in options}


WINDOWS = f"""[general]
resolution = [{SIZE}, {SIZE}]
caption_extension = ".txt"
batch_size = {BATCH}

[[datasets]]
video_directory = "{CLIPS}"
target_frames = [{FRAMES}]
fp_latent_window_size = 2
"""
WAN = Family(
    key="wan", node="Wan21", title="Wan 2.1",
    models={**_files("wan", "dit", "vae", "t5"), "task": "t2v-1.3B"},
    generation={"negative_prompt": NO_WORDS, "guidance_scale": 4.0, "flow_shift": 3.0},
    sample='--s 20 --l 4 --fs 3 --n ""',
)  # fmt: skip
HUNYUAN = Family(
    key="hunyuan_video", node="HunyuanVideo", title="HunyuanVideo",
    models=_files("hunyuan_video", "dit", "vae", "text_encoder1", "text_encoder2"),
    generation={"guidance_scale": 1.0, "embedded_cfg_scale": 6.0, "flow_shift": 3.0},
    sample="--s 20 --g 6 --fs 3",
)  # fmt: skip
FRAMEPACK = Family(
    key="framepack", node="FramePack", title="FramePack",
    models={**_files("framepack", "dit", "vae", "text_encoder1", "text_encoder2", "image_encoder"),
            "latent_window_size": 2},
    prompt=ITS_PROMPT, generation={"guidance_scale": 2.0, "video_sections": 2},
    training={"guidance_scale": 10.0},
    dataset={"source": "text", "source.text": WINDOWS, "name": f"{DEMO}_windows"},
    starts_from_image=True,
)  # fmt: skip
FAMILIES = (WAN, HUNYUAN, FRAMEPACK)


def noted(kind: str, title: str, family: Family | None = None) -> str:
    """A note out of `notes/`: the title, then English, then Japanese."""
    begin, models = _languages("begin"), _about_models(kind, family) if family else ("", "")
    parts = [
        body.format(begin=begin[number], models=models[number]) for number, body in enumerate(_languages(kind))
    ]  # fmt: skip
    return f"# {title}\n\n" + "\n\n---\n\n".join(parts)


def _about_models(kind: str, family: Family) -> tuple[str, str]:
    """What changes with real models of a family, and what else does in this kind of workflow."""
    always, here = f"models_{family.key}", f"models_{family.key}_{kind}"
    if not (NOTES / f"{here}.md").is_file():
        return _languages(always)
    english, japanese = zip(_languages(always), _languages(here), strict=True)
    return "\n".join(english), "\n".join(japanese)


def _languages(name: str) -> tuple[str, str]:
    english, japanese = (NOTES / f"{name}.md").read_text(encoding="utf-8").split("\n---\n")
    return english.strip(), japanese.strip()


def _dataset(family: Family) -> Part:
    if family.dataset:
        return Part("dataset", f"{OURS}DatasetConfig", 0, family.dataset, TEXT_HEIGHT)
    folder = {
        "source": "folder", "source.folder": CLIPS, "source.width": SIZE, "source.height": SIZE,
        "source.target_frames": str(FRAMES), "source.batch_size": BATCH, "name": DEMO,
    }  # fmt: skip
    return Part("dataset", f"{OURS}DatasetConfig", 0, folder)


def _generation(family: Family) -> dict[str, Any]:
    length = {} if "video_sections" in family.generation else {"video_length": FRAMES}
    return {
        "prompt": family.prompt, "video_size_height": SIZE, "video_size_width": SIZE, **length,
        "infer_steps": 20, "seed": 42, "control_after_generate": "fixed",
        "filename_prefix": f"musubi/{DEMO}_{family.key}", **family.generation,
    }  # fmt: skip


def _models(family: Family, column: int) -> Part:
    return Part("models", f"{OURS}{family.node}ModelPaths", column, family.models)


def _generator(family: Family, column: int) -> Part:
    return Part("generator", f"{OURS}{family.node}Generator", column, _generation(family))


def _save(name: str, column: int) -> Part:
    return Part("save", f"{OURS}VideoOutput", column, {"filename_prefix": f"video/{name}"}, 560)


def _first_frame(family: Family, column: int) -> tuple[tuple[Part, ...], tuple[tuple[str, str, str, str], ...]]:
    """The picture that an image-to-video model begins with, out of a clip of the demo; nothing for the others."""
    if not family.starts_from_image:
        return (), ()
    parts = (
        Part("clip", f"{OURS}VideoInput", column, {"video": f"{CLIPS}/{FIRST_CLIP}"}),
        Part("frames", "GetVideoComponents", column),
        Part("frame", "ImageFromBatch", column, {"batch_index": 0, "length": 1}),
    )
    links = (
        ("clip", "video", "frames", "video"), ("frames", "images", "frame", "image"),
        ("frame", "IMAGE", "generator", "image"),
    )  # fmt: skip
    return parts, links


def train(family: Family) -> Graph:
    name = f"{DEMO}_{family.key}_mine"
    prompt = f"{family.prompt} --w {SIZE} --h {SIZE} --f {FRAMES} {family.sample} --d 42"
    sampling = {"prompts": prompt, "sample_every_n_steps": 50}
    first, first_links = _first_frame(family, 3)
    settings = {
        "max_train_steps": 250, "seed": 42, "control_after_generate": "fixed", "network_dim": 32, "network_alpha": 32,
        "timestep_sampling": "shift", "discrete_flow_shift": 3.0, "save_every_n_steps": 50, **family.training,
    }  # fmt: skip
    optimizer = {"learning_rate": 0.001, "lr_scheduler": "cosine", **family.optimizer}
    parts = (
        _dataset(family),
        _models(family, 1),
        Part("latents", f"{OURS}VAELatentCache", 1),
        Part("texts", f"{OURS}TextEncoderCache", 1),
        Part("training", f"{OURS}LoRATrainingConfig", 2, settings),
        Part("optimizer", f"{OURS}OptimizerConfig", 2, optimizer),
        *(() if family.starts_from_image else (Part("sampling", f"{OURS}SamplingConfig", 3, sampling),)),
        Part("memory", f"{OURS}MemoryOptimizer", 3, {"mixed_precision": "no"}),
        *first,
        Part("trainer", f"{OURS}{family.node}LoRATrainer", 4, {"output_name": name}, 900),
        _save(name, 6),
        _generator(family, 5),
    )
    links = (
        ("dataset", "dataset", "latents", "dataset"), ("latents", "dataset", "texts", "dataset"),
        ("texts", "dataset", "trainer", "dataset"), ("models", "models", "latents", "models"),
        ("models", "models", "texts", "models"), ("models", "models", "trainer", "models"),
        ("training", "training", "trainer", "training"), ("optimizer", "optimizer", "trainer", "optimizer"),
        *(() if family.starts_from_image else (("sampling", "sampling", "trainer", "sampling"),)),
        ("memory", "memory", "trainer", "memory"), ("models", "models", "generator", "models"),
        ("trainer", "LoRAs", "generator", "loras"), ("generator", "video", "save", "video"), *first_links,
    )  # fmt: skip
    note = noted("train", f"{family.title}: train a LoRA", family)
    photographed = ("trainer",)
    return Graph(f"{family.title} - train a LoRA from a folder", parts, links, note, photographed)


def generate(family: Family) -> Graph:
    first, first_links = _first_frame(family, 1)
    loras = {"lora_1": _file(family.key, "lora"), "strength_1": 1.0}
    parts = (
        _models(family, 1),
        Part("loras", f"{OURS}{family.node}LoRAStack", 1, loras),
        *first,
        _generator(family, 2),
        _save(f"{DEMO}_{family.key}", 3),
    )
    links = (
        ("models", "models", "generator", "models"), ("loras", "loras", "generator", "loras"),
        ("generator", "video", "save", "video"), *first_links,
    )  # fmt: skip
    note = noted("generate", f"{family.title}: generate with a LoRA", family)
    photographed = ("models", "generator", "save")
    return Graph(f"{family.title} - generate with a LoRA", parts, links, note, photographed)


def merge() -> Graph:
    mixed = {
        "lora_1": _file("wan", "lora"), "strength_1": 0.6,
        "lora_2": f"{DEMO}_wan_lora-step{150:08d}.safetensors", "strength_2": 0.4,
    }  # fmt: skip
    parts = (
        Part("loras", f"{OURS}Wan21LoRAStack", 1, mixed),
        Part("merger", f"{OURS}LoRAMerger", 2, {"write": "LoRA", "dit": "none", "name": f"{DEMO}_merged"}),
        _models(WAN, 2),
        _generator(WAN, 3),
        _save(f"{DEMO}_merged", 4),
    )
    links = (
        ("loras", "loras", "merger", "loras"), ("models", "models", "generator", "models"),
        ("loras", "loras", "generator", "loras"), ("generator", "video", "save", "video"),
    )  # fmt: skip
    note = noted("merge", "Several LoRAs become one")
    return Graph("LoRA - merge several into one", parts, links, note, ("merger", "generator"))


def convert() -> Graph:
    values = {"input": _file("wan", "lora"), "target": "other", "dit": "none", "name": f"{DEMO}_for_others"}
    parts = (
        Part("converter", f"{OURS}LoRAFormatConverter", 1, values),
        Part("path", "PreviewAny", 2, {}, 200, "Where it is"),
    )
    links = (("converter", "path", "path", "source"),)
    note = noted("convert", "A LoRA for other programs")
    return Graph("LoRA - convert for other programs", parts, links, note, ("note", "converter", "path"))


def average() -> Graph:
    values = {"lora": _file("wan", "lora"), "beta": 0.9, "name": f"{DEMO}_average"}
    parts = (
        Part("ema", f"{OURS}LoRAPostHocEMA", 1, values),
        Part("path", "PreviewAny", 2, {}, 200, "Where it is"),
    )
    links = (("ema", "path", "path", "source"),)
    note = noted("average", "Average the LoRAs of one training")
    return Graph("LoRA - average one training (EMA)", parts, links, note, ("note", "ema", "path"))


def graphs() -> list[Graph]:
    """All of them, in the order in which a person meets them."""
    return [*map(train, FAMILIES), *map(generate, FAMILIES), merge(), convert(), average()]
