"""Options that are fed by other nodes: pictures, videos, LoRA stacks, datasets. Types, sockets, and values from them.

Pixels are written to a file named by its content, since the engine reads files; a VIDEO that is a file already is used
as it is.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..engine.contract.errors import OptionError
from ..engine.contract.files import write_bytes
from ..engine.contract.schema import Option
from . import allowed, host, paths, words
from .spec import Socket, display

DATASET, LORAS, RUN = "MUSUBI_DATASET", "MUSUBI_LORAS", "MUSUBI_RUN"
IMAGE, VIDEO, STRING, COMBO = "IMAGE", "VIDEO", "STRING", "COMBO"
KINDS = {"dataset": DATASET, "image": IMAGE, "video": VIDEO}
_FROM_STACK = re.compile(r"\w+_multiplier(_\w+)?|(include|exclude)_patterns")


class Coming:
    """Stands for another node's result while a prompt is checked before it runs."""


COMING = Coming()
WHEN_RUN = "made when the graph runs"


@dataclass(frozen=True)
class Lora:
    """One entry of a LoRA stack. Patterns are regular expressions, "" for none."""

    name: str
    path: str
    strength: float = 1.0
    include: str = ""
    exclude: str = ""


@dataclass(frozen=True)
class LoraStack:
    """LoRAs in the order in which they are merged, and the family's own options about them."""

    loras: tuple[Lora, ...] = ()
    options: Mapping[str, Any] | None = None


COMING_LORAS = LoraStack((Lora(WHEN_RUN, WHEN_RUN),))


def models_type(node_name: str) -> str:
    """The socket type of a family's models, which only its own nodes take."""
    return f"MUSUBI_MODELS_{node_name.upper()}"


def type_of(option: Option) -> str:
    """The socket type that feeds an option; "" if it has a widget."""
    if option.file_kind == "lora" and option.many:
        return LORAS
    return KINDS.get(option.file_kind, "")


def from_stack(option: Option) -> bool:
    """Whether a LoRA stack brings this option along with its files."""
    return option.many and not option.file_kind and _FROM_STACK.fullmatch(option.name) is not None


def socket_id(option: Option) -> str:
    """`image_path` → `image`, `lora_weight_high_noise` → `loras_high_noise`."""
    return words.on_node(option.name)


def of_options(options: Iterable[Option]) -> list[Socket]:
    """The sockets of some options, all optional."""
    found = []
    for option in options:
        kind = type_of(option)
        if kind and not (option.accepted or option.name in allowed.LEFT_OUT):
            identifier = socket_id(option)
            help_text = words.of_node(allowed.HELP.get(option.name, option.help))
            found.append(Socket(id=identifier, types=(kind,), help=help_text, label=display(identifier), optional=True))
    return found


def to_options(options: Iterable[Option], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Option values from what is connected."""
    names = {option.name for option in options}
    found: dict[str, Any] = {}
    for option in options:
        given = inputs.get(socket_id(option)) if type_of(option) else None
        if given is None:
            continue
        if isinstance(given, Coming):
            found[option.name] = [WHEN_RUN] if option.many else WHEN_RUN
        elif type_of(option) == DATASET:
            found[option.name] = _file_of(given)
        elif type_of(option) == LORAS:
            found.update(_stack(option.name, given, names))
        elif type_of(option) == IMAGE:
            files = picture_files(given)
            found[option.name] = files if option.many else files[0]
        elif type_of(option) == VIDEO:
            found[option.name] = video_file(given)
    return found


def _file_of(dataset: Any) -> str:
    file = getattr(dataset, "path", None)
    if not isinstance(file, str):
        raise OptionError("A dataset input needs a Dataset Config node.", hint="Connect one.")
    return file


def _stack(name: str, stack: Any, names: set[str]) -> dict[str, Any]:
    if not isinstance(stack, LoraStack):
        raise OptionError(f"{name} needs the stack of a LoRA Stack node.", hint="Connect one.")
    if not stack.loras:
        return {}
    strengths = name.replace("base_weights", "base_weights_multiplier").replace("lora_weight", "lora_multiplier")
    found: dict[str, Any] = {name: [lora.path for lora in stack.loras]}
    if strengths in names:
        found[strengths] = [lora.strength for lora in stack.loras]
    if name == "lora_weight":
        for option, attribute in (("include_patterns", "include"), ("exclude_patterns", "exclude")):
            if option in names and any(getattr(lora, attribute) for lora in stack.loras):
                found[option] = [getattr(lora, attribute) for lora in stack.loras]
        found.update({key: value for key, value in (stack.options or {}).items() if key in names})
    return found


def picture_files(images: Any) -> list[str]:
    """PNG files of an IMAGE batch, named by their content."""
    if getattr(images, "ndim", 0) != 4 or not len(images):
        raise OptionError("An image input has no image.", hint="Connect a node that outputs an IMAGE.")
    return [_kept(host.picture_bytes(image), ".png") for image in images]


def _kept(data: bytes, suffix: str) -> str:
    path = paths.work() / "inputs" / (hashlib.sha256(data).hexdigest()[:24] + suffix)
    if not path.is_file():
        write_bytes(path, data, durable=False)
    return str(path)


def video_file(video: Any) -> str:
    """The file of a VIDEO: its own if it is a whole file, else one written from it."""
    source = video.get_stream_source()
    if isinstance(source, str) and Path(source).is_file() and not _is_trimmed(video):
        return source
    folder = paths.work() / "inputs"
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".writing-{id(video):x}.mp4"
    try:
        video.save_to(str(temporary))
        return _kept(temporary.read_bytes(), ".mp4")
    finally:
        temporary.unlink(missing_ok=True)


def _is_trimmed(video: Any) -> bool:
    window = getattr(video, "get_active_trim_window", None)  # from mid 2026 on
    return window is not None and any(window())
