"""`lora ema`: one LoRA out of the checkpoints of a training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from ..contract.events import Artifact, Control, Log, Meter, Say
from ..contract.job import Job
from ..contract.options import LoraEma
from ..lora.ema import average, betas, in_order
from ..lora.files import read_tensors, write_lora
from .lora_targets import refuse_output

_ROLE = "The LoRA"


def run(job: Job, say: Say, control: Control) -> str:
    options = job[LoraEma]
    refuse_output(options.output_file, options.path, flag="--output_file")
    metadata = {Path(path): read_tensors(Path(path), role=_ROLE)[1] for path in options.path}
    paths = [Path(path) for path in options.path]
    if not options.no_sort:
        paths, told = in_order(metadata)
        say(Log(message=f"In order of {told}: {', '.join(path.name for path in paths)}"))
    counts = betas(len(paths), beta=options.beta, beta2=options.beta2, sigma_rel=options.sigma_rel)
    meter = Meter(say, total=len(paths), unit="files", label="Averaging")

    def files() -> Iterator[tuple[str, Mapping[str, Tensor]]]:
        for path in paths:
            yield str(path), read_tensors(path, role=_ROLE)[0]
            meter.advance()

    merged = average(files(), counts)
    write_lora(options.output_file, merged, metadata=metadata[paths[-1]])
    say(Artifact(kind="LoRA", path=options.output_file))
    return f"Averaged {len(paths)} LoRAs with beta {counts[0]:.4f} … {counts[-1]:.4f}: {options.output_file}"
