"""How much memory caching takes, by the length of the clip: `python -m tests.memory_of_caching [minutes …]`.

Run by hand, since it takes minutes. Each length is cached by a process of its own, with a VAE of the real architecture
at small widths, and its highest resident memory is printed. The windows lie evenly over the whole clip, and there are
as many in a long clip as in a short one: what grows with the length alone would be a leak.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from engine.families.wan import tiny

from .clips import draw_item

ROOT = Path(__file__).resolve().parents[1]
SIZE, FPS = (320, 192), 16
WINDOWS, FRAMES = 4, 17


def cache(folder: Path, minutes: float) -> tuple[float, float]:
    """(highest resident memory in MiB, seconds) of caching one clip of this length."""
    folder.mkdir()
    draw_item(folder / "clips", "long.mp4", size=SIZE, fps=FPS, frames=round(minutes * 60 * FPS))
    (folder / "dataset.toml").write_text(
        f"[general]\nresolution = [{SIZE[0]}, {SIZE[1]}]\ncaption_extension = '.txt'\n[[datasets]]\n"
        f"video_directory = '{folder / 'clips'}'\ncache_directory = '{folder / 'cache'}'\n"
        f"frame_extraction = 'uniform'\nframe_sample = {WINDOWS}\ntarget_frames = [{FRAMES}]\n"
    )
    models = tiny.write_tiny_models(folder / "models")
    words = ["cache-latents", "wan", "--dataset_config", folder / "dataset.toml", "--vae", models["vae"]]
    started = time.monotonic()
    child = subprocess.Popen(
        [sys.executable, "-m", "engine", *map(str, words), "--device", "cpu"],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"caching {minutes:g} minutes failed")
    made = len(list((folder / "cache").glob("*_wan.safetensors")))
    if made != WINDOWS:
        raise SystemExit(f"{made} caches instead of {WINDOWS}")
    return usage.ru_maxrss / 1024, time.monotonic() - started  # Linux counts in KiB


def main(minutes: list[float]) -> None:
    print(f"{WINDOWS} windows of {FRAMES} frames, {SIZE[0]}x{SIZE[1]}, {FPS} frames a second")
    with tempfile.TemporaryDirectory() as folder:
        for number, length in enumerate(minutes):
            peak_mib, seconds = cache(Path(folder) / str(number), length)
            print(f"{length:6g} minutes: {peak_mib:7.0f} MiB at most, {seconds:5.1f} s", flush=True)


if __name__ == "__main__":
    main([float(word) for word in sys.argv[1:]] or [1, 10])
