"""What a trained LoRA file says about itself: the `ss_*` keys of sd-scripts and the model specification's keys.

Each field of `TrainingFacts` becomes one `ss_` key, so a new fact is a new line here and nowhere else. Knows no
option and no family: the family's task hands over the architecture and its repository.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields

MINIMUM = (
    "ss_base_model_version",
    "ss_network_module",
    "ss_network_dim",
    "ss_network_alpha",
    "ss_network_args",
)


@dataclass(frozen=True, kw_only=True)
class TrainingFacts:
    """Facts that stay the same through one training. Fields left at the empty text are not written."""

    base_model_version: object
    network_module: object
    network_dim: object
    network_alpha: object
    network_args: object = ""  # JSON, only when there are any
    network_dropout: object = None
    session_id: object = ""
    training_started_at: object = ""  # seconds since 1970
    output_name: object = ""
    learning_rate: object = ""
    num_train_items: object = ""
    num_batches_per_epoch: object = ""
    num_epochs: object = ""
    gradient_checkpointing: object = False
    gradient_checkpointing_cpu_offload: object = False
    gradient_accumulation_steps: object = 1
    max_train_steps: object = ""
    ema_decay: object = ""  # of an average
    lr_warmup_steps: object = 0
    lr_scheduler: object = ""
    mixed_precision: object = None
    seed: object = None
    training_comment: object = None
    optimizer: object = ""
    max_grad_norm: object = ""
    fp8_base: object = False
    full_fp16: object = False
    full_bf16: object = False
    weighting_scheme: object = ""
    logit_mean: object = ""
    logit_std: object = ""
    mode_scale: object = ""
    guidance_scale: object = ""
    timestep_sampling: object = ""
    sigmoid_scale: object = ""
    discrete_flow_shift: object = ""
    datasets: object = ""  # JSON
    sd_model_name: object = ""  # file name of the DiT
    vae_name: object = ""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What the `modelspec.*` keys are made of.

    `architecture` ("wan2.1") and `implementation` (a repository) are the family's; `custom_architecture` is
    `--metadata_arch`. `resolution` is (width, height) in pixels. `timesteps` is (min, max) or None.
    """

    architecture: str
    implementation: str
    title: str
    resolution: tuple[int, int]
    custom_architecture: str = ""
    author: str = ""
    description: str = ""
    license: str = ""
    tags: str = ""
    timesteps: tuple[float, float] | None = None


def lora_metadata(
    facts: TrainingFacts,
    spec: ModelSpec,
    *,
    steps: int,
    epoch: int,
    no_metadata: bool = False,
    now_s: float | None = None,
) -> dict[str, str]:
    """All metadata of a LoRA file saved after `steps` optimizer steps in `epoch`, without the hashes.

    `no_metadata` keeps only what a reader needs to use the file, and the model specification.
    """
    now_s = time.time() if now_s is None else now_s
    values = {f"ss_{entry.name}": getattr(facts, entry.name) for entry in fields(facts)}
    metadata = {key: str(value) for key, value in values.items() if value != ""}
    metadata |= {"ss_training_finished_at": str(now_s), "ss_steps": str(steps), "ss_epoch": str(epoch)}
    if no_metadata:
        metadata = {key: metadata[key] for key in MINIMUM if key in metadata}
    return metadata | modelspec(spec, now_s=now_s)


def modelspec(spec: ModelSpec, *, now_s: float) -> dict[str, str]:
    """The keys of the SAI model specification 1.0.0 for a LoRA."""
    optional: Mapping[str, str] = {
        "author": spec.author,
        "description": spec.description,
        "license": spec.license,
        "tags": spec.tags,
        "timestep_range": "" if spec.timesteps is None else "{:g},{:g}".format(*spec.timesteps),
    }
    metadata = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{spec.custom_architecture or spec.architecture}/lora",
        "modelspec.implementation": spec.implementation,
        "modelspec.title": spec.title,
        "modelspec.resolution": "{}x{}".format(*spec.resolution),
        "modelspec.date": datetime.datetime.fromtimestamp(int(now_s)).isoformat(),
    }
    return metadata | {f"modelspec.{key}": value for key, value in optional.items() if value}
