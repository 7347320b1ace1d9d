from __future__ import annotations

import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from engine.contract.errors import DiskError, WeightsError
from engine.media.latents import load_latent, output_stem, save_latent, time_stamp

METADATA = {"seeds": 42, "prompt": "é cat", "height": 480, "width": 832, "video_length": 81, "negative_prompt": None}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_file_is_the_references(tmp_path, dtype):
    latent = torch.randn(16, 3, 4, 5).to(dtype)
    path = save_latent(tmp_path / "new" / "a_latent.safetensors", latent.transpose(2, 3), metadata=METADATA)
    with safe_open(path, framework="pt") as file:
        assert list(file.keys()) == ["latent"]
        assert file.metadata() == {
            "seeds": "42",
            "prompt": "é cat",
            "height": "480",
            "width": "832",
            "video_length": "81",
        }
    found, metadata = load_latent(path)
    assert torch.equal(found, latent.transpose(2, 3)) and found.dtype == dtype
    assert metadata["prompt"] == "é cat"
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_no_metadata(tmp_path):
    assert load_latent(save_latent(tmp_path / "a.safetensors", torch.zeros(16, 1, 2, 2)))[1] == {}


def test_torch_files_and_a_batch_of_one(tmp_path):
    torch.save(torch.ones(1, 16, 1, 2, 2), tmp_path / "a.pt")
    assert load_latent(tmp_path / "a.pt")[0].shape == (16, 1, 2, 2)


def test_a_latent_has_no_batch(tmp_path):
    with pytest.raises(ValueError):
        save_latent(tmp_path / "a.safetensors", torch.zeros(1, 16, 1, 2, 2))


def test_wrong_files_say_what_they_are(tmp_path):
    save_file({"lora_unet_x.alpha": torch.zeros(1)}, tmp_path / "lora.safetensors")
    save_file({"latent": torch.zeros(3, 4)}, tmp_path / "flat.safetensors")
    (tmp_path / "garbage.safetensors").write_bytes(b"<html>")
    (tmp_path / "garbage.pt").write_bytes(b"<html>")
    torch.save({"a": 1}, tmp_path / "dict.pt")
    for name, said in {
        "lora.safetensors": "lora_unet_x.alpha",
        "flat.safetensors": r"\(3, 4\)",
        "garbage.safetensors": "no readable safetensors",
        "garbage.pt": "no tensor",
        "dict.pt": "a dict",
        "missing.safetensors": "no latent file",
    }.items():
        with pytest.raises(WeightsError, match=said) as caught:
            load_latent(tmp_path / name)
        assert name in caught.value.message and "--latent_path" in caught.value.hint


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def full(stream):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DiskError, match="No space left"):
        save_latent(tmp_path / "a.safetensors", torch.zeros(16, 1, 2, 2))
    assert not list(tmp_path.iterdir())


def test_time_stamp():
    assert re.fullmatch(r"\d{8}-\d{6}-\d{3}", time_stamp())
    assert time_stamp(1_700_000_000.0625).endswith("-062")


def test_two_outputs_in_one_millisecond_get_different_names(tmp_path):
    now_s = 1_700_000_000.5
    first = output_stem(tmp_path, 42, now_s=now_s)
    assert first.name == f"{time_stamp(now_s)}_42"
    first.with_name(first.name + ".mp4").touch()
    second = output_stem(tmp_path, 42, now_s=now_s)
    assert second.name == first.name + "_1"
    second.mkdir()
    third = output_stem(tmp_path, 42, now_s=now_s)
    assert third.name == first.name + "_2"
    third.with_name(third.name + "_latent.safetensors").touch()
    assert output_stem(tmp_path, 42, now_s=now_s).name == first.name + "_3"
    assert output_stem(tmp_path, 4, now_s=now_s).name == f"{time_stamp(now_s)}_4"
    assert output_stem(tmp_path / "not yet", 42, source="x_latent", now_s=now_s).name == f"{first.name}_x_latent"
