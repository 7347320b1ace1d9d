"""The pack loaded as ComfyUI loads it, with stand-ins for ComfyUI's modules, on folders of the test's own."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

PACK = Path(__file__).resolve().parents[2]
NAME = "/a folder/custom_nodes/musubi"  # ComfyUI makes the name from the path
PATIENCE_S = 30.0
"""How long a test waits for what is promised within five seconds: the machine may be crowded."""
STUBS = str(Path(__file__).with_name("comfy_stub"))


def load_pack() -> ModuleType:
    """The pack as a package of that name."""
    if NAME not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            NAME, PACK / "__init__.py", submodule_search_locations=[str(PACK)]
        )
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[NAME] = module
        spec.loader.exec_module(module)
    return sys.modules[NAME]


def part(name: str) -> ModuleType:
    """A module of the pack: `part("nodes.run")`."""
    load_pack()
    return importlib.import_module(f"{NAME}.{name}")


@pytest.fixture(scope="session", autouse=True)
def stubs() -> Iterator[None]:
    sys.path.insert(0, STUBS)
    yield
    sys.path.remove(STUBS)


@pytest.fixture
def comfy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ComfyUI on folders of its own; gives its base folder."""
    import folder_paths

    folder_paths.use(tmp_path)
    monkeypatch.setenv("MUSUBI_HOME", str(tmp_path / "home"))
    import comfy.model_management as management
    import server

    management.reset()
    server.PromptServer.instance.sent.clear()
    part("nodes.paths")._listed.clear()
    part("nodes.jobs").runs.__init__()
    return tmp_path


def until(true: Callable[[], object], seconds: float = PATIENCE_S) -> bool:
    """Look until something is true; whether it came to be."""
    end = time.monotonic() + seconds
    while not (found := bool(true())) and time.monotonic() < end:
        time.sleep(0.02)
    return found


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


class Engine:
    """Stands for the engine's environment: jobs go to an engine that only writes the files it was asked for."""

    def __init__(self, folder: Path):
        self.notes = folder / "starts.txt"

    @property
    def starts(self) -> list[str]:
        """The command line of each start, without its files."""
        return self.notes.read_text().splitlines() if self.notes.exists() else []


@pytest.fixture
def obliging(comfy: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    engine, run = Engine(comfy), part("nodes.run")
    monkeypatch.setenv("OBLIGING_STARTS", str(engine.notes))
    child = str(PACK / "tests" / "children" / "obliging.py")

    def program(arguments: list[str], *, folder: Path, log: Path | None) -> object:
        argv = (sys.executable, child, *arguments)
        return run.Program(argv=argv, environment=dict(os.environ), folder=folder, log=log)

    monkeypatch.setattr(part("nodes.environment"), "engine_program", program)
    return engine


@pytest.fixture
def models(comfy: Path) -> Path:
    """Empty files where model files would be, and a dataset of one clip."""
    for name in ("diffusion_models/dit", "vae/vae", "text_encoders/t5", "loras/style"):
        (comfy / "models" / f"{name}.safetensors").write_text(name)
    clips = comfy / "datasets" / "cats"
    clips.mkdir()
    (clips / "cat.mp4").write_text("a cat")
    (clips / "cat.txt").write_text("a cat")
    return comfy


def run_node(name: str, /, **inputs: object) -> tuple:
    """Execute a node as ComfyUI would; its results."""
    catalogue = part("nodes.catalogue")
    node = next(node for node in catalogue.nodes() if node.name == name)

    class Hidden:
        unique_id, prompt = "7", {"7": {"class_type": node.id}}
        extra_pnginfo = {"workflow": {"id": "w"}}

    return catalogue.execute(node, Hidden, inputs).values


def folder_dataset(**more: object) -> object:
    """The value of a Dataset Config node on the folder of `models`."""
    source = {"source": "folder", "folder": "datasets/cats", **more}
    return run_node("DatasetConfig", source=source)[0]


def wan_models(**more: object) -> object:
    """The value of a Model Paths node on the files of `models`."""
    files = {"dit": "dit.safetensors", "vae": "vae.safetensors", "t5": "t5.safetensors"}
    return run_node("Wan21ModelPaths", **{**files, "task": "t2v-1.3B", **more})[0]


def listed_widgets() -> set[str]:
    """Ids of widgets whose choices are files that are there."""
    nodes = part("nodes.catalogue").nodes()
    return {widget.id for node in nodes for widget in node.widgets() if widget.listing is not None}
