"""The right PyTorch for the GPU, by what the driver's tool prints."""

from __future__ import annotations

from typing import Any

import pytest

from env_bootstrap import torch_builds
from env_bootstrap.problems import Problem
from env_bootstrap.torch_builds import Gpu, choose_build, detect_gpu, index_of, is_light

from .conftest import HEAVY, LIGHT, World

OLD_HEADER = "| NVIDIA-SMI 535.104.05   Driver Version: 535.104.05   CUDA Version: 12.2     |"
NEW_HEADER = "| NVIDIA-SMI 590.44  KMD Version: 590.44  CUDA UMD Version: 13.1 |"


def gpu(cuda: tuple[int, int], capability: tuple[int, int] | None, driver: str = "550.1") -> Gpu:
    return Gpu(("NVIDIA X",), driver, cuda, capability)


@pytest.mark.parametrize(
    ("cuda", "capability", "build"),
    [
        ((13, 0), (8, 6), "cu130"),  # Ampere, new driver
        ((13, 1), (12, 0), "cu130"),  # Blackwell
        ((13, 0), (9, 0), "cu130"),  # Hopper
        ((12, 8), (8, 9), "cu126"),  # Ada with a driver for CUDA 12
        ((12, 2), (9, 0), "cu126"),
        ((13, 0), (6, 1), "cu126"),  # Pascal: CUDA 13 has no code for it
        ((13, 0), (7, 0), "cu126"),  # Volta
        ((13, 0), (7, 5), "cu130"),  # Turing
        ((12, 4), None, "cu126"),
        ((13, 0), None, "cu130"),
    ],
)
def test_the_table(cuda: tuple[int, int], capability: tuple[int, int] | None, build: str) -> None:
    assert choose_build(gpu(cuda, capability), {}, platform="linux") == build
    assert choose_build(gpu(cuda, capability), {}, platform="win32") == build


@pytest.mark.parametrize(("cuda", "capability", "driver"), [((12, 8), (12, 0), "580"), ((11, 8), (8, 6), "525")])
def test_a_driver_too_old_is_said_with_the_one_that_is_needed(
    cuda: tuple[int, int], capability: tuple[int, int], driver: str
) -> None:
    with pytest.raises(Problem) as caught:
        choose_build(gpu(cuda, capability), {}, platform="linux")
    assert caught.value.exit_status == 2
    assert driver in caught.value.hint and "MUSUBI_TORCH=cpu" in caught.value.hint


def test_without_a_gpu() -> None:
    assert choose_build(None, {}, platform="linux") == "cpu"
    assert choose_build(None, {}, platform="darwin") == "default"


@pytest.mark.parametrize("wish", ["cpu", "cu126", "cu130", "default", "CU130"])
def test_the_persons_word_goes_before_the_machines(wish: str) -> None:
    assert choose_build(gpu((11, 0), (8, 6)), {"MUSUBI_TORCH": wish}, platform="linux") == wish.lower()


def test_a_build_that_is_not_made_any_more() -> None:
    """torch 2.12 and newer have no CUDA 12.8 build; asking for it is answered before anything is downloaded."""
    with pytest.raises(Problem) as caught:
        choose_build(None, {"MUSUBI_TORCH": "cu128"})
    assert "cu128" in caught.value.message and "cu130" in caught.value.hint
    assert choose_build(None, {"MUSUBI_TORCH": "cu128", "MUSUBI_TORCH_INDEX": "https://mirror/cu128"}) == "cu128"


def test_a_misspelt_build() -> None:
    with pytest.raises(Problem) as caught:
        choose_build(None, {"MUSUBI_TORCH": "cuda"})
    assert caught.value.exit_status == 2 and "cu130" in caught.value.hint


def test_where_a_build_comes_from() -> None:
    assert index_of("cu130", {}) == "https://download.pytorch.org/whl/cu130"
    assert index_of("default", {}) == ""
    assert index_of("cu130", {"MUSUBI_TORCH_INDEX": "https://mirror/x"}) == "https://mirror/x"


@pytest.mark.parametrize(
    ("report", "light"),
    [
        (LIGHT, True),
        (HEAVY, False),
        ({}, True),
        ({"install": []}, True),
        (
            {"install": [{"metadata": {"version": "2.13.0"}, "download_info": {"url": "https://h/t-win_amd64.whl"}}]},
            True,
        ),
    ],
)
def test_a_machine_without_a_gpu_downloads_no_cuda(report: dict[str, Any], light: bool) -> None:
    assert is_light(report) is light


def test_reading_the_drivers_tool(world: World) -> None:
    world.script(
        "nvidia-smi",
        'case "$*" in *compute_cap*) echo "580.65, NVIDIA GeForce RTX 5090, 12.0"; echo "580.65, NVIDIA T4, 7.5";;'
        f" *) echo '{NEW_HEADER}';; esac\n",
    )
    found = detect_gpu(world.environment)
    assert found == Gpu(("NVIDIA GeForce RTX 5090", "NVIDIA T4"), "580.65", (13, 1), (12, 0))


def test_an_old_driver_that_knows_no_capability(world: World) -> None:
    world.script(
        "nvidia-smi",
        'case "$*" in *compute_cap*) exit 2;; *query*) echo "535.104.05, Tesla P40";;'
        f" *) echo '{OLD_HEADER}';; esac\n",
    )
    assert detect_gpu(world.environment) == Gpu(("Tesla P40",), "535.104.05", (12, 2), None)


def test_a_header_without_the_cuda_version_is_judged_by_the_driver() -> None:
    assert torch_builds._driver_cuda("nothing", "581.01") == (13, 0)
    assert torch_builds._driver_cuda("nothing", "550.54.14") == (12, 0)
    assert torch_builds._driver_cuda("nothing", "470.1") == (11, 0)


def test_a_driver_that_does_not_answer_is_no_gpu(world: World) -> None:
    world.script("nvidia-smi", "echo 'NVIDIA-SMI has failed'; exit 9\n")
    assert detect_gpu(world.environment) is None


def test_no_tool_no_gpu(world: World) -> None:
    assert detect_gpu({**world.environment, "PATH": str(world.folder / "path")}) is None
