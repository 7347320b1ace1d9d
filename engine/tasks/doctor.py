"""`doctor`: what the engine finds on this machine, for a person who wonders, and for a bug report."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys

import psutil
import torch
from torch import distributed

from .. import __version__
from ..contract.events import Control, Log, Say, Stage
from ..contract.home import engine_home
from ..contract.job import Job
from ..contract.packages import OPTIONAL, how_to_install
from ..families import names
from ..ops.attention import available_backends
from ..ops.device import choose_device

PACKAGES = (
    "torch", "accelerate", "transformers", "safetensors", "lycoris-lora", "av", "sentencepiece",
    "opencv-python-headless", "triton", "sageattention", "flash-attn", "xformers", "bitsandbytes", "tensorboard",
    "wandb",
)  # fmt: skip
GIB = 1 << 30


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        optional = package in OPTIONAL.values()
        return f"not installed. {how_to_install(package.replace('-', '_'))}" if optional else "not installed"


def _gpus() -> list[str]:
    if not torch.cuda.is_available():
        return ["no CUDA GPU that torch can use: everything runs on the CPU"]
    found = []
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        fp8 = "fp8 products" if (facts.major, facts.minor) >= (8, 9) else "no fp8 products"
        memory = f"{total / GIB:.1f} GiB ({free / GIB:.1f} free)"
        found.append(f"{index}: {facts.name}, {memory}, sm_{facts.major}{facts.minor}, {fp8}")
    if torch.cuda.device_count() > 1:
        found.append(f"train on all of them with --num_processes {torch.cuda.device_count()}: {_exchange()}")
    return found


def _exchange() -> str:
    """What processes on several GPUs would talk through; Windows has no NCCL, and gloo goes through main memory."""
    if not distributed.is_available():
        return "not with this torch, which has no torch.distributed"
    if not distributed.is_nccl_available():
        return "not with this torch, which has no NCCL"
    return f"NCCL {'.'.join(map(str, torch.cuda.nccl.version()))}"


def run(job: Job, say: Say, control: Control) -> str:
    home = engine_home()
    memory, disk = psutil.virtual_memory(), shutil.disk_usage(home or os.getcwd())
    sections = {
        "Engine": [f"version {__version__}, families: {', '.join(names())}", f"MUSUBI_HOME: {home or 'none'}"],
        "Machine": [
            f"{platform.platform()}, Python {platform.python_version()} ({sys.executable})",
            f"{os.cpu_count()} CPU cores, {memory.total / GIB:.1f} GiB RAM ({memory.available / GIB:.1f} free), "
            f"{disk.free / GIB:.1f} GiB free on disk",
        ],
        "GPU": [*_gpus(), f"attention: {', '.join(available_backends(choose_device(None)))}"],
        "Packages": [f"{package} {_version(package)}" for package in PACKAGES],
    }
    for title, lines in sections.items():
        say(Stage(name=title))
        for line in lines:
            say(Log(message=line))
    return ""
