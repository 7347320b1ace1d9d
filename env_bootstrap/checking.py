"""Asking the environment's own Python what it can import. Knows the engine's packages; installs and judges nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from .home import Home
from .processes import clean_environment, output_of

IMPORTS = (
    "torch accelerate safetensors transformers tokenizers sentencepiece av numpy PIL cv2 tomli_w psutil pynvml aiofiles"
    " ftfy rich rich_argparse tqdm tensorboard matplotlib lycoris"
).split()
TEST_IMPORTS = ["pytest", "xdist", "hypothesis", "mypy", "diffusers"]
CHECKER = Path(__file__).resolve().with_name("imports.py")


def imports(home: Home, environment: Mapping[str, str], *, tests: bool) -> dict[str, object] | None:
    """What `imports.py` says of every package that the engine needs; None when it says nothing."""
    return _asked(home, environment, IMPORTS + (TEST_IMPORTS if tests else []))


def fault_of(home: Home, environment: Mapping[str, str], module: str) -> str:
    """Why one module cannot be imported; empty when it can."""
    answer = _asked(home, environment, [module])
    if answer is None:
        return "the environment's Python ended while importing it"
    failed = answer["failed"]
    return str(failed.get(module, "")) if isinstance(failed, dict) else ""


def _asked(home: Home, environment: Mapping[str, str], modules: Sequence[str]) -> dict[str, object] | None:
    command = [str(home.python), str(CHECKER), *modules]
    told = output_of(command, environment=clean_environment(environment), timeout_s=300)
    try:
        answer = json.loads((told or "").strip().splitlines()[-1])
    except (ValueError, IndexError):
        return None
    return answer if isinstance(answer, dict) else None
