"""Tiny autoencoders: what a file may be, and what decoding takes. Pictures are checked in tests/golden."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from engine.contract.errors import DataError, WeightsError
from engine.parts import tae
from tests.golden.kit import read_golden
from tests.memory.counting import counted

GOLDEN = Path(__file__).parents[1] / "golden" / "taehv_tiny.json"
PUBLIC = {"latent_channels": 16, "widths": (256, 128, 64, 64)}


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return read_golden(GOLDEN).weights


def checked(path: Path, weights: dict[str, torch.Tensor]) -> tae.ArrangedWeights:
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
    return tae.check(path, latent_channels=16, wanted="taehv", role="--preview_vae")


def test_only_the_decoder_stays(weights, tmp_path):
    decoder = tae.load(checked(tmp_path / "t.safetensors", weights), dtype=None)
    assert all(name.startswith("decoder.") for name in decoder.state_dict())
    assert not any(weight.requires_grad for weight in decoder.parameters())
    assert next(decoder.parameters()).dtype == torch.float32


@pytest.mark.parametrize("lost", ["encoder.9.conv.2.weight", "decoder.9.conv.0.bias", "decoder.22.weight"])
def test_half_a_file_is_refused(lost, weights, tmp_path):
    half = {name: tensor for name, tensor in weights.items() if name != lost}
    with pytest.raises(WeightsError, match="1 missing"):
        tae.load(checked(tmp_path / "t.safetensors", half), dtype=None)


def test_what_does_not_belong_is_refused(weights, tmp_path):
    """`super` decoders have other layers at the same places."""
    with pytest.raises(WeightsError, match="1 not expected"):
        tae.load(checked(tmp_path / "t.safetensors", {**weights, "decoder.0.weight": torch.zeros(3)}), dtype=None)


def test_another_kind_of_file_is_refused_with_what_would_be_right(weights, tmp_path):
    others = {"decoder.1.weight": torch.zeros(8, 48, 3, 3)}
    with pytest.raises(WeightsError, match="latents of 48 channels, but here they have 16") as refused:
        checked(tmp_path / "taew2_2.safetensors", {**weights, **others})
    assert "--preview_vae takes taehv" in refused.value.hint
    with pytest.raises(WeightsError, match=r"vae\.safetensors is not a tiny autoencoder"):
        checked(tmp_path / "vae.safetensors", {"decoder.conv_in.weight": torch.zeros(2, 2)})
    with pytest.raises(DataError, match="16 channels"):
        next(tae.TinyAutoencoder(latent_channels=16, widths=(2, 2, 2, 2)).decode_frames(torch.zeros(1, 4, 1, 2, 2)))


@pytest.mark.parametrize(
    ("name", "wanted", "other"),
    [("taehv.pth", "taehv", ""), ("taehv.pth", "taew2_1", "taehv"), ("TAEW2_1.safetensors", "taehv", "taew2_1"),
     ("taew2_1_fp16.safetensors", "taew2_1", ""), ("mine.safetensors", "taehv", "")],
)  # fmt: skip
def test_the_name_tells_what_the_layout_does_not(name, wanted, other):
    assert tae.other_kind(f"/models/{name}", wanted=wanted) == other


def peak_values(latent_frames: int, height: int, width: int) -> float:
    """Values for each pixel that decoding holds at the most, with the public widths."""
    with counted() as counter:
        model = tae.TinyAutoencoder(**PUBLIC)
        latents_BCTHW = torch.empty(1, 16, latent_frames, height, width)
        before = counter.live
        for frame_BCHW in model.decode_frames(latents_BCTHW):
            del frame_BCHW
        return (counter.peak - before) / 4 / (height * width * 64)


def test_what_decoding_takes_is_known_and_does_not_grow_with_the_video():
    """What is asked for before a preview (`working_bytes`) is more than is held, though not by far."""
    short = peak_values(2, 30, 52)
    assert peak_values(8, 30, 52) == pytest.approx(short, rel=1e-3)
    assert 1.2 * short < tae.WORKING_VALUES < 2 * short
