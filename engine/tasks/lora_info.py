"""`lora info`: kind, rank, alpha, training and norms of LoRA files, and which models they load into."""

from __future__ import annotations

from pathlib import Path

from ..contract.commands import find_family
from ..contract.errors import WeightsError
from ..contract.events import Control, Log, Meter, Metric, Say, Stage
from ..contract.job import Job
from ..contract.options import LoraInfo
from ..contract.wording import counted
from ..lora.files import read_lora, read_tensors
from ..lora.info import describe, lines
from ..lora.merge import report_unmatched
from ..lora.peft import find_weights
from .lora_targets import fullest_target, guesses

_ROLE = "The LoRA"


def run(job: Job, say: Say, control: Control) -> str:
    options = job[LoraInfo]
    for path in options.path:
        say(Stage(name=Path(path).name, message=str(Path(path).parent)))
        _tell(find_weights(Path(path), role=_ROLE), options.family, say)
    return counted(len(options.path), "file")


def _tell(path: Path, family: str | None, say: Say) -> None:
    tensors, metadata = read_tensors(path, role=_ROLE)
    fitting = guesses(tensors, metadata)
    if not fitting:
        raise WeightsError(
            f"{path.name}: none of its {len(tensors)} tensors belongs to a model that is known here "
            f"(first: {next(iter(tensors))}).",
            "It is a LoRA of another model, or no LoRA at all.",
        )
    for guess in fitting:
        say(Log(message=f"loads into {guess.family}: {guess.found} of {guess.total} modules"))
    lora = read_lora(path, fullest_target(find_family(family) if family else fitting[0].family), role=_ROLE)
    report_unmatched(lora, say)
    meter = Meter(say, total=len(lora.modules), unit="modules", label="Measuring")
    info = describe(lora, on_module=meter.advance)
    for line in lines(info, lora.metadata):
        say(Log(message=line))
    steps = metadata.get("ss_steps", "0")
    say(Metric(step=int(steps) if steps.isdecimal() else 0, values=info.values()))
