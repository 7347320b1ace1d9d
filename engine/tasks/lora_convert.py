"""`lora convert`: a LoRA under other names, for tools that read only those. What it does stays the same."""

from __future__ import annotations

from pathlib import Path

from ..contract.events import Artifact, Control, Log, Say, Stage, Warning_
from ..contract.job import Job
from ..contract.options import LoraConvert
from ..families import part
from ..lora import peft
from ..lora.files import LoraFile, read_lora, write_lora
from ..lora.formats import named
from ..lora.merge import report_unmatched
from .lora_targets import checkpoint_target, family_of_checkpoint, family_of_lora, fullest_target, refuse_output


def run(job: Job, say: Say, control: Control) -> str:
    options = job[LoraConvert]
    refuse_output(options.output, [options.input], flag="--output")
    say(Stage(name="Converting", message=Path(options.input).name))
    if options.dit is not None:
        family = family_of_checkpoint(options.dit)
        target = checkpoint_target(family, options.dit)
    else:
        family = family_of_lora(options.input, options.family, role="--input")
        target = fullest_target(family)
    lora = read_lora(options.input, target, role="--input")
    say(Log(message=f"{lora.path.name} is read as a LoRA of {family}: {len(lora.modules)} modules."))
    report_unmatched(lora, say)
    for note in _notes(options, lora):
        say(Warning_(message=note))
    tensors = named(
        lora.modules,
        options.target,
        parts_of=part(family, "keys").diffusers_parts,
        differences=lora.differences,
        prefix=options.diffusers_prefix,
        keep_alpha=options.keep_alpha,
    )
    metadata = {key: value for key, value in lora.metadata.items() if key != peft.METADATA}
    write_lora(options.output, tensors, metadata=metadata)
    say(Artifact(kind="LoRA", path=str(Path(options.output))))
    return f"{len(lora.modules)} modules under {options.target} names: {options.output}"


def _notes(options: LoraConvert, lora: LoraFile) -> list[str]:
    """What the readers of these names make of it that is not what was trained."""
    notes = []
    if options.target == "diffusers" and options.keep_alpha:
        notes.append("diffusers and PEFT do not read alpha, so there this file acts alpha / rank times too weakly.")
    if options.target != "diffusers" and any(weights.dora is not None for weights in lora.modules.values()):
        notes.append(
            "ComfyUI divides the rows of a DoRA by their lengths before the change, not after it as in training: there "
            "this file acts a few percent differently. musubi-tuner leaves the lengths out."
        )
    return notes
