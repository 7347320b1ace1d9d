"""`python -m tests.gpu.several_processes OUT.json [--processes 2] [--size 1.3B] [--frames 33] [--steps 12]`

Trains full-size Wan with random weights in one process and in several over NCCL, and writes: whether several do what
one does with as much more accumulation (loss by loss, and the LoRA), seconds a step of either, how many times the clips
a second, and whether the training ends in time when one of the processes is killed; the same of several that share out
the base (--shard_base), and how much less memory that takes. Exit status 1 when one of these does not hold.

The processes are started as `train --num_processes N` starts them; only what they run is this file instead of the
command, so torch, accelerate, safetensors and the engine are all it takes. `--device cpu --size tiny` tries it out.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CONFIGS = {
    "tiny": {"dim": 256, "ffn_dim": 512, "num_heads": 2, "num_layers": 2},
    "1.3B": {"dim": 1536, "ffn_dim": 8960, "num_heads": 12, "num_layers": 30},
    "14B": {"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40},
}
WARM_UP = 3
KILLED_AT = 4
SHARE_OFF = 0.01  # losses in bf16, whose attention is not the same bit for bit from run to run
GAIN = 1.95  # clips a second of two processes against one; 0.975 of as many times for more
ENDS_WITHIN_S = 60
CASE = "TEST_CASE"  # how a case reaches its processes
FURTHER = "--further"


# ---------------------------------------------------------------------------------------------- one of the processes


def train(case: dict[str, Any]) -> dict[str, Any]:
    """One training; what this process saw of it."""
    import torch

    from engine.contract.events import Control, Metric
    from engine.families.wan import keys, model
    from engine.lora.network import create
    from engine.memory.checkpointing import checkpoint_blocks
    from engine.memory.sharing import Shares, share_blocks
    from engine.ops.device import device_of_process
    from engine.training.checkpoints import Checkpoints, Keep
    from engine.training.group import Group, join
    from engine.training.loop import Settings, Setup
    from engine.training.loop import train as run
    from engine.training.optimizers import choose_optimizer
    from engine.training.schedules import Schedule, create_scheduler
    from engine.training.sigmas import SigmaSampling

    device = device_of_process(torch.device(case["device"]))
    accelerator = join(device, mixed_precision="bf16", timeout_minutes=10)
    group = Group(accelerator)
    shares = Shares(group, device=device) if case["shared"] else None
    dit = frozen_dit(case["size"], device, shares)
    network = create(dit, block_classes=keys.LORA_BLOCKS, exclude=[keys.LORA_EXCLUDE], dim=32, alpha=32, seed=1)
    network = network.to(device)
    shared = share_blocks(model.blocks(dit), shares) if shares is not None else None
    checkpoint_blocks(model.blocks(dit))
    built = choose_optimizer("AdamW", [], lr=1e-4).build(network.parameter_groups(1e-4))
    times: list[float] = []
    losses: list[float] = []

    def say(event: Any) -> None:
        if isinstance(event, Metric):
            times.append(time.monotonic())
            losses.append(event.values["loss/current"])

    def batches(epoch: int, first: int):
        for number in range(first + group.number, case["batches"], group.count):
            if group.number == 1 and case["kill"] and len(seen) == KILLED_AT:
                os.kill(os.getpid(), signal.SIGKILL)
            seen.append(number)
            yield clip(number, epoch, case["frames"], case["size"])

    seen: list[int] = []
    setup = Setup(
        accelerator=accelerator,
        network=network,
        optimizer=built,
        scheduler=create_scheduler(Schedule(), built.optimizer, total_steps=case["steps"], schedule_free=False),
        velocity=lambda x, timestep, cond: model.velocity(dit, x, timestep, cond),
        conditioning=model.cond_from_batch,
        batches=batches,
        batches_per_epoch=case["batches"],
        checkpoints=Checkpoints(case["folder"], "lora", keep=Keep(), write_lora=lambda *_: None, say=say),
        say=say,
        control=Control(),
        shared=shared,
    )
    sampling = SigmaSampling(mode="shift", discrete_flow_shift=3.0)
    run(setup, Settings(max_steps=case["steps"], seed=1, sampling=sampling, accumulation=case["accumulation"]))
    group.leave()
    gib = 1 << 30
    peaks = (torch.cuda.max_memory_allocated(device) / gib, torch.cuda.max_memory_reserved(device) / gib)
    return {
        "times": times,
        "losses": losses,
        "lora": torch.cat([value.flatten().cpu() for value in network.state().values()]),
        "peaks": peaks if device.type == "cuda" else (0.0, 0.0),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": str(torch.__version__),
    }


def frozen_dit(size: str, device: Any, shares: Any = None) -> Any:
    """Wan of this size with random weights at the scale of a trained model's, the same in every process.

    With `shares` each tensor is there whole for a moment only.
    """
    import torch
    from torch import nn

    from engine.families.wan.detect import WanConfig
    from engine.families.wan.model import blocks, build

    sizes = {"freq_dim": 256, "text_dim": 4096, "in_dim": 16, "out_dim": 16, "head_dim": 128}
    dit = build(WanConfig(**sizes, **CONFIGS[size]), dtype=torch.bfloat16)
    if shares is not None:
        shares.plan(dit, blocks(dit))
    generator = torch.Generator(device=device).manual_seed(0)
    for name, parameter in list(dit.named_parameters()):
        tensor = torch.empty_like(parameter, device=device)
        if "norm" in name and name.endswith("weight"):
            tensor.fill_(1.0)
        elif name.endswith("bias"):
            tensor.zero_()
        else:
            tensor.normal_(0.0, 0.02, generator=generator)
        path, _, last = name.rpartition(".")
        kept = tensor if shares is None else shares.take(name, tensor)
        dit.get_submodule(path).register_parameter(last, nn.Parameter(kept, requires_grad=False))
    return dit


def clip(number: int, epoch: int, frames: int, size: str) -> dict[str, Any]:
    """A batch of one clip of 480x832 (a small one for the tiny model), as the caches would give it."""
    import torch

    generator = torch.Generator().manual_seed(number * 1000 + epoch)
    height, width = (8, 8) if size == "tiny" else (60, 104)
    latents = torch.randn(1, 16, (frames - 1) // 4 + 1, height, width, generator=generator)
    return {"latents": latents, "t5": [torch.randn(120, 4096, generator=generator) * 0.1]}


def further() -> int:
    """One of the further processes."""
    from engine.processes import follow

    return follow(lambda: train(json.loads(os.environ[CASE])) and None, "info")


def first(case: dict[str, Any]) -> int:
    """Number 0: starts the others, trains, keeps what it found; its exit status."""
    import torch

    from engine import processes
    from engine.contract import cli
    from engine.contract.children import module_command
    from engine.contract.errors import as_failed
    from engine.talk import JobFolder

    further_one = module_command("tests.gpu.several_processes", FURTHER)
    processes.module_command = lambda *words: further_one
    folder = Path(case["folder"])
    words = ["train", "wan", "--dit", "none", "--dataset_config", "none", "--num_processes", str(case["count"])]
    job = cli.parse(words)
    record = JobFolder(folder, job.to_toml())
    with processes.placed(job) as place, processes.others(place, job, record, lambda event: None) as company:
        try:
            torch.save(train(case), folder / "found.pt")
            return 0
        except Exception as failure:
            event, status = company.cause(*as_failed(failure))
            print(event, file=sys.stderr)
            return status


# ------------------------------------------------------------------------------------------------------- all of it


def run_case(
    options: argparse.Namespace, count: int, *, accumulation: int = 1, kill: bool = False, shared: bool = False
) -> dict[str, Any]:
    """One training in processes of its own: its exit status, how long it took, and what number 0 found."""
    import torch

    folder = Path(tempfile.mkdtemp(prefix=f"several-{count}-"))
    steps = options.steps
    # an epoch of a number of clips that leaves the last round uneven
    case = {"count": count, "accumulation": accumulation, "kill": kill, "shared": shared, "folder": str(folder),
            "steps": steps,
            "size": options.size, "frames": options.frames, "device": options.device,
            "batches": options.processes * (steps // 2) - 1}  # fmt: skip
    told = {**os.environ, CASE: json.dumps(case), "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    started = time.monotonic()
    words = [sys.executable, "-m", __spec__.name if __spec__ else __name__, "--first", json.dumps(case)]
    status = subprocess.run(words, env=told, check=False).returncode
    took = time.monotonic() - started
    found = torch.load(folder / "found.pt") if status == 0 else {}
    return {"status": status, "took": took, **found}


def seconds(times: list[float]) -> list[float]:
    return [after - before for before, after in zip(times, times[1:], strict=False)][WARM_UP - 1 :]


def row(options: argparse.Namespace, mode: str, found: dict[str, Any], baseline_s: float) -> dict[str, Any]:
    steps = seconds(found["times"])
    return {
        "case": f"train-wan-{options.size.lower()}-480x832x{options.frames}", "mode": mode, "device": found["device"],
        "torch": found["torch"], "seconds": round(statistics.median(steps), 4), "n": len(steps),
        "peak_alloc_gib": round(found["peaks"][0], 2), "peak_reserved_gib": round(found["peaks"][1], 2),
        "baseline_seconds": round(baseline_s, 4), "losses": [round(loss, 5) for loss in found["losses"]],
    }  # fmt: skip


def main(argv: list[str]) -> int:
    if argv[:1] == ["--first"]:
        return first(json.loads(argv[1]))
    if argv == [FURTHER]:
        return further()
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.several_processes")
    parser.add_argument("out", type=Path)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--size", default="1.3B", choices=CONFIGS)
    parser.add_argument("--frames", type=int, default=33)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args(argv)
    count = options.processes
    alone, together = run_case(options, 1), run_case(options, count)
    gathered, killed = run_case(options, 1, accumulation=count), run_case(options, count, kill=True)
    shared, shared_killed = run_case(options, count, shared=True), run_case(options, count, shared=True, kill=True)
    baseline_s = statistics.median(seconds(alone["times"]))
    rows = [
        row(options, "1 process", alone, baseline_s),
        row(options, f"{count} processes", together, baseline_s),
        row(options, f"1 process, accumulating {count}", gathered, baseline_s),
        row(options, f"{count} processes, the base shared out", shared, baseline_s),
    ]
    gain = count * baseline_s / statistics.median(seconds(together["times"]))
    off = max(abs(ours / theirs - 1) for ours, theirs in zip(together["losses"], gathered["losses"], strict=True))
    apart = ((together["lora"] - gathered["lora"]).norm() / gathered["lora"].norm()).item()
    shared_off = max(abs(a / b - 1) for a, b in zip(shared["losses"], together["losses"], strict=True))
    checks = {
        "clips_a_second_times": round(gain, 3),
        "clips_a_second_enough": gain >= GAIN / 2 * count,
        "largest_difference_of_losses": off,
        "losses_equal": off <= SHARE_OFF,
        "relative_distance_of_loras": apart,
        "killed_one_status": killed["status"],
        "killed_one_whole_run_s": round(killed["took"], 1),
        "killed_one_ends": all(
            found["status"] == 3 and found["took"] < alone["took"] + ENDS_WITHIN_S for found in (killed, shared_killed)
        ),
        "shared_out_largest_difference_of_losses": shared_off,
        "shared_out_losses_equal": shared_off <= SHARE_OFF,
        "shared_out_steps_take_times": round(
            statistics.median(seconds(shared["times"])) / statistics.median(seconds(together["times"])), 3
        ),
        "shared_out_gib_less": round(together["peaks"][0] - shared["peaks"][0], 2),
    }
    rows.append({"case": rows[0]["case"], "mode": f"{count} processes against 1", **checks})
    options.out.write_text(json.dumps(rows, indent=1))
    print(json.dumps(checks, indent=1))
    enough = checks["clips_a_second_enough"] or options.device == "cpu"  # on a CPU they share the cores
    held = [checks[name] for name in ("losses_equal", "shared_out_losses_equal", "killed_one_ends")]
    return 0 if enough and all(held) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
