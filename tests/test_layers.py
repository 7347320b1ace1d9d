"""Who may import whom. Read from the sources, so that an import inside a function counts too.

The picture is part 3 of the design: arrows point down only. `contract` and `env_bootstrap` stand on the standard
library alone; a family never sees another family; nobody below `tasks` sees a whole job.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

PACK = Path(__file__).resolve().parents[1]
SHARED_FLOORS = {"parts", "ops", "media", "contract"}
MAY_IMPORT = {
    "contract": set(),
    "ops": {"contract"},
    "media": {"contract"},
    "parts": {"ops", "contract"},
    "families": SHARED_FLOORS,
    "data": {"ops", "media", "contract", "parts"},
    "lora": {"ops", "media", "contract", "parts"},
    "memory": {"ops", "media", "contract", "parts"},
    "sampling": {"ops", "media", "contract", "parts"},
    "training": {"ops", "media", "contract", "parts", "lora"},
    "demo": {"families", "data", *SHARED_FLOORS},
    "bench": {"families", "data", "memory", *SHARED_FLOORS},
    "tasks": {"families", "data", "lora", "memory", "sampling", "training", "demo", "bench", "post", *SHARED_FLOORS},
}
OPTIONAL_IN_CONTRACT = {"rich", "rich_argparse", "tomli", "tomli_w"}  # drawing help and TOML; imported when used
ENTRANCE = {
    "engine/__init__.py", "engine/__main__.py", "engine/talk.py", "engine/screen.py", "engine/processes.py",
    "engine/serving.py", "engine/streams.py",
}  # fmt: skip
TOY_FILES = sorted((PACK / "tests" / "families" / "toy").glob("*.py"))
ENGINE_FILES = [*sorted((PACK / "engine").rglob("*.py")), *TOY_FILES]


def package_of(path: Path) -> list[str]:
    """The package that a file belongs to; families of the tests are imported as if they stood in the engine."""
    parts = list(path.relative_to(PACK).parts[:-1])
    return ["engine", *parts[1:]] if parts[:2] == ["tests", "families"] else parts


def imports(path: Path) -> list[tuple[str, int]]:
    """Absolute dotted names that a file imports, with the line; relative ones are resolved."""
    package = package_of(path)
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            if node.module is None:
                found += [(f"{name}.{alias.name}", node.lineno) for alias in node.names]
            else:
                found.append((name, node.lineno))
    return found


def room(dotted: str) -> str | None:
    """The floor of the engine that a name belongs to, None when it is not the engine's."""
    parts = dotted.split(".")
    return parts[1] if parts[0] == "engine" and len(parts) > 1 else None


@pytest.mark.parametrize("path", ENGINE_FILES, ids=lambda path: str(path.relative_to(PACK)))
def test_arrows_point_down(path: Path) -> None:
    relative = path.relative_to(PACK).as_posix()
    if relative in ENTRANCE:
        return
    here = package_of(path)[1]
    assert here in MAY_IMPORT, f"{relative}: no floor named {here} in the design"
    for name, line in imports(path):
        target = room(name)
        if target in (None, here, "__version__"):
            continue
        assert target in MAY_IMPORT[here], f"{relative}:{line} imports {name}: {here} may import {MAY_IMPORT[here]}"


@pytest.mark.parametrize("path", ENGINE_FILES, ids=lambda path: str(path.relative_to(PACK)))
def test_inside_the_engine_imports_are_relative(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and not node.level:
            assert (node.module or "").split(".")[0] != "engine", f"{path}:{node.lineno}: write a relative import"


def test_a_family_imports_no_other_family() -> None:
    for path in ENGINE_FILES:
        package = package_of(path)
        if package[:2] != ["engine", "families"] or len(package) < 3:
            continue
        for name, line in imports(path):
            dotted = name.split(".")
            if dotted[:2] == ["engine", "families"] and len(dotted) > 2:
                assert dotted[2] in (package[2], "contract", "values"), f"{path.name}:{line} imports {name}"


def standard_only(path: Path, allowed: set[str], own: str) -> None:
    for name, line in imports(path):
        top = name.split(".")[0]
        good = top in sys.stdlib_module_names or top in allowed or name.startswith(own)
        assert good, f"{path.relative_to(PACK)}:{line} imports {name}; only the standard library may be used here"


def test_the_contract_stands_on_the_standard_library() -> None:
    for path in (PACK / "engine" / "contract").rglob("*.py"):
        standard_only(path, OPTIONAL_IN_CONTRACT, "engine.")
    for path in (path for path in ENGINE_FILES if "families" in path.parts and path.name == "options.py"):
        standard_only(path, set(), "engine.")


def test_the_bootstrap_stands_on_the_standard_library() -> None:
    files = list((PACK / "env_bootstrap").rglob("*.py"))
    assert files
    for path in files:
        standard_only(path, set(), "env_bootstrap")


def test_nobody_imports_the_zoo() -> None:
    """It is a developer's tool, and not among what people download."""
    for path in [*ENGINE_FILES, *(PACK / "nodes").rglob("*.py"), *(PACK / "env_bootstrap").rglob("*.py")]:
        for name, line in imports(path):
            assert name.split(".")[0] != "zoo", f"{path.relative_to(PACK)}:{line} imports {name}"


def test_no_family_is_named_outside_its_folder() -> None:
    """Not in a comparison, not in a table: it would be a second place to edit when a family is added."""
    families = {"wan", "hunyuan_video", "framepack", "hunyuan-video"}
    # where a family has to be the default
    defaults = {PACK / "engine" / "contract" / "options" / "data.py", PACK / "engine" / "demo" / "prepare.py"}
    for path in [*ENGINE_FILES, *(PACK / "nodes").rglob("*.py"), *(PACK / "env_bootstrap").rglob("*.py")]:
        if "families" in path.parts or path in defaults:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert node.value not in families, f"{path}:{node.lineno}"
