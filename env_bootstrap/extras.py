"""The packages that the engine can use and does well without: what each is for, where it can be had, its version.

The only declaration. `add` takes these names, `status` lists them, and a CUDA build gets those `with_cuda` unasked.
The engine's side, which names them in its errors, is `engine/contract/packages.py`; a test holds the two together.
Given up: packages of the person's own choice. Pip puts them into the environment, and nothing here knows of them.
"""

from __future__ import annotations

import difflib
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .home import REQUIREMENTS
from .problems import Problem

SYSTEMS = {"linux": "Linux", "win32": "Windows", "darwin": "macOS"}
X86 = ("x86_64", "amd64")


@dataclass(frozen=True)
class Extra:
    """`name` is what it is installed as, `module` what is imported; `wanted_by` the option that needs it.

    Empty `systems` and `machines`: all of them. `cuda`: only with PyTorch for CUDA; `with_cuda`: then it comes unasked.
    `elsewhere` says what is to be known where it cannot be had. What has `builders` is compiled here, by NVIDIA's
    compiler: they are what else that takes, and what it needs later, and are installed first.
    """

    name: str
    module: str
    purpose: str
    wanted_by: str
    systems: tuple[str, ...] = ()
    machines: tuple[str, ...] = ()
    cuda: bool = False
    with_cuda: bool = False
    elsewhere: str = ""
    builders: tuple[str, ...] = ()

    @property
    def requirement(self) -> str:
        """Its line in requirements/extras.txt."""
        return next(line for line in _lines() if re.split("[=>]", line)[0] == self.name)

    def obstacle(self, build: str, *, system: str = sys.platform, machine: str = "") -> str:
        """Why it cannot be had with this build of PyTorch on this machine; empty when it can."""
        machine = machine or platform.machine()
        if self.systems and system not in self.systems:
            return f"there is none for {SYSTEMS.get(system, system)}"
        if self.machines and machine.lower() not in self.machines:
            return f"there is none for {machine} processors"
        if self.cuda and not build.startswith("cu"):
            return f"it needs an NVIDIA GPU, and PyTorch here is the {build} build"
        return ""


def _lines() -> list[str]:
    text = (REQUIREMENTS / "extras.txt").read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


OWN_IS_ALIKE = "the engine already has an equivalent"
EXTRAS = (
    Extra("bitsandbytes", "bitsandbytes", "8-bit optimizers", "--optimizer_type AdamW8bit", with_cuda=True),
    Extra("wandb", "wandb", "curves and samples at Weights & Biases", "--log_with wandb"),
    Extra(
        "sageattention", "sageattention", "attention in 8 bits, for generating", "--attn_mode sageattn",
        systems=("linux", "win32"), cuda=True, with_cuda=True,
    ),
    Extra(
        "xformers", "xformers", "attention", "--xformers",
        systems=("linux", "win32"), machines=X86, cuda=True,
        elsewhere="Use PyTorch's own attention, which does the same: --sdpa.",
    ),
    Extra(
        "flash-attn", "flash_attn", "FlashAttention 2, compiled here for up to an hour", "--flash_attn",
        systems=("linux",), cuda=True, elsewhere="PyTorch's own attention has FlashAttention in it: --sdpa.",
        builders=("wheel", "ninja"),
    ),
    Extra(
        "triton-windows", "triton", "fp8 kernels, --compile and sageattention on Windows", "--compile",
        systems=("win32",), cuda=True, with_cuda=True, elsewhere="On Linux, PyTorch for CUDA brings Triton along.",
    ),
    Extra("schedulefree", "schedulefree", "further optimizers", "--optimizer_type RAdamScheduleFree"),
    Extra("dadaptation", "dadaptation", "further optimizers", "--optimizer_type DAdaptAdam"),
    Extra(
        "prodigy-plus-schedule-free", "prodigyplus", "a further optimizer", "--optimizer_type ProdigyPlusScheduleFree"
    ),
    Extra("pytorch-optimizer", "pytorch_optimizer", "many optimizers", "--optimizer_type pytorch_optimizer.CLASS"),
    Extra("prodigyopt", "prodigyopt", OWN_IS_ALIKE, "--optimizer_type prodigyopt.Prodigy"),
    Extra("lion-pytorch", "lion_pytorch", OWN_IS_ALIKE, "--optimizer_type lion_pytorch.Lion"),
    Extra("came-pytorch", "came_pytorch", OWN_IS_ALIKE, "--optimizer_type came_pytorch.CAME"),
    Extra("pillow-jxl-plugin", "pillow_jxl", "images in JPEG XL", "datasets with .jxl files"),
)  # fmt: skip
BY_NAME = {extra.name: extra for extra in EXTRAS}


def named(names: Sequence[str]) -> list[Extra]:
    """Those that a person names, by package or by module, each once. Problem for a name that there is not."""
    known = {_plain(name): extra for extra in EXTRAS for name in (extra.name, extra.module)}
    found = {}
    for name in names:
        if _plain(name) not in known:
            near = difflib.get_close_matches(_plain(name), known, n=1)
            raise Problem(
                "option",
                f"There is no optional package {name}.",
                (f"Did you mean {known[near[0]].name}? " if near else "") + f"There are: {', '.join(BY_NAME)}.",
            )
        extra = known[_plain(name)]
        found[extra.name] = extra
    return list(found.values())


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


def kept(names: Sequence[str]) -> list[Extra]:
    """Those that a stamp names. One that a newer version of the pack no longer knows is left out."""
    return [BY_NAME[name] for name in names if name in BY_NAME]


def of_cuda(build: str) -> list[Extra]:
    """Those that an environment with this CUDA build of PyTorch gets unasked."""
    return [extra for extra in EXTRAS if extra.with_cuda and not extra.obstacle(build)]


def refuse_impossible(wanted: Iterable[Extra], build: str, environment: Mapping[str, str]) -> None:
    """Problem for the first of them that cannot be had here."""
    for extra in wanted:
        why = extra.obstacle(build)
        if not why and extra.builders and not _has_compiler(environment):
            why = "NVIDIA's nvcc, which compiles it, is neither on the PATH nor in CUDA_HOME"
        if why:
            raise Problem("option", f"{extra.name} cannot be had here: {why}.", extra.elsewhere)


def _has_compiler(environment: Mapping[str, str]) -> bool:
    home = environment.get("CUDA_HOME") or environment.get("CUDA_PATH") or "/usr/local/cuda"
    places = (environment.get("PATH", ""), os.path.join(home, "bin"))
    return shutil.which("nvcc", path=os.pathsep.join(places)) is not None
