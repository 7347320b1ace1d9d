"""The pocket networks are the engine's: what is trained here is what the engine computes, and loads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from engine.families.wan import conditions, detect, model, text, vae
from engine.parts import causal_conv
from engine.parts.weights import open_weights
from tests.zoo.coding import coded
from zoo import data, latents, pocket_wan, train_dit, train_vae
from zoo.counted_text import CountedWan, as_padded
from zoo.whole_clip import WholeClip


def lively_vae() -> vae.WanVae:
    """Untrained, with gains that differ, so that a norm left out would be seen."""
    made = pocket_wan.new_vae(pocket_wan.SMALL)
    for name, weight in made.named_parameters():
        if name.endswith("gamma"):
            torch.nn.init.normal_(weight, mean=1.0, std=0.2)
    return made


@pytest.mark.parametrize("frames", [1, 5, 17])
def test_a_whole_clip_gives_what_the_engine_gives_chunk_by_chunk(frames: int) -> None:
    made = lively_vae()
    whole = coded(WholeClip(made), frames=frames, height=16, width=16)
    torch.testing.assert_close(whole.mean_BCTHW, vae.encode(made, whole.clip_BCFHW), rtol=0, atol=1e-5)
    torch.testing.assert_close(whole.decoded_BCFHW, vae.decode(made, whole.latents_BCTHW), rtol=0, atol=1e-5)


def test_a_file_that_was_loaded_for_a_gpu_does_too() -> None:
    """Its weights have channels of zeros behind them."""
    made, filled = lively_vae(), lively_vae()
    filled.load_state_dict(made.state_dict())
    causal_conv.fill_up_channels(filled)
    whole = coded(WholeClip(filled), frames=5, height=16, width=16)
    assert filled.encoder.conv1.weight.shape[1] > filled.encoder.conv1.in_channels
    torch.testing.assert_close(whole.mean_BCTHW, vae.encode(made, whole.clip_BCFHW), rtol=0, atol=1e-5)


def test_every_weight_of_the_vae_learns() -> None:
    made = lively_vae()
    clip_BCFHW = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    noise_BCTHW = torch.randn(1, 16, 2, 2, 2)
    train_vae.losses(WholeClip(made), clip_BCFHW, noise_BCTHW, train_vae.Recipe())[0].backward()
    idle = [name for name, weight in made.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert idle == []


def test_later_frames_do_not_reach_earlier_ones() -> None:
    network = WholeClip(lively_vae())
    clip_BCFHW = torch.rand(1, 3, 9, 16, 16) * 2 - 1
    other = clip_BCFHW.clone()
    other[:, :, 5:] = 0.0
    with torch.no_grad():
        first, second = network.encode(clip_BCFHW)[0], network.encode(other)[0]
    assert torch.equal(first[:, :, :2], second[:, :, :2])
    assert not torch.equal(first[:, :, 2], second[:, :, 2])


def test_counted_padding_is_padding() -> None:
    trained = pocket_wan.new_dit(pocket_wan.SMALL.dit)
    for weight in trained.parameters():
        torch.nn.init.normal_(weight, std=0.15)
    plain = model.WanModel(pocket_wan.SMALL.dit)
    plain.load_state_dict(trained.state_dict())
    captions = [torch.randn(length, pocket_wan.SMALL.text.width) for length in (3, 11)]
    x_BCTHW, timestep_B = torch.randn(2, 16, 3, 4, 4), torch.tensor([500.0, 20.0])
    with torch.no_grad():
        counted, padded = trained(x_BCTHW, timestep_B, as_padded(captions)), plain(x_BCTHW, timestep_B, captions)
        listed = trained(x_BCTHW, timestep_B, captions)
        without = plain(x_BCTHW, timestep_B, [caption[:1] for caption in captions])
    torch.testing.assert_close(counted, padded, rtol=0, atol=1e-5)
    assert torch.equal(listed, counted)
    assert (padded - without).abs().max() > 1e-3, "the captions play no part, so this test proves nothing"


def test_the_published_files_fit(tmp_path: Path) -> None:
    sizes, (tokenizer_file, tokenizer) = pocket_wan.POCKET, data.own_tokenizer()
    pocket = train_dit.new_pocket(sizes, tokenizer)
    names = (pocket_wan.VAE_NAME, pocket_wan.TEXT_NAME, pocket_wan.DIT_NAME, pocket_wan.I2V_NAME)
    paths = [tmp_path / name for name in names]
    vae_file, text_file, dit_file, i2v_file = paths
    pocket_wan.write_vae(vae_file, pocket_wan.new_vae(sizes).state_dict(), mean=[0.12345] * 16, std=[1.12345] * 16)
    pocket_wan.write_text_encoder(text_file, dict(pocket.text.named_parameters()), tokenizer=tokenizer_file)
    for path, made in ((dit_file, pocket), (i2v_file, train_dit.with_first_frames(pocket))):
        pocket_wan.write_dit(path, made.dit.state_dict(), config=made.dit.config)
    assert sum(path.stat().st_size for path in paths) < 24_000_000


def test_image_to_video_begins_as_text_to_video(tmp_path: Path) -> None:
    pocket = train_dit.new_pocket(pocket_wan.SMALL, data.own_tokenizer()[1])
    torch.nn.init.normal_(pocket.dit.head.head.weight, std=0.1)
    widened = train_dit.with_first_frames(pocket)
    x_BCTHW, timestep_B, text = torch.randn(1, 16, 2, 4, 4), torch.tensor([500.0]), torch.randn(1, 3, 48)
    with torch.no_grad():
        plain = pocket.dit(x_BCTHW, timestep_B, text)
        shown = widened.dit(x_BCTHW, timestep_B, text, y_BCTHW=torch.randn(1, 20, 2, 4, 4))
    torch.testing.assert_close(shown, plain, rtol=0, atol=1e-5)
    path = tmp_path / pocket_wan.I2V_NAME
    pocket_wan.write_dit(path, widened.dit.state_dict(), config=widened.dit.config)
    file = open_weights(path, role="--dit")
    variant = detect.detect(file.shapes, file.metadata)
    assert variant.config == widened.dit.config
    detect.check_task(variant, "i2v-A14B")


def test_first_frames_are_what_the_engine_conditions_on() -> None:
    made, (clips, _) = lively_vae(), data.held_out_clips(2, size=32, frames=5)
    made.latent_mean = tuple(0.1 * n for n in range(16))
    first_BCHW = latents.to_pixels(torch.from_numpy(clips))[:, :, 0]
    wanted = conditions.image_condition(lambda clip: vae.encode(made, clip), first_BCHW, frames=5)
    found = latents.first_frames(made, clips, compiled=False)
    torch.testing.assert_close(found.float(), wanted, rtol=1e-2, atol=1e-2)  # bf16


def test_going_on_with_the_decoder_leaves_latents_alone() -> None:
    made = lively_vae()
    network, clip_BCFHW = WholeClip(made), torch.rand(1, 3, 5, 16, 16) * 2 - 1
    recipe = train_vae.Recipe(decoder_only=True)
    train_vae.losses(network, clip_BCFHW, torch.randn(1, 16, 2, 2, 2), recipe)[0].backward()
    learning = {name.split(".")[0] for name, weight in made.named_parameters() if weight.grad is not None}
    assert learning == {"conv2", "decoder"}


def test_files_are_recognised_and_load(tmp_path: Path) -> None:
    sizes = pocket_wan.SMALL
    tokenizer_file, tokenizer = data.own_tokenizer()
    pocket = train_dit.new_pocket(sizes, tokenizer)
    made = lively_vae()
    paths = [tmp_path / name for name in (pocket_wan.VAE_NAME, pocket_wan.TEXT_NAME, pocket_wan.DIT_NAME)]
    mean, std = [0.01 * n for n in range(16)], [1.0 + 0.1 * n for n in range(16)]
    pocket_wan.write_vae(paths[0], made.state_dict(), mean=mean, std=std)
    pocket_wan.write_text_encoder(paths[1], dict(pocket.text.named_parameters()), tokenizer=tokenizer_file)
    pocket_wan.write_dit(paths[2], pocket.dit.state_dict(), config=sizes.dit)
    roles = [detect.role_of(open_weights(path, role="--dit").shapes) for path in paths]
    assert roles == ["vae", "text-encoder", "dit"]
    file = open_weights(paths[2], role="--dit")
    variant = detect.detect(file.shapes, file.metadata)
    assert (variant.name, variant.config) == ("t2v", sizes.dit)
    loaded = vae.load(paths[0], device="cpu", dtype=torch.float32)
    assert loaded.latent_mean == tuple(mean) and loaded.latent_std == tuple(std)
    encoder = text.load({"t5": str(paths[1])}, device="cpu", dtype=torch.float32)
    caption = "a red circle moves left"
    found_LD = text.states(encoder, [caption])[0]
    ids_BL = torch.from_numpy(data.padded_ids(tokenizer, caption)).long()[None]
    with torch.no_grad():
        pocket.text.to(torch.bfloat16).float()  # as the file has it
        wanted_LD = pocket.states(ids_BL)[0, : len(found_LD)]
    torch.testing.assert_close(found_LD, wanted_LD, rtol=0, atol=1e-4)
    assert isinstance(pocket_wan.read_dit(paths[2]), CountedWan)


def test_the_table_of_tokens_is_one_and_learns() -> None:
    _, tokenizer = data.own_tokenizer()
    pocket = train_dit.new_pocket(pocket_wan.SMALL, tokenizer)
    torch.nn.init.normal_(pocket.dit.head.head.weight, std=0.1)
    ids_NKL = torch.from_numpy(data.padded_ids(tokenizer, "a red circle moves left"))[None, None]
    examples = train_dit.Examples(torch.randn(1, 16, 2, 4, 4), ids_NKL)
    recipe = train_dit.Recipe(batch=2, dropped=0.0)
    train_dit.loss(pocket, examples, train_dit.without_captions(tokenizer), recipe).backward()
    idle = [name for name, weight in pocket.named_parameters() if weight.grad is None or not weight.grad.any()]
    # without a second buckets' worth of distance some position biases cannot be reached, but every tensor is
    assert idle == []
    assert "encoder.embed_tokens.weight" not in dict(pocket.text.named_parameters())


def test_left_out_captions_are_empty_or_the_published_negative_prompt() -> None:
    _, tokenizer = data.own_tokenizer()
    nothing_NL = train_dit.without_captions(tokenizer)
    assert nothing_NL[0].tolist()[:2] == [tokenizer.end_id, tokenizer.pad_id]
    ids_BL = torch.full((4000, data.TOKENS), 7)
    left = train_dit.dropped(ids_BL, nothing_NL, share=0.1)
    missing = (left != ids_BL).any(dim=1)
    assert 0.07 < missing.float().mean() < 0.13
    assert {tuple(row) for row in left[missing].tolist()} == {tuple(row) for row in nothing_NL.tolist()}


def test_psnr_of_pixels() -> None:
    assert train_vae.psnr(4.0) == 0.0  # black instead of white
    assert np.isclose(train_vae.psnr(0.004), 30.0)
