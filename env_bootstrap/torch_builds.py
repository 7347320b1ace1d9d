"""Which build of PyTorch suits this machine, and where it comes from.

Reads `nvidia-smi`, never PyTorch. The table below is for the pinned version and changes with it: 2.12 and newer have no
CUDA 12.8 build any more, so Blackwell cards need CUDA 13 (and its driver), and the cards before Turing need CUDA 12.6.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .home import REQUIREMENTS, WINDOWS
from .problems import Problem
from .processes import output_of

CHANNEL = "https://download.pytorch.org/whl"  # PyTorch's own; used for a GPU, or when it was asked for by name
WISH = re.compile(r"default|cpu|xpu|cu\d{3}|rocm\d+(\.\d+)*")


@dataclass(frozen=True)
class CudaBuild:
    """`driver_cuda`: the CUDA version that the driver must support; `oldest`, `newest`: compute capabilities."""

    name: str
    driver_cuda: tuple[int, int]
    driver: str
    oldest: tuple[int, int]
    newest: tuple[int, int]


BUILDS = (
    CudaBuild("cu130", (13, 0), "580", (7, 5), (99, 0)),
    CudaBuild("cu126", (12, 0), "525", (5, 0), (9, 0)),
)


@dataclass(frozen=True)
class Gpu:
    """The NVIDIA cards of this machine. `cuda` is what the driver supports, `capability` the newest card's."""

    names: tuple[str, ...]
    driver: str
    cuda: tuple[int, int]
    capability: tuple[int, int] | None


def torch_pin() -> str:
    """`torch==X.Y.Z` from requirements/torch.txt."""
    lines = (REQUIREMENTS / "torch.txt").read_text(encoding="utf-8").splitlines()
    return next(line.strip() for line in lines if line.startswith("torch=="))


def nvidia_smi(environment: Mapping[str, str]) -> str | None:
    """Where the driver's own tool is, None when there is no NVIDIA driver."""
    found = shutil.which("nvidia-smi", path=environment.get("PATH"))
    if found or not WINDOWS:
        return found
    folder = Path(environment.get("ProgramFiles", "C:/Program Files")) / "NVIDIA Corporation" / "NVSMI"
    return shutil.which("nvidia-smi", path=str(folder))


def _pair(text: str) -> tuple[int, int] | None:
    found = re.fullmatch(r"\s*(\d+)\.(\d+)\s*", text)
    return (int(found[1]), int(found[2])) if found else None


def _driver_cuda(header: str, driver: str) -> tuple[int, int]:
    """From the tool's header; a header without it is judged by the driver's version."""
    stated = re.search(r"CUDA(?: \w+)? Version\s*:\s*(\d+)\.(\d+)", header)
    if stated:
        return int(stated[1]), int(stated[2])
    major = int(driver.split(".")[0]) if driver.split(".")[0].isdecimal() else 0
    return next((build.driver_cuda for build in BUILDS if major >= int(build.driver)), (11, 0))


def detect_gpu(environment: Mapping[str, str]) -> Gpu | None:
    """The NVIDIA cards, None when there are none or the driver does not answer."""
    tool = nvidia_smi(environment)
    if tool is None:
        return None
    query = [tool, "--format=csv,noheader", "--query-gpu=driver_version,name,compute_cap"]
    table = output_of(query, environment=environment)
    if table is None:  # drivers before 2021 know no compute_cap
        table = output_of([*query[:-1], "--query-gpu=driver_version,name"], environment=environment)
    rows = [[cell.strip() for cell in line.split(",")] for line in (table or "").splitlines() if line.count(",")]
    if not rows:
        return None
    capabilities = [pair for row in rows if len(row) > 2 and (pair := _pair(row[2]))]
    header = output_of([tool], environment=environment) or ""
    return Gpu(
        names=tuple(row[1] for row in rows),
        driver=rows[0][0],
        cuda=_driver_cuda(header, rows[0][0]),
        capability=max(capabilities) if capabilities else None,
    )


def wished_build(environment: Mapping[str, str]) -> str:
    """MUSUBI_TORCH, checked; empty when the machine decides."""
    wish = environment.get("MUSUBI_TORCH", "").strip().lower()
    if not wish:
        return ""
    known = [build.name for build in BUILDS]
    if not WISH.fullmatch(wish):
        raise Problem(
            "option",
            f"MUSUBI_TORCH={wish} is no build of PyTorch.",
            f"Set it to {', '.join(known)}, cpu or default (pip's own choice), or leave it out.",
        )
    if wish.startswith("cu") and wish not in known and not environment.get("MUSUBI_TORCH_INDEX"):
        raise Problem(
            "option",
            f"{torch_pin()} has no {wish} build.",
            f"Set MUSUBI_TORCH to {' or '.join(known)}, or give its address with MUSUBI_TORCH_INDEX.",
        )
    return wish


def choose_build(gpu: Gpu | None, environment: Mapping[str, str], *, platform: str = sys.platform) -> str:
    """`cu130`, `cu126`, `cpu` or `default` (what pip finds by itself). Problem when the driver is too old."""
    wish = wished_build(environment)
    if wish:
        return wish
    if platform == "darwin":
        return "default"
    if gpu is None:
        return "cpu"
    capability = gpu.capability
    usable = [build for build in BUILDS if capability is None or build.oldest <= capability <= build.newest]
    for build in usable:
        if gpu.cuda >= build.driver_cuda:
            return build.name
    needed = usable[-1] if usable else BUILDS[-1]
    stated = ".".join(str(part) for part in gpu.cuda)
    raise Problem(
        "gpu",
        f"The NVIDIA driver {gpu.driver} (CUDA {stated}) is too old for {torch_pin()} on {gpu.names[0]}.",
        f"Install driver {needed.driver} or newer; or set MUSUBI_TORCH=cpu to go without the GPU.",
    )


def index_of(build: str, environment: Mapping[str, str]) -> str:
    """The address to install a build from, empty for pip's own configuration. MUSUBI_TORCH_INDEX overrides."""
    given = environment.get("MUSUBI_TORCH_INDEX", "").strip()
    if given:
        return given
    return "" if build == "default" else f"{CHANNEL}/{build}"


def is_light(pip_report: Mapping[str, object]) -> bool:
    """Whether what pip would take by itself is no big CUDA build: a `+cpu` build, a local file, or not for Linux.

    `pip_report` is pip's `--report` for the pinned torch. PyPI's Linux build brings gigabytes of CUDA libraries along,
    which a machine without a GPU should not download.
    """
    installs = pip_report.get("install")
    first = installs[0] if isinstance(installs, list) and installs else {}
    version = str(first.get("metadata", {}).get("version", ""))
    address = str(first.get("download_info", {}).get("url", ""))
    return "+" in version or address.startswith("file:") or "linux" not in os.path.basename(address)
