"""`lora merge`: LoRAs into a model file, tensor by tensor, or several LoRAs into one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ..contract.errors import OptionError
from ..contract.events import Artifact, Control, Log, Meter, Say
from ..contract.job import Job
from ..contract.options import LoraMerge, Run
from ..families import part
from ..lora.combine import concatenated, differences_of, modules_of, reduced
from ..lora.files import LoraFile, write_lora
from ..lora.formats import named
from ..lora.merge import load_loras, merger, refuse_other_size
from ..lora.merge_file import merge_into, open_unscaled
from ..lora.weights import LoraWeights
from ..ops.device import choose_device
from .lora_targets import checkpoint_target, family_of_checkpoint, family_of_lora, fullest_target, refuse_output

Loras = list[tuple[LoraFile, float]]


def run(job: Job, say: Say, control: Control) -> str:
    options = job[LoraMerge]
    if options.save_merged_lora is not None:
        refuse_output(options.save_merged_lora, options.lora_weight, flag="--save_merged_lora")
    if options.dit is not None:
        family = family_of_checkpoint(options.dit)
        target = checkpoint_target(family, options.dit)
    else:
        family = family_of_lora(options.lora_weight[0], options.family, role="--lora_weight")
        target = fullest_target(family)
    loras = load_loras(options.lora_weight, options.multipliers, target=target, say=say)
    for lora, multiplier in loras:
        if options.dit is not None:
            refuse_other_size(lora, target)
        say(Log(message=f"{lora.path.name} at {multiplier:g}: {len(lora.modules)} modules of {family}."))
    if options.save_merged_lora is not None:
        return _into_one(family, options, loras, say)
    return _into_model(job, family, loras, say)


def _into_model(job: Job, family: str, loras: Loras, say: Say) -> str:
    options, output = job[LoraMerge], str(job[LoraMerge].save_merged_model)
    if options.max_shard_size is not None and in_use(Path(output)):
        raise OptionError(
            f"--save_merged_model: {output} is there already, but --max_shard_size needs a new folder.",
            "Give it another name.",
            names=("save_merged_model", "max_shard_size"),
        )
    write_merged(
        family,
        str(options.dit),
        output,
        loras,
        role="--dit",
        device=choose_device(job[Run].device),
        shard_bytes=None if options.max_shard_size is None else int(options.max_shard_size * 1e9),
        say=say,
    )
    return f"LoRA files merged into {output}: {len(loras)}"


def in_use(folder: Path) -> bool:
    """Whether a file stands in a folder's place, or something is in it."""
    return folder.is_file() or (folder.is_dir() and any(folder.iterdir()))


def write_merged(
    family: str,
    dit: str,
    output: str,
    loras: Sequence[tuple[LoraFile, float]],
    *,
    role: str,
    device: torch.device,
    shard_bytes: int | None = None,
    say: Say,
) -> None:
    """Write the checkpoint `dit` (that the flag `role` names) with LoRAs in it to `output`, in its own layout.

    OptionError where that would replace it, WeightsError where nothing can be merged into it, DiskError.
    """
    file = open_unscaled(dit, role=role)
    if Path(output).resolve() in {Path(dit).resolve(), file.path.resolve()}:
        raise OptionError(f"--save_merged_model would replace {role}.", "Give the merged model another name.")
    meter = Meter(say, total=len(file.shapes), unit="tensors", label="Merging")
    merge_into(
        file,
        output,
        arrangement=part(family, "keys").arrange(file.shapes),
        transform=merger(loras, device=device),
        metadata={"merged_lora": _told(loras)},
        shard_bytes=shard_bytes,
        on_tensor=meter.advance,
    )
    meter.close()
    say(Artifact(kind="model", path=output))


def _into_one(family: str, options: LoraMerge, loras: Loras, say: Say) -> str:
    output = str(options.save_merged_lora)
    modules = modules_of(loras)
    meter = Meter(say, total=len(modules), unit="modules", label="Merging")
    merged, whole, kept = {}, 0.0, 0.0
    for path, adapters in modules.items():
        lora = concatenated(adapters, where=path)
        whole += lora.squared_norm()
        if options.new_rank is not None or options.energy is not None:
            lora = reduced(lora, rank=options.new_rank, energy=options.energy)
            kept += lora.squared_norm()
        merged[path] = lora
        meter.advance()
    if kept:
        ranks = sorted({lora.rank for lora in merged.values()})
        shown = f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
        say(Log(message=f"Rank {shown} keeps {100 * kept / whole:.2f} % of the squared norm."))
    tensors = named(
        merged,
        part(family, "options").LORA_FORMAT,
        parts_of=part(family, "keys").diffusers_parts,
        differences=differences_of(loras),
    )
    write_lora(output, tensors, metadata=_metadata(loras, merged), dtype=loras[0][0].dtype)
    say(Artifact(kind="LoRA", path=output))
    return f"Merged {len(loras)} LoRAs into one of {len(merged)} modules: {output}"


def _metadata(loras: Loras, merged: Mapping[str, LoraWeights]) -> dict[str, str]:
    """The first file's word on what it is for, and what this one is made of; nothing about one training."""
    said = loras[0][0].metadata
    ranks = {lora.rank for lora in merged.values()}
    rank = str(ranks.pop()) if len(ranks) == 1 else "Dynamic"  # sd-scripts' word for ranks that differ
    kept = ("ss_base_model_version", "modelspec.sai_model_spec", "modelspec.architecture", "modelspec.implementation")
    return {
        **{key: said[key] for key in kept if key in said},
        "ss_network_module": "networks.lora",
        "ss_network_dim": rank,
        "ss_network_alpha": rank,
        "merged_lora": _told(loras),
    }


def _told(loras: Sequence[tuple[LoraFile, float]]) -> str:
    return ", ".join(f"{lora.path.name}: {multiplier:g}" for lora, multiplier in loras)
