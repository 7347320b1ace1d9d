"""Cache files: names, keys and metadata as musubi-tuner has them; whole writes; what counts as an orphan."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch

from engine.contract.errors import DataError
from engine.data import cache
from engine.data.clips import Window
from engine.data.config import Dataset
from engine.data.items import Source


def window(
    name="clip.v2.mp4", *, media="video", start=16, count=81, bucket=(832, 480), original=(1920, 1080)
) -> Window:
    dataset = Dataset(kind="image" if media == "image" else "video", cache_directory=Path("/c"))
    source = Source(dataset=dataset, path=Path("/v") / name, caption="x", media=media)
    return Window(source=source, start=start, count=count, bucket=bucket, original=original)


def write(path: Path, tensors=None, **changes):
    facts = {"architecture": "wan", "width": 64, "height": 48, "frame_count": 5, **changes}
    cache.write_latents(path, tensors or {"latents": torch.zeros(16, 2, 6, 8)}, **facts)
    return path


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        (window(), "clip.v2_00016-081_0832x0480_wan.safetensors"),
        (window(media="frames", name="walk"), "walk_00016-081_0832x0480_wan.safetensors"),
        (window(media="image", name="a.b.png", start=0, count=1), "a.b_1920x1080_wan.safetensors"),
        (window(start=123456, count=1001), "clip.v2_123456-1001_0832x0480_wan.safetensors"),
    ],
)
def test_latent_names_are_those_of_musubi_tuner(asked, name):
    path = cache.latent_path(asked, "wan")
    assert path == Path("/c") / name
    parsed = cache.parse_latent_name(path, "wan", video=asked.source.media != "image")
    assert (parsed.stem, parsed.width, parsed.height) == (asked.source.path.stem, *cache.named_size(asked))
    if asked.source.media != "image":
        assert (parsed.start, parsed.count, parsed.section) == (asked.start, asked.count, None)
    assert parsed.text_path("wan") == cache.text_path(asked.source, "wan")


def test_section_names_are_those_of_musubi_tuner():
    path = cache.latent_path(window(), "fp", section=3)
    assert path.name == "clip.v2_00016-081-0003_0832x0480_fp.safetensors"
    assert cache.parse_latent_name(path, "fp", video=True).section == 3


def test_names_are_read_from_the_right_so_that_stems_may_hold_anything():
    path = Path("a_00000-081_0064x0048_wan_00005-009_0832x0480_wan.safetensors")
    parsed = cache.parse_latent_name(path, "wan", video=True)
    assert (parsed.stem, parsed.start, parsed.count) == ("a_00000-081_0064x0048_wan", 5, 9)
    image = cache.parse_latent_name(Path("a_00000-081_0832x0480_wan.safetensors"), "wan", video=False)
    assert (image.stem, image.count) == ("a_00000-081", None)


@pytest.mark.parametrize(
    "name", ["my_style_wan.safetensors", "a_00000-081_0832x0480_hv.safetensors", "a_wan_te.safetensors"]
)
def test_other_files_are_no_latent_caches(name):
    assert cache.parse_latent_name(Path(name), "wan", video=True) is None
    assert cache.parse_latent_name(Path(name), "wan", video=False) is None


def test_keys_get_size_and_dtype_as_in_the_format(tmp_path):
    tensors = {
        "latents": torch.zeros(16, 9, 6, 8, dtype=torch.float16),
        "latents_clean_4x": torch.zeros(16, 16, 6, 8, dtype=torch.float16),  # suffix: the target's 9, not its own 16
        "clean_latent_indices": torch.zeros(2, dtype=torch.int64),
        "clip_bfloat16": torch.zeros(2, 4, dtype=torch.float16),  # named by the latents' dtype; handed over as a key
        "f_indices": torch.zeros(2, dtype=torch.int32),
    }
    path = write(tmp_path / "x.safetensors", tensors)
    shapes = cache.read_header(path).shapes
    assert set(shapes) == {
        "latents_9x6x8_float16",
        "latents_clean_4x_9x6x8_float16",
        "clean_latent_indices_int64",
        "clip_bfloat16",
        "f_indices_int32",
    }
    assert {cache.plain_name(key) for key in shapes} == {name.removesuffix("_bfloat16") for name in tensors}
    assert cache.read(path)["clip_bfloat16"].dtype == torch.float16


def test_masks_and_varlen_keep_their_names(tmp_path):
    path = tmp_path / "x_wan_te.safetensors"
    tensors = {
        "varlen_t5": torch.zeros(3, 4).bfloat16(),
        "llm_mask": torch.ones(3),
        "a": torch.ones(2).to(torch.float8_e4m3fn),
    }
    cache.write_text(path, tensors, architecture="wan", caption="ein Häuschen")
    header = cache.read_header(path)
    assert set(header.shapes) == {"varlen_t5_bfloat16", "llm_mask", "a_float8_e4m3fn"}
    assert {cache.plain_name(key) for key in header.shapes} == {"varlen_t5", "llm_mask", "a"}
    assert header.metadata == {"architecture": "wan", "caption1": "ein Häuschen", "format_version": "1.0.1"}


def test_metadata_of_latents(tmp_path):
    video = cache.read_header(write(tmp_path / "a.safetensors", architecture="hunyuan_video")).metadata
    assert video == {
        "architecture": "hunyuan_video",
        "width": "64",
        "height": "48",
        "format_version": "1.0.1",
        "frame_count": "5",
    }
    assert "frame_count" not in cache.read_header(write(tmp_path / "b.safetensors", frame_count=None)).metadata


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_nan_is_an_error_where_the_reference_writes_zeros(tmp_path, poison):
    latents = torch.zeros(16, 2, 6, 8)
    latents[3, 1, 2, 2] = poison
    with pytest.raises(DataError, match="NaN or infinity"):
        write(tmp_path / "x.safetensors", {"latents": latents})
    assert list(tmp_path.iterdir()) == []


def test_tensors_survive_bit_for_bit(tmp_path):
    sliced = torch.randn(2, 16, 2, 6, 8).bfloat16()[1].transpose(2, 3)  # not contiguous
    path = write(tmp_path / "deep" / "er" / "x.safetensors", {"latents": sliced})
    assert torch.equal(cache.read(path)["latents_2x8x6_bfloat16"], sliced)


def test_damaged_files_are_told_from_whole_ones(tmp_path):
    path = write(tmp_path / "x.safetensors")
    whole = path.read_bytes()
    header_end = 8 + struct.unpack("<Q", whole[:8])[0]
    for bad in (
        b"",
        whole[:5],
        whole[: header_end - 3],
        whole[:-1],
        whole + b"x",
        b"<html>" + whole,
        bytes(len(whole)),
    ):
        path.write_bytes(bad)
        with pytest.raises(DataError, match="damaged"):
            cache.read_header(path)
        with pytest.raises(DataError):
            cache.read(path)
    garbled = json.dumps([1, 2]).encode()
    path.write_bytes(struct.pack("<Q", len(garbled)) + garbled)
    with pytest.raises(DataError, match="damaged"):
        cache.read_header(path)


def test_only_caches_nobody_owns_are_orphans(tmp_path):
    """The reference deletes every *_wan.safetensors in the folder, a LoRA called my_wan.safetensors too."""
    owned = write(tmp_path / "a_00000-005_0064x0048_wan.safetensors")
    orphan = write(tmp_path / "b_00000-005_0064x0048_wan.safetensors")
    write(tmp_path / "my_style_wan.safetensors")
    write(tmp_path / "b_00000-005_0064x0048_hv.safetensors")
    write(tmp_path / "lora_wan_te.safetensors")  # named like a text cache, but holds no caption
    text = tmp_path / "b_wan_te.safetensors"
    cache.write_text(text, {"varlen_t5": torch.ones(1, 2)}, architecture="wan", caption="b")
    common = {"architecture": "wan", "video": True, "keep": {owned}}
    assert list(cache.orphans(tmp_path, kind="latents", **common)) == [orphan]
    assert list(cache.orphans(tmp_path, kind="text", **common)) == [text]
    assert list(cache.orphans(tmp_path / "none", kind="text", **common)) == []


def test_folders_with_brackets_are_read(tmp_path):
    folder = tmp_path / "set [v1] *"
    path = write(folder / "a_00000-005_0064x0048_wan.safetensors")
    assert [name.path for name in cache.latent_files(folder, "wan", video=True)] == [path]


def test_removing_takes_the_sidecar_along(tmp_path):
    path = write(tmp_path / "a_00000-005_0064x0048_wan.safetensors")
    sidecar = cache.sidecar_path(path)
    assert sidecar.name == "a_00000-005_0064x0048_wan.fingerprint.json"
    sidecar.write_text("{}")
    cache.remove(path)
    assert list(tmp_path.iterdir()) == []
    cache.remove(path)  # gone already: fine
