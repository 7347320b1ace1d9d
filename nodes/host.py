"""All access to a running ComfyUI, in one file: folders, interrupt, models, messages, media types.

ComfyUI's modules are imported inside functions, so that pages and tests need none of them. Written for 0.14 to 0.38;
comments name the differences where they matter.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..engine.contract.errors import DataError


def folder_paths() -> Any:
    """ComfyUI's table of folders."""
    import folder_paths as table

    return table


# ------------------------------------------------------------------------------------------------- the queue and GPU


def interrupted() -> bool:
    """Whether the person has pressed Cancel; asking does not reset it."""
    import comfy.model_management as management

    return bool(management.processing_interrupted())


def raise_interrupted() -> None:
    """End the node as ComfyUI's own samplers end: the exception is a BaseException since 0.20."""
    import comfy.model_management as management

    management.interrupt_current_processing(False)  # reset, so that the next prompt is not cancelled too
    raise management.InterruptProcessingException()


def is_interruption(problem: BaseException) -> bool:
    """Whether an exception is the person's Cancel."""
    import comfy.model_management as management

    return isinstance(problem, management.InterruptProcessingException)


def unload_models() -> float:
    """Move ComfyUI's models off the GPU, for a child that needs all of it. Returns the free GPU memory in MiB."""
    import comfy.model_management as management

    management.unload_all_models()
    gc.collect()
    management.soft_empty_cache()
    return float(management.get_free_memory()) / 2**20


def when_memory_is_wanted(give_way: Callable[[], None]) -> None:
    """From now on, call `give_way` before ComfyUI makes room for more than is free, for a model or on request.

    ComfyUI has no hook for this. Everything that frees memory, its button too, goes through the function wrapped here.
    """
    import comfy.model_management as management

    inner = management.free_memory

    @functools.wraps(inner)
    def free_memory(memory_required: float, device: Any, *more: Any, **named: Any) -> Any:
        if memory_required > management.get_free_memory(device):
            give_way()
        return inner(memory_required, device, *more, **named)

    management.free_memory = free_memory


def prompt_id() -> str:
    """The id of the prompt that is being executed, "" outside of one."""
    from comfy_execution.utils import get_executing_context

    context = get_executing_context()
    return "" if context is None else str(context.prompt_id)


@dataclass(frozen=True)
class Queued:
    """A prompt in the API's form, and the page that queued it ("" for none)."""

    prompt: Mapping[str, Any]
    page: str


_queued: ContextVar[Queued] = ContextVar("the prompt that is being queued")


def follow_queue() -> None:
    """From now on `queued` knows the prompt: ComfyUI validates it in the context in which it calls this handler."""
    from server import PromptServer

    def remember(data: Any) -> Any:
        request = data if isinstance(data, dict) else {}
        prompt = request.get("prompt")
        _queued.set(Queued(prompt if isinstance(prompt, dict) else {}, str(request.get("client_id") or "")))
        return data

    if hasattr(getattr(PromptServer, "instance", None), "add_on_prompt_handler"):
        PromptServer.instance.add_on_prompt_handler(remember)


def queued() -> Queued:
    """The prompt that is just being queued; an empty one if that is unknown."""
    return _queued.get(Queued({}, ""))


# --------------------------------------------------------------------------------------------------------- messages


def send(message: str, data: Mapping[str, Any], *, page: str | None = None) -> None:
    """Send a message to every open page, or to one."""
    from server import PromptServer

    PromptServer.instance.send_sync(message, dict(data), page)


def show_progress(node_id: str, done: float, total: float) -> None:
    """Set ComfyUI's own progress bar of a node and of the queue."""
    from comfy_execution.progress import get_progress_state

    get_progress_state().update_progress(node_id, done, total, None)


def routes() -> Any:
    """The table to which routes are added; None if there is no server (a script that only imports nodes)."""
    from server import PromptServer

    return getattr(getattr(PromptServer, "instance", None), "routes", None)


# ------------------------------------------------------------------------------------------------------- media types


def video_of(path: Path) -> Any:
    """A VIDEO that reads from a file."""
    from comfy_api.latest import InputImpl

    return InputImpl.VideoFromFile(str(path))


def video_of_images(images: Any, fps: float) -> Any:
    """A VIDEO of an IMAGE batch."""
    from fractions import Fraction

    from comfy_api.latest import InputImpl, Types

    return InputImpl.VideoFromComponents(Types.VideoComponents(images=images, frame_rate=Fraction(fps)))


def images_of(paths: Sequence[Path]) -> Any:
    """An IMAGE batch (B H W C, 0..1) of picture files of one size."""
    import numpy
    import torch
    from PIL import Image

    loaded = []
    for path in paths:
        with Image.open(path) as picture:
            loaded.append(numpy.asarray(picture.convert("RGB"), dtype=numpy.float32) / 255.0)
    return torch.from_numpy(numpy.stack(loaded))


def picture_bytes(image: Any) -> bytes:
    """One picture of an IMAGE batch (H W C, 0..1) as PNG."""
    import io

    import numpy
    from PIL import Image

    pixels = (image.cpu().numpy() * 255.0).round().clip(0, 255).astype(numpy.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG", compress_level=1)
    return out.getvalue()


@dataclass(frozen=True)
class VideoFacts:
    """Size in pixels, frames per second, number of frames."""

    width: int
    height: int
    fps: float
    frames: int


def facts_of(video: Any) -> VideoFacts:
    """Size, rate and length of a VIDEO."""
    width, height = video.get_dimensions()
    return VideoFacts(int(width), int(height), float(video.get_frame_rate()), int(video.get_frame_count()))


def trimmed(video: Any, start_s: float, length_s: float) -> Any:
    """A part of a VIDEO; `length_s` 0: to its end."""
    part = video.as_trimmed(start_s, length_s, strict_duration=False)
    if part is None:
        raise DataError(f"The video is shorter than {start_s:g} s.", "Choose an earlier start.")
    return part


@dataclass(frozen=True)
class Saved:
    """A file in the output folder, and the UI output with which the page shows it."""

    path: Path
    shown: Mapping[str, Any]


def save_video(video: Any, prefix: str, container: str, *, metadata: Mapping[str, Any]) -> Saved:
    """Write a VIDEO as ComfyUI's own Save Video does: numbered, with the workflow in it unless that is switched off."""
    from comfy.cli_args import args
    from comfy_api.latest import Types

    table = folder_paths()
    width, height = video.get_dimensions()
    folder, name, number, below, _ = table.get_save_image_path(prefix, table.get_output_directory(), width, height)
    file = f"{name}_{number:05}_.{Types.VideoContainer.get_extension(container)}"
    kept = None if args.disable_metadata or not metadata else dict(metadata)
    path = Path(folder) / file
    video.save_to(str(path), format=Types.VideoContainer(container), codec=Types.VideoCodec("auto"), metadata=kept)
    return Saved(path, {"images": [{"filename": file, "subfolder": below, "type": "output"}], "animated": (True,)})


def memory() -> dict[str, float]:
    """GPU memory as ComfyUI sees it, in MiB."""
    import comfy.model_management as management

    device = management.get_torch_device()
    free, total = management.get_free_memory(device), management.get_total_memory(device)
    return {"free_vram_mib": float(free) / 2**20, "total_vram_mib": float(total) / 2**20}


def blank_image() -> Any:
    """An IMAGE with nothing on it."""
    import torch

    return torch.zeros((1, 64, 64, 3))
