"""`python -m tests.nodes.record http://127.0.0.1:8188`: keep what a real ComfyUI says of our nodes.

The record is a promise to saved workflows: what is in it stays. The tests compare what the nodes say to the stand-in of
ComfyUI with it; what is new since need not be on record.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("object_info.json")
SAME = ("output", "output_is_list", "name", "category", "output_node")


def promises(info: dict[str, Any], listed: set[str]) -> dict[str, Any]:
    """What a saved workflow relies on: outputs, and of each input its type, choices and which facts are told of it.

    `listed`: widgets whose choices are the files of the moment.
    """
    return {**{key: info[key] for key in SAME}, "input": _inputs(info["input"], listed)}


def _inputs(parts: dict[str, Any], listed: set[str]) -> dict[str, Any]:
    return {
        name: _input(told, part, name in listed, listed)
        for part, items in parts.items()
        if part != "hidden"
        for name, told in items.items()
    }


def _input(told: Any, part: str, is_listed: bool, listed: set[str]) -> dict[str, Any]:
    kind, facts = told
    found: dict[str, Any] = {"type": kind, "part": part, "facts": sorted(facts)}
    if kind.startswith("COMFY_DYNAMICCOMBO"):
        found["cases"] = {case["key"]: _inputs(case["inputs"], listed) for case in facts["options"]}
    elif kind == "COMBO" and not is_listed:
        found["choices"] = sorted(facts["options"])
    return found


def broken(recorded: Any, told: Any, where: str = "") -> list[str]:
    """The promises that are not kept: everything on record must be there still, lists may only grow at their end."""
    if isinstance(recorded, dict):
        missing = [f"{where}/{key} is gone" for key in recorded if key not in told]
        return missing + [
            problem for key in recorded if key in told for problem in broken(recorded[key], told[key], f"{where}/{key}")
        ]
    if isinstance(recorded, list) and where.endswith("/choices"):
        return [f"{where}: {choice} is gone" for choice in recorded if choice not in told]
    if isinstance(recorded, list) and where.endswith(("/output", "/output_is_list")):
        told = told[: len(recorded)]  # links keep an output by its place: new ones come last
    return [] if recorded == told else [f"{where}: {recorded!r} has become {told!r}"]


def ours(info: dict[str, Any]) -> dict[str, Any]:
    return {name: node for name, node in sorted(info.items()) if name.startswith("MusubiTuner_")}


def main() -> int:
    with urllib.request.urlopen(f"{sys.argv[1].rstrip('/')}/object_info") as answer:
        nodes = ours(json.load(answer))
    from .conftest import listed_widgets

    kept = {name: promises(info, listed_widgets()) for name, info in nodes.items()}
    FILE.write_text(json.dumps(kept, ensure_ascii=False, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    sys.stderr.write(f"{len(kept)} nodes of {sys.argv[1]} are in {FILE}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
