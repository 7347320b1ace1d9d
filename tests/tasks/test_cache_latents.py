"""`cache-latents`: what it does before the pipeline of data/ takes over."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from engine.families import names, part
from engine.tasks import cache_latents
from tests.clips import draw_item


@pytest.mark.parametrize("family", names(extra=False))
def test_every_family_can_do_without_cudnn(family, engine, monkeypatch, tmp_path):
    """In musubi-tuner HunyuanVideo's script takes --disable_cudnn_backend and leaves cuDNN on."""
    seen: list[bool] = []

    def cached(*_, **__):
        seen.append(torch.backends.cudnn.enabled)
        return SimpleNamespace(summary=lambda unit: unit)

    monkeypatch.setattr(cache_latents, "cache_latents", cached)
    monkeypatch.setattr(torch.backends.cudnn, "enabled", True)
    draw_item(tmp_path / "clips", "a.mp4")
    (tmp_path / "dataset.toml").write_text(
        f"[general]\ncaption_extension = '.txt'\n[[datasets]]\nvideo_directory = '{(tmp_path / 'clips').as_posix()}'\n"
    )
    tiny = part(family, "tiny")
    tiny.write_tiny_models(tmp_path)
    options = tiny.tiny_model_options(tmp_path)["cache-latents"]
    flags = [word for name, value in options.items() for word in (f"--{name}", value)]
    line = ("cache-latents", family, "--dataset_config", tmp_path / "dataset.toml", "--device", "cpu", *flags)
    for more in ((), ("--disable_cudnn_backend",)):
        done = engine(*line, *more)
        assert done.status == 0, done.err
    assert seen == [True, False]
