"""`python -m engine.tasks.bench_case ORDER.json`: one case of `bench` in one mode, in a process of its own.

So its peaks of memory are its own, and running out of memory ends nothing else. What runs is the command's task itself
(`train`, `generate`), or the function of it that encodes or decodes. Events go to stdout, one a line; rows of figures
to the file that the order names. When stdin ends, the case stops after its step.
"""

from __future__ import annotations

import gc
import importlib
import json
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..bench import kernels, stopwatch
from ..bench.cases import KERNELS, Kind
from ..bench.stopwatch import GIB, Stopwatch
from ..bench.work import forward_tflop, training_tflop
from ..contract import events
from ..contract.cli import parse
from ..contract.errors import STATUS, as_failed
from ..contract.events import Control, Event, write
from ..contract.files import write_text
from ..contract.job import Job
from ..contract.options import Data, Output, Prompting
from ..data.config import load_config
from ..data.pipeline import ClipBatch
from ..families import part
from ..media.latents import load_latent
from ..memory.estimate import largest
from ..ops.device import choose_device, forget_peaks, free_memory
from .cache_latents import sample_maker
from .encoders import Encoders
from .fitting import plan, wanted
from .planning import Survey
from .studio import Studio

Rows = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Order:
    """What to measure. `words` is the command line; kernels have none, but tokens, heads (how many, their size) and the
    linear layers (out, in), and several modes. `size` is (height, width, frames) in pixels.

    `started` is the wall-clock time at which this process was asked for, `result` the file for the rows.
    """

    kind: Kind
    family: str
    modes: tuple[str, ...]
    times: int
    result: str
    device: str | None
    started: float = 0.0
    words: tuple[str, ...] = ()
    warm_up: int = 0
    averaged: bool = False
    diffusers: bool = False
    whole: bool = False
    tiny: bool = False
    size: tuple[int, int, int] = (0, 0, 0)
    tokens: int = 0
    heads: tuple[int, int] = (0, 0)
    layers: tuple[tuple[int, int], ...] = ()

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Order:
        found = json.loads(text)
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in found.items()})


def say(event: Event) -> None:
    """To whoever started this process."""
    print(write(event), flush=True)


def measured(order: Order, control: Control) -> Rows:
    """The rows of an order, with what they were measured on."""
    device = choose_device(order.device)
    if order.kind in KERNELS:
        rows = list(_kernel_rows(order, device))
    else:
        job = parse(list(order.words))
        assert job is not None
        way = _command if order.whole else _WAYS[order.kind]
        rows = [{"mode": order.modes[0], "flags": " ".join(order.words), **way(order, job, control)}]
    gc.collect()
    free_memory(device)
    here = {"device": stopwatch.device_name(device), "torch": torch.__version__}
    sustained = stopwatch.sustained_tflops(device)  # last: it takes memory
    return [{**here, **row, **_compared(row), **rates(row, sustained)} for row in rows]


def _compared(row: dict[str, Any]) -> dict[str, float]:
    """The prediction as a share of what was measured."""
    predicted, alone = row.get("predicted_gib"), row.get("peak_alloc_gib")
    return {"predicted_to_measured": round(predicted / alone, 3)} if predicted and alone else {}


def rates(row: dict[str, Any], sustained: float) -> dict[str, float]:
    """TFLOP/s of a row, and their share of what the device sustains."""
    found: dict[str, float] = {}
    for prefix in ("", "backward_"):
        seconds, tflop = row.get(f"{prefix}seconds"), row.get(f"{prefix}tflop")
        if seconds and tflop:
            found[f"{prefix}tflop_per_s"] = round(tflop / seconds, 1)
            found[f"{prefix}utilisation"] = round(tflop / seconds / sustained, 3)
    return {**found, "bf16_tflop_per_s": round(sustained, 1)} if found else found


# ---------------------------------------------------------------------------------------------------- whole commands


def _command(order: Order, job: Job, control: Control) -> dict[str, Any]:
    device = choose_device(order.device)
    clock = Stopwatch(say, device, training=order.kind == "train")
    expected = _expected(job)
    prepared_s = time.time() - order.started
    importlib.import_module(f".{job.command.module}", __package__).run(job, clock, control)
    row = {
        "tflop": _tflop(order, job), **stopwatch.timed(clock.seconds(warm_up=order.warm_up), averaged=order.averaged),
        "first_step_after_s": clock.first_at and round(clock.first_at - order.started, 1),
        "prepared_after_s": round(prepared_s, 1), **stopwatch.peaks(device), **expected,
    }  # fmt: skip
    return row | ({"losses": [round(loss, 5) for loss in clock.losses]} if clock.losses else {})


def _expected(job: Job) -> dict[str, Any]:
    """What the planner predicts: GiB of tensors on the GPU, to be compared with "peak_alloc_gib"; and the options that
    it adds, where the job asks for that."""
    found = plan(job)
    stages = found.planned if wanted(job) else found.asked
    expected = {"predicted_gib": round(largest(stages).device_bytes / GIB, 2)}
    return expected | ({"planned": found.options} if wanted(job) else {})


