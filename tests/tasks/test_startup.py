"""What a training waits for before its first step, and what others need not wait for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import tomli_w
import torch

from engine.families import names
from engine.lora.adapters import LoraAdapter
from tests.clips import draw_item

PACK = Path(__file__).resolve().parents[2]
LATER = ("PIL", "av", "engine.tasks.studio", "matplotlib", "tensorboard", "transformers")


def test_what_only_some_trainings_use_is_imported_when_they_do() -> None:
    code = "import sys, engine.tasks.train; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=PACK, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "engine.tasks.train" in loaded
    assert not loaded & set(LATER)


def said_without_torch(*words: str) -> str:
    """All that a command prints."""
    code = "import sys; from engine.__main__ import main; main(sys.argv[1:]); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=PACK, capture_output=True, text=True, check=True)
    *said, loaded = done.stdout.splitlines()
    assert "torch" not in loaded.split()
    return "\n".join(said) + done.stderr


def test_what_bench_can_measure_is_listed_without_torch() -> None:
    assert "denoise-wan-14b-480x832x81" in said_without_torch("bench", "--list")


@pytest.mark.parametrize("family", names(extra=False))
@pytest.mark.parametrize("verb", ["check", "preview"])
def test_a_dataset_is_looked_at_without_torch(tmp_path: Path, verb: str, family: str) -> None:
    draw_item(tmp_path / "clips", "cat.mp4", frames=40, fps=30)
    config = tmp_path / "dataset.toml"
    table = {"video_directory": str(tmp_path / "clips"), "caption_extension": ".txt", "resolution": 64,
             "target_frames": [37]}  # fmt: skip
    config.write_text(tomli_w.dumps({"datasets": [table]}), encoding="utf-8")
    assert "1 item, 1 clip" in said_without_torch("dataset", verb, "--dataset_config", str(config), "--family", family)


def test_only_the_weights_that_begin_with_random_values_draw_them(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[torch.Tensor] = []
    draw = torch.nn.init.kaiming_uniform_
    layer = torch.nn.Linear(8, 6)

    def noted(tensor: torch.Tensor, **how: object) -> torch.Tensor:
        drawn.append(tensor)
        return draw(tensor, **how)

    monkeypatch.setattr(torch.nn.init, "kaiming_uniform_", noted)
    adapter = LoraAdapter(layer, path="layer", dim=2, alpha=1.0, generator=torch.Generator().manual_seed(1))
    assert {id(tensor) for tensor in drawn} == {id(adapter.lora_down.weight)}  # a device's context calls it once more
    assert not adapter.lora_up.weight.any()
