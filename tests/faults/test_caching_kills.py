"""Caching that is killed again and again, at any moment: no bad file is ever read, and nothing is encoded twice.

MUSUBI_TEST_KILLS=200 python -m pytest tests/faults/test_caching_kills.py -s kills more often than the few times of a
quick run, and says what it found.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest
from safetensors.torch import load_file

from engine.contract.errors import DataError
from engine.data import fingerprints
from engine.data.batches import load_items
from engine.data.config import DatasetConfig
from tests.data.caching import make_dataset
from tests.faults.caching_child import cache_counted
from tests.faults.kit import HOLD_S, LEFTOVERS, forked, needs_kill

pytestmark = [pytest.mark.slow, needs_kill]
KILLS = int(os.environ.get("MUSUBI_TEST_KILLS", "6"))
CLIPS, WINDOWS = 12, 24
IN_FLIGHT = 8 + 1 + 1  # waiting for the writer, being written, being encoded (engine/data/stages.py, Writer)
START_S, STEP_S = 0.5, 0.05  # about as long as a start, and a step from clip to clip, take


class Caching:
    """A dataset, and the two commands that cache it, each in a process that can be killed."""

    def __init__(self, folder: Path, models: Path):
        self.folder, self.log = folder, folder / "encoded.txt"
        self.config: DatasetConfig = make_dataset(folder, clips=CLIPS, frames=10, frame_extraction="chunk")
        common = ["--dataset_config", str(folder / "dataset.toml"), "--device", "cpu"]
        common += ["--batch_size", "1"]  # which other clip is in a batch may change the last bits
        self.words = {
            "latents": ["cache-latents", "wan", *common, "--vae", str(models / "Wan2.1_VAE_tiny.safetensors")],
            "text": ["cache-text", "wan", *common, "--t5", str(models / "models_t5_umt5-tiny-enc.pth")],
        }

    def start(self, what: str):
        self.log.unlink(missing_ok=True)
        return forked(cache_counted, str(self.log), self.words[what])

    def finish(self, what: str) -> None:
        """Let a command come to its end."""
        child = self.start(what)
        child.join(HOLD_S)
        assert child.exitcode == 0

    def kill(self, what: str, chance: random.Random) -> bool:
        """Start a command and kill it while it starts, or some clips later. False when it was faster."""
        child, deadline = self.start(what), time.monotonic() + HOLD_S
        clips = chance.randint(0, 6)
        while len(self.encoded) < clips and child.is_alive():
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(chance.uniform(0, STEP_S if clips else START_S))
        child.kill()
        child.join()
        return child.exitcode != 0

    @property
    def encoded(self) -> list[str]:
        """The caches that the last process has encoded, or begun to."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [f"{line.replace(' ', '_')}_wan_te.safetensors" if line.startswith("clip ") else line for line in lines]

    @property
    def files(self) -> dict[str, bytes]:
        """Everything under a final name in the cache folder."""
        found = sorted((self.folder / "cache").glob("*.safetensors"))
        return {path.name: path.read_bytes() for path in found if not path.name.startswith(".")}

    def complete(self, what: str) -> set[str]:
        """The caches that must not be made again: whole, with a fingerprint of their own."""
        names = [name for name in self.files if name.endswith("_te.safetensors") == (what == "text")]
        return {name for name in names if fingerprints.read(self.folder / "cache" / name) is not None}

    def check_reading(self) -> None:
        """What training would read now: whole items, or it refuses."""
        try:
            items = load_items(self.config, architecture="wan", say=lambda event: None)
        except DataError:
            return
        assert all(load_file(item.latent_path) and load_file(item.text_path) for item in items)


def test_killed_at_random_moments_nothing_bad_is_read_and_nothing_encoded_twice(prepared, tmp_path: Path) -> None:
    caching, chance = Caching(tmp_path, prepared.folder / "models"), random.Random(7)
    for what in ("latents", "text"):
        caching.finish(what)
    right = caching.files
    assert len(right) == WINDOWS + CLIPS
    shutil.rmtree(tmp_path / "cache")
    found: Counter[str] = Counter()
    while found["kills"] < KILLS:
        left = [what for what, count in (("latents", WINDOWS), ("text", CLIPS)) if len(caching.complete(what)) < count]
        if not left:
            shutil.rmtree(tmp_path / "cache")
            found["rounds"] += 1
            continue
        what = chance.choice(left)
        before = caching.complete(what)
        killed = caching.kill(what, chance)
        found["kills" if killed else "faster"] += 1
        encoded, after = caching.encoded, caching.complete(what)
        assert len(encoded) == len(set(encoded)) and before.isdisjoint(encoded), "encoded twice"
        assert before <= after
        assert [name for name, content in caching.files.items() if right[name] != content] == [], "not whole"
        lost = set(encoded) - after
        assert len(lost) <= IN_FLIGHT
        caching.check_reading()
        found["encoded"] += len(encoded)
        found["lost"] += len(lost)
        found["most lost"] = max(found["most lost"], len(lost))
        found["killed while encoding"] += bool(encoded) and killed
        found["half-written leftovers"] += len(list((tmp_path / "cache").glob(LEFTOVERS)))
    for what in ("latents", "text"):
        caching.finish(what)
    assert caching.files == right and not list((tmp_path / "cache").glob(LEFTOVERS))
    assert len(load_items(caching.config, architecture="wan", say=lambda event: None)) == WINDOWS
    print(dict(found))
