"""Pocket FramePack's DiT is the engine's, begins as HunyuanVideo's, and is trained on what the engine would cache."""

from __future__ import annotations

from pathlib import Path

import torch

from engine.families.framepack import detect, image, model, samples
from engine.families.framepack.pocket import WINDOW
from engine.families.hunyuan_video.model import HunyuanVideoModel
from engine.parts.weights import open_weights
from zoo import (
    data,
    pocket_framepack,
    pocket_hunyuan,
    pocket_hunyuan_vae,
    train_dit,
    train_framepack,
    train_hunyuan,
)
from zoo.masked_framepack import MaskedFramePack
from zoo.pocket_framepack import FRAMEPACK_NAME, SIGLIP_NAME
from zoo.pocket_hunyuan import CLIP_NAME, DIT_NAME, LLAMA_NAME, VAE_NAME

HUNYUAN = pocket_hunyuan.SMALL
CONFIG = pocket_framepack.config_beside(HUNYUAN.dit)


def lively(network: torch.nn.Module) -> torch.nn.Module:
    for weight in network.parameters():
        torch.nn.init.normal_(weight, mean=1.0 if weight.ndim == 1 else 0.0, std=0.1)
    return network


def sections(clips: int) -> tuple[torch.Tensor, dict]:
    latents_BCTHW, cond = train_framepack.sections_of(torch.randn(clips, 16, 5, 8, 8))
    return latents_BCTHW, {**cond, "image": torch.randn(clips, 4, pocket_framepack.IMAGE_WIDTH)}


def test_masked_padding_is_padding() -> None:
    trained = lively(MaskedFramePack(CONFIG))
    plain = model.FramePackModel(CONFIG)
    plain.load_state_dict(trained.state_dict())
    latents_BCTHW, cond = sections(2)
    text_BLD, lengths = torch.randn(2, 14, CONFIG.text_dim), (3, 11)
    mask_BL = torch.arange(14) < torch.tensor(lengths)[:, None]
    cond["pooled"], timestep_B = torch.randn(2, CONFIG.pooled_dim), torch.tensor([500.0, 20.0])
    with torch.no_grad():
        masked = model.velocity(trained, latents_BCTHW, timestep_B, {**cond, "text": (text_BLD, mask_BL)})
        texts = [row[:length] for row, length in zip(text_BLD, lengths, strict=True)]
        cut = model.velocity(plain, latents_BCTHW, timestep_B, {**cond, "text": texts})
        whole = model.velocity(plain, latents_BCTHW, timestep_B, {**cond, "text": list(text_BLD)})
    torch.testing.assert_close(masked, cut, rtol=1e-5, atol=1e-5 * float(cut.abs().max()))
    assert (whole - cut).abs().max() > 1e-2 * cut.abs().max(), "the padding plays no part, so this proves nothing"


def test_sections_are_those_of_the_engines_cache() -> None:
    latents_BCTHW = torch.randn(4, 16, 5, 8, 8)
    target_BCTHW, cond = train_framepack.sections_of(latents_BCTHW)
    for clip, number in enumerate((0, 0, 1, 1)):
        cached = samples.plain_sections(latents_BCTHW[clip], WINDOW)[number]
        assert torch.equal(target_BCTHW[clip], cached["latents"])
        assert cond["indices"][clip] == cached["latent_indices"].tolist()
        for name in ("clean", "clean_2x", "clean_4x"):
            assert torch.equal(cond[name][clip], cached[f"latents_{name}"])
            places = cached[f"{name.replace('clean', 'clean_latent')}_indices"]
            assert cond[f"{name}_indices"][clip] == places.tolist()


def test_it_begins_as_the_hunyuan_model() -> None:
    """Without history, image and text (which HunyuanVideo has no place for), both give the same velocity."""
    hunyuan = lively(HunyuanVideoModel(HUNYUAN.dit))
    one = {name: weight for name, weight in hunyuan.state_dict().items() if not name.startswith("unused")}
    framepack = pocket_framepack.new_dit(one, CONFIG)
    assert CONFIG.num_layers == HUNYUAN.dit.num_double_blocks, "the small one has as many blocks"
    assert CONFIG.num_single_layers == HUNYUAN.dit.num_single_blocks
    plain = model.FramePackModel(CONFIG)
    plain.load_state_dict(framepack.state_dict())
    x_BCTHW, timestep_B = torch.randn(1, 16, 2, 8, 8), torch.tensor([500.0])
    text, pooled_BD = [torch.randn(5, CONFIG.text_dim)], torch.randn(1, CONFIG.pooled_dim)
    with torch.no_grad():
        wanted = hunyuan(x_BCTHW, timestep_B, text, pooled_BD=pooled_BD, guidance_B=torch.tensor([10_000.0]))
        found = plain(x_BCTHW, timestep_B, text, pooled_BD)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


