"""Who in `nodes/` may import what: the node side knows the contract of the engine, never its models."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from .conftest import PACK, part

FILES = sorted((PACK / "nodes").glob("*.py"))
OF_COMFYUI = {"comfy", "comfy_api", "comfy_execution", "folder_paths", "server", "torch", "numpy", "PIL"}
MAY_ASK = {  # who may import something that the standard library does not have
    "host.py": OF_COMFYUI,
    "comfy_types.py": {"comfy_api"},
    "extension.py": {"comfy_api"},
    "routes.py": {"aiohttp"},
    "log_file.py": {"aiofiles"},
}


def imports(path: Path) -> list[tuple[str, int]]:
    """(name, level) of every import, those inside functions too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, 0) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found += [(name or "", node.level) for name in names]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_nodes_know_the_contract_and_nothing_deeper(path: Path) -> None:
    for name, level in imports(path):
        if level == 2:
            good = name.startswith(("env_bootstrap", "engine.contract")) or name in ("engine", "engine.families")
            assert good, f"{path.name} imports {name}"
        elif level == 0:
            top = name.split(".")[0]
            allowed = MAY_ASK.get(path.name, set())
            assert top in sys.stdlib_module_names or top in allowed, f"{path.name} imports {name}"


def test_only_the_bridge_starts_processes() -> None:
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        starts = [word for word in ("subprocess", "os.system", "os.popen", "os.exec", "Popen") if word in text]
        assert not starts or path.name == "run.py", f"{path.name}: {starts}"
        assert "shell=True" not in text


def test_no_family_is_named() -> None:
    words = {word for name in part("nodes.places").family_names() for word in (name, name.replace("_", "-"))}
    for path in FILES:
        strings = {
            node.value
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        assert not strings & words, path.name