def _tflop(order: Order, job: Job) -> float | None:
    if order.whole:
        return None
    work = Survey(job).works(job)[0]
    if order.kind == "train":
        return training_tflop(work)
    guided = job[Prompting].guidance_scale not in (None, 1.0)
    return forward_tflop(work) * (2 if guided else 1)


# --------------------------------------------------------------------------------------------------------------- VAE


def _encode(order: Order, job: Job, control: Control) -> dict[str, Any]:
    """What cache-latents calls with each batch of clips."""
    encoders = Encoders(job, say)
    height, width, frames = order.size
    noise = torch.rand(1, 3, frames, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1
    clip_BCFHW = noise.to(encoders.device, encoders.vae_dtype)
    if order.diffusers:
        vae = _plain_vae(order, encoders.device, encoders.vae_dtype)
        return _repeated(order, lambda: vae.encode(clip_BCFHW))
    dataset = load_config(job[Data].dataset_config).datasets[0]
    batch = ClipBatch(frames_BCFHW=clip_BCFHW, controls_BCFHW=(), alphas_BHW=(), dataset=dataset)
    encode = sample_maker(job, encoders)
    return _expected(job) | _repeated(order, lambda: encode(batch))


def _decode(order: Order, job: Job, control: Control) -> dict[str, Any]:
    """What generate makes of finished latents, up to frames in main memory."""
    studio = Studio(job, say, control)
    latents_BCTHW = load_latent(job[Output].latent_path[0])[0].unsqueeze(0)
    if order.diffusers:
        dtype = studio.encoders.vae_dtype
        vae, on_device = _plain_vae(order, studio.device, dtype), latents_BCTHW.to(studio.device, dtype)
        return _repeated(order, lambda: vae.decode(on_device))
    return _expected(job) | _repeated(order, lambda: sum(1 for _ in studio.frames(latents_BCTHW)))


def _plain_vae(order: Order, device: torch.device, dtype: torch.dtype) -> Any:
    return part(order.family, "bench").VAE.plain(order.tiny).to(device, dtype).eval().requires_grad_(False)


@torch.no_grad()
def _repeated(order: Order, call: Callable[[], Any]) -> dict[str, Any]:
    device = choose_device(order.device)
    with FlopCounterMode(display=False) as counter:
        call()
    stopwatch.synchronize(device)
    first_s = time.time() - order.started
    forget_peaks(device)  # of what cuDNN tries out when it first sees a shape
    seconds = stopwatch.repeated(call, device, times=order.times, warm_up=order.warm_up)
    return {
        "tflop": counter.get_total_flops() / 1e12, **stopwatch.timed(seconds), "first_step_after_s": round(first_s, 1),
        **stopwatch.peaks(device),
    }  # fmt: skip


_WAYS: dict[Kind, Callable[[Order, Job, Control], dict[str, Any]]] = {
    "train": _command, "denoise": _command, "encode": _encode, "decode": _decode,
}  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- kernels


def _kernel_rows(order: Order, device: torch.device) -> Any:
    if order.kind == "linear":
        return kernels.linear_rows(order.modes, order.layers, tokens=order.tokens, device=device, times=order.times)
    heads, head_dim = order.heads
    return kernels.attention_rows(
        order.modes, tokens=order.tokens, heads=heads, head_dim=head_dim, device=device, times=order.times
    )


# -------------------------------------------------------------------------------------------------------- the process


def failed_rows(order: Order, failure: BaseException) -> Rows:
    """Rows that say why there are no figures, and how much memory was taken till then."""
    told = {"skipped": str(failure)} if order.diffusers and isinstance(failure, ImportError) else None
    told = told or {"failed": kernels.told(failure), **stopwatch.peaks(choose_device(order.device))}
    return [{"mode": mode, "flags": " ".join(order.words), **told} for mode in order.modes]


def carry_out(order: Order, control: Control) -> int:
    """Measure, and write the rows, or why there are none, where they are wanted. The exit status."""
    status = 0
    try:
        rows = measured(order, control)
    except (Exception, KeyboardInterrupt) as failure:  # whatever it is, the other cases go on
        rows, (_, status) = failed_rows(order, failure), as_failed(failure)
        if status == STATUS["bug"]:
            traceback.print_exception(failure)
    write_text(Path(order.result), json.dumps(rows))
    return status


def main(argv: list[str]) -> int:
    order = Order.from_json(Path(argv[0]).read_text(encoding="utf-8"))
    control = Control()
    events.PROGRESS_INTERVAL_S = 0.0  # a step is stamped when it is told of, however quick

    def stop_with_stdin() -> None:
        sys.stdin.read()
        control.request_stop()

    threading.Thread(target=stop_with_stdin, daemon=True).start()
    return carry_out(order, control)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