def test_everything_but_the_text_encoders_learns() -> None:
    _, drawn = data.own_tokenizer()
    text = train_hunyuan.new_text(HUNYUAN, drawn).requires_grad_(False)
    pocket = train_framepack.FramePackPocket(lively(MaskedFramePack(CONFIG)), text)
    ids_NKL = torch.stack([torch.from_numpy(data.padded_ids(drawn, words)) for words in ("a red circle", "a star")])
    examples = train_framepack.SectionExamples(
        torch.randn(2, 16, 5, 8, 8), torch.randn(2, 16, 1, 8, 8), torch.randn(2, 4, 24), ids_NKL[:, None]
    )
    recipe = train_dit.Recipe(batch=4, dropped=0.0)
    train_dit.loss(pocket, examples, train_hunyuan.without_caption(drawn), recipe).backward()
    idle = [name for name, weight in pocket.dit.named_parameters() if weight.grad is None or not weight.grad.any()]
    # clips of two sections never get to the history that is seen in the largest patches
    assert idle == ["clean_x_embedder.proj_4x.weight"]
    assert all(weight.grad is None for weight in text.parameters())


def test_files_are_recognised_and_load(tmp_path: Path) -> None:
    path, encoder_path = tmp_path / pocket_framepack.FRAMEPACK_NAME, tmp_path / pocket_framepack.SIGLIP_NAME
    pocket_hunyuan.write_dit(path, MaskedFramePack(CONFIG).state_dict(), head_dim=CONFIG.head_dim)
    pocket_framepack.write_image_encoder(encoder_path)
    file = open_weights(path, role="--dit")
    assert detect.detect(file.shapes, file.metadata).config == CONFIG
    assert isinstance(pocket_framepack.read_dit(path), MaskedFramePack)
    encoder = image.load({"image_encoder": str(encoder_path)}, device="cpu")
    pictures, _ = data.held_out_clips(2, size=32, frames=1)
    assert train_framepack.image_states(encoder, pictures[:, 0]).shape == (2, 16, pocket_framepack.IMAGE_WIDTH)


def test_published_files_of_both_models_fit(tmp_path: Path) -> None:
    _, drawn = data.own_tokenizer()
    sizes = pocket_hunyuan.POCKET
    pocket = train_hunyuan.new_pocket(sizes, drawn)
    framepack = MaskedFramePack(pocket_framepack.config_beside(sizes.dit))
    vae = pocket_hunyuan_vae.new_vae(sizes.vae_widths)
    pocket_hunyuan_vae.write_vae(tmp_path / VAE_NAME, vae.state_dict(), mean=[0.0] * 16, std=[1.0] * 16)
    head_dim = sizes.dit.head_dim
    pocket_hunyuan.write_dit(tmp_path / DIT_NAME, pocket.dit.state_dict(), head_dim=head_dim)
    pocket_hunyuan.write_llama(tmp_path / LLAMA_NAME, dict(pocket.text.llama.named_parameters()), sizes=sizes.text)
    pocket_hunyuan.write_clip(tmp_path / CLIP_NAME, dict(pocket.text.clip.named_parameters()), sizes=sizes.text)
    pocket_hunyuan.write_dit(tmp_path / FRAMEPACK_NAME, framepack.state_dict(), head_dim=head_dim)
    pocket_framepack.write_image_encoder(tmp_path / SIGLIP_NAME)
    found = {path.name: path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {
        VAE_NAME: 7_039_430,
        LLAMA_NAME: 871_478,
        CLIP_NAME: 128_448,
        "tokenizer.json": 4_102,
        DIT_NAME: 7_995_840,
        FRAMEPACK_NAME: 7_541_776,
        SIGLIP_NAME: 63_504,
    }
    assert sum(found.values()) == 23_644_578 <= 24_000_000
