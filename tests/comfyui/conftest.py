"""Servers and browsers for the tests in a real ComfyUI. What needs a missing one is skipped, with the reason."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from .browser import Browser, find_chromium
from .demo_models import install_demo
from .server import Server, comfyui_path, fake_pack, link_pack

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in Path(str(item.path)).parents:
            item.add_marker(pytest.mark.comfyui)
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def checkout() -> None:
    """For whatever starts a server: there is a ComfyUI to start."""
    if comfyui_path() is None:
        pytest.skip("needs a ComfyUI checkout named by COMFYUI_PATH")


def _media(folder: Path) -> None:
    from PIL import Image

    from engine.demo.clips import SCENES, frames
    from engine.media.writing import write_video

    folder.mkdir()
    pictures = list(frames(SCENES[0]))
    write_video(folder / "video.mp4", iter(pictures), fps=SCENES[0].fps)
    Image.fromarray(pictures[16]).save(folder / "picture.jpg")


@pytest.fixture(scope="session")
def playing(checkout: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """ComfyUI with the pack that plays runs: our page, no engine."""
    base = tmp_path_factory.mktemp("playing")
    fake_pack(base, _media)
    with Server(base) as server:
        yield server


@pytest.fixture(scope="session")
def demo_base(checkout: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base folder with this pack, and with the demo models as the page's button makes them."""
    if not os.environ.get("MUSUBI_HOME"):
        pytest.skip("needs the engine's environment: set MUSUBI_HOME to one that `env_bootstrap create` has made")
    base = tmp_path_factory.mktemp("comfyui base")
    link_pack(base)
    install_demo(base)
    return base


@pytest.fixture(scope="session")
def comfyui(demo_base: Path) -> Iterator[Server]:
    """ComfyUI with this pack, the engine and the demo models."""
    with Server(demo_base) as server:
        yield server


@pytest.fixture
def browser() -> Iterator[Browser]:
    if find_chromium() is None:
        pytest.skip("needs Chromium on PATH, or CHROMIUM_PATH")
    with Browser() as found:
        yield found
