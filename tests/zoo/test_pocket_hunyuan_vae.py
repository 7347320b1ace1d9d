"""The VAE of Pocket HunyuanVideo is the engine's: what is trained is what the engine computes, and loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.families.hunyuan_video import vae
from engine.parts import hunyuan_vae
from engine.parts.hunyuan_vae_network import HunyuanVae
from tests.zoo.coding import coded
from zoo import pocket_hunyuan_vae, train_vae
from zoo.train_vae_hunyuan import HUNYUAN, compiled_between
from zoo.whole_clip_hunyuan import WholeHunyuanClip
from zoo.within_half import LARGEST, fit_half

WIDTHS = (8, 8, 12, 12)


def lively_vae() -> HunyuanVae:
    """Untrained, with norms that differ from channel to channel, so that one left out would be seen."""
    made = pocket_hunyuan_vae.new_vae(WIDTHS)
    for name, weight in made.named_parameters():
        if weight.ndim == 1:
            torch.nn.init.normal_(weight, mean=1.0 if "norm" in name and name.endswith("weight") else 0.0, std=0.2)
    return made


@pytest.mark.parametrize("frames", [1, 5, 17])
def test_a_whole_clip_gives_what_the_engine_gives(frames: int) -> None:
    made = lively_vae()
    whole = coded(WholeHunyuanClip(made), frames=frames, height=16, width=24)
    posterior = hunyuan_vae.encode(made, whole.clip_BCFHW)
    torch.testing.assert_close(whole.mean_BCTHW, posterior.mean_BCTHW, rtol=0, atol=1e-5)
    torch.testing.assert_close(whole.log_variance_BCTHW, posterior.logvar_BCTHW, rtol=0, atol=1e-5)
    torch.testing.assert_close(whole.decoded_BCFHW, hunyuan_vae.decode(made, whole.latents_BCTHW), rtol=0, atol=1e-5)


def test_what_grew_too_large_for_half_precision_is_scaled_down_and_nothing_changes() -> None:
    made = lively_vae().double()
    with torch.no_grad():
        for coder in (made.encoder, made.decoder):
            coder.conv_in.conv.weight.mul_(3e4)
            coder.blocks()[1].resnets[0].conv2.conv.weight.mul_(1e6)
    clip_BCFHW = torch.rand(2, 3, 5, 16, 24, dtype=torch.float64) * 2 - 1
    latents_BCTHW = torch.randn(2, 16, 2, 2, 3, dtype=torch.float64)
    before = made.to_moments(clip_BCFHW), made.to_pixels(latents_BCTHW)
    largest = []
    fit_half(made, clip_BCFHW)
    for module in made.modules():
        module.register_forward_hook(lambda _, given, out: largest.append(float(out.detach().abs().max())))
    after = made.to_moments(clip_BCFHW), made.to_pixels(latents_BCTHW)
    for theirs, ours in zip(before, after, strict=True):
        assert float((theirs - ours).norm() / theirs.norm()) < 1e-3, "but for the epsilon of norms"
    assert max(largest) < 10 * LARGEST


def test_every_weight_learns() -> None:
    made = lively_vae()
    clip_BCFHW = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    noise_BCTHW = torch.randn(1, 16, 2, 2, 2)
    total, _ = train_vae.losses(WholeHunyuanClip(made), clip_BCFHW, noise_BCTHW, train_vae.Recipe())
    total.backward()
    # a bias of all keys changes no attention, so that one cannot learn
    idle = [name for name, weight in made.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert [name for name in idle if not name.endswith("to_k.bias")] == []


def test_what_is_between_convolutions_is_plain_where_nothing_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(function: object, **_: object) -> object:
        def fail(*_: object) -> None:
            raise RuntimeError("no compiler")

        return fail

    monkeypatch.setattr(torch, "compile", refuse)
    with pytest.warns(UserWarning, match="no compiler"):
        plain = compiled_between(torch.device("cpu"))
    assert plain.norm_silu.__module__ == "zoo.whole_clip_hunyuan"


def test_a_file_has_normal_latents_and_the_same_pictures(tmp_path: Path) -> None:
    made = lively_vae().requires_grad_(False)
    clip_BCFHW = torch.rand(2, 3, 5, 32, 32) * 2 - 1
    latents_BCTHW = vae.encode(made, clip_BCFHW)
    mean, std = (value.tolist() for value in (latents_BCTHW.mean((0, 2, 3, 4)), latents_BCTHW.std((0, 2, 3, 4))))
    path = tmp_path / pocket_hunyuan_vae.VAE_NAME
    pocket_hunyuan_vae.write_vae(path, made.state_dict(), mean=mean, std=std)
    loaded = pocket_hunyuan_vae.read_vae(path)
    normal_BCTHW = vae.encode(loaded, clip_BCFHW)
    assert normal_BCTHW.mean((0, 2, 3, 4)).abs().max() < 0.01
    assert (normal_BCTHW.std((0, 2, 3, 4)) - 1.0).abs().max() < 0.01
    torch.testing.assert_close(vae.decode(loaded, normal_BCTHW), vae.decode(made, latents_BCTHW), rtol=0, atol=0.01)
    ratio_C = torch.tensor(std).view(1, -1, 1, 1, 1)
    before, after = (hunyuan_vae.encode(one, clip_BCFHW).logvar_BCTHW for one in (made, loaded))
    torch.testing.assert_close(after, before - 2.0 * ratio_C.log(), rtol=0, atol=0.02)


def test_psnr_is_that_of_the_engines_own_decoding() -> None:
    from zoo.data import held_out_clips

    clips, _ = held_out_clips(2, size=32, frames=5)
    assert 0.0 < train_vae.measure(pocket_hunyuan_vae.new_vae(WIDTHS), clips, kind=HUNYUAN) < 15.0
