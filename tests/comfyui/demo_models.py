"""The demo's models, clips and LoRAs in a base folder, as the setup dialog's button puts them there.

Made once by a real ComfyUI through our own route, and kept in MUSUBI_HOME/cache for the next run of the tests, until
the demo's sources are others.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from .server import PACK, Server

MAKING_S = 1800.0
PLACES = ("models/musubi_demo", "input/musubi_demo")


def install_demo(base: Path) -> None:
    """Put the demo into a base folder that has our pack."""
    kept = Path(os.environ["MUSUBI_HOME"]) / "cache" / f"comfyui-demo-{_sources()}"
    if not (kept / "ready").is_file():
        with Server(base) as server:
            server.post("/musubi/demo", {})
            server.until(lambda: server.runs()[0]["state"] not in ("waiting", "running"), MAKING_S, "the demo models")
            made = server.runs()[0]
            assert made["state"] == "done", made["error"]
        for place in PLACES:
            shutil.copytree(base / place, kept / place, dirs_exist_ok=True)
        (kept / "ready").write_text("The demo in this folder is complete.\n", encoding="utf-8")
    for place in PLACES:
        shutil.copytree(kept / place, base / place, dirs_exist_ok=True)


def _sources() -> str:
    """What tells one version of the demo from another."""
    files = [PACK / "nodes" / "demo.py", *sorted((PACK / "engine" / "demo").rglob("*"))]
    whole = hashlib.sha256()
    for file in files:
        if file.suffix in (".py", ".safetensors", ".json", ".mp4", ".txt", ".png"):
            whole.update(file.read_bytes())
    return whole.hexdigest()[:12]
