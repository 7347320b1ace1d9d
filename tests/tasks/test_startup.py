"""What a training waits for before its first step."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine.lora.adapters import LoraAdapter

PACK = Path(__file__).resolve().parents[2]
LATER = ("PIL", "av", "engine.tasks.studio", "matplotlib", "tensorboard", "transformers")


def test_what_only_some_trainings_use_is_imported_when_they_do() -> None:
    code = "import sys, engine.tasks.train; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=PACK, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "engine.tasks.train" in loaded
    assert not loaded & set(LATER)


def test_what_bench_can_measure_is_listed_without_torch() -> None:
    code = "import sys; from engine.__main__ import main; main(['bench', '--list']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=PACK, capture_output=True, text=True, check=True)
    *listed, loaded = done.stdout.splitlines()
    assert any("denoise-wan-14b-480x832x81" in line for line in listed)
    assert "torch" not in loaded.split()


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
