r"""The names of what a training saves, for whoever writes, looks for or removes it.

    {name}{ending}{moment}.safetensors    a LoRA
    {name}{moment}-state                  a state folder
    {name}-training.json                  the record of the training that has the name

`ending`: that of a further expert (`Expert.ending`), of the AVERAGE, or both; "" for the LoRA itself. `moment`: after a
step or an epoch, BEST, or "" for the end. The names are musubi-tuner's, but AVERAGE, BEST and the record's are ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from .files import PREVIOUS_SUFFIX

AVERAGE = "_ema"
"""The average of the weights (`--use_ema`)."""
BEST = "-best"
"""The step with the lowest validation loss (`--save_best_validation`)."""
_NUMBER = r"-step\d{8}|-\d{6}"
_STATE = rf"({_NUMBER})?-state({re.escape(PREVIOUS_SUFFIX)})?"


def after_step(step: int) -> str:
    """The moment after a step (from 1)."""
    return f"-step{step:08d}"


def after_epoch(epoch: int) -> str:
    """The moment after an epoch (from 1)."""
    return f"-{epoch:06d}"


def lora(name: str, moment: str = "", *, ending: str = "") -> str:
    """The file name of a LoRA."""
    return f"{name}{ending}{moment}.safetensors"


def state(name: str, moment: str = "") -> str:
    """The name of a state folder."""
    return f"{name}{moment}-state"


def record(name: str) -> str:
    """The file name of a training's record: where it exists, the name is taken (tasks/resuming.py)."""
    return f"{name}-training.json"


def taken(name: str, endings: Iterable[str], *, best: bool) -> list[str]:
    """The names under which a training saves LoRAs, without their numbers: its own first, if `endings` begins with "".

    A training that is called like one of them would write into the same files.
    """
    return [f"{name}{ending}{moment}" for ending in endings for moment in ("", *([BEST] if best else []))]


def loras_of(name: str, endings: Iterable[str], *, best: bool) -> re.Pattern[str]:
    """Matches the file names of a training's LoRAs, those in the middle of it too."""
    names = "|".join(map(re.escape, taken(name, endings, best=best)))
    return re.compile(rf"({names})({_NUMBER})?\.safetensors")


def states_of(name: str) -> re.Pattern[str]:
    """Matches the names of a training's state folders, an older one that is about to be replaced too."""
    return re.compile(re.escape(name) + _STATE)


def trained_name(state_folder: str) -> str:
    """Whose a state folder's name is; "" if it is not that of a state."""
    found = re.fullmatch(rf"(.+?){_STATE}", state_folder)
    return found[1] if found else ""


def is_numbered(stem: str) -> bool:
    """Whether a LoRA's name (without .safetensors) is of a step or an epoch: a training may keep only a few such."""
    return re.search(rf".({_NUMBER})$", stem) is not None


def unnumbered(stem: str) -> str:
    """A LoRA's name without the step or epoch."""
    return re.sub(rf"({_NUMBER})$", "", stem)
