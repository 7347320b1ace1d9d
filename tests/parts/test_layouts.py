"""The public files of what families share: the layout checks accept them as they are, and in no other shape."""

from __future__ import annotations

import gzip
import json

import pytest

from tests.layouts.checks import HERE, check_file, read_layout

STEMS = (
    "hunyuanvideo_vae_tencent",
    "hunyuanvideo_vae_diffusers",
    "hunyuanvideo_vae_comfy",
    "llava_llama3_fp16_comfy",
    "llava_llama3_hunyuanvideo_community",
    "clip_l",
    "sigclip_vision_patch14_384",
    "taehv_hunyuanvideo",
    "taew2_1",
)
EDITED = {  # a tensor of each kind that another one depends on
    "hunyuanvideo": "encoder.conv_in.conv.bias",
    "llava": "layers.3.self_attn.o_proj.weight",
    "clip_l": "text_model.encoder.layers.3.mlp.fc1.bias",
    "sigclip": "vision_model.encoder.layers.3.mlp.fc1.bias",
    "tae": "encoder.9.conv.2.weight",
}


@pytest.mark.parametrize("stem", STEMS)
def test_a_public_layout_is_ours(stem):
    assert check_file(HERE / f"{stem}.json.gz") == []


@pytest.mark.parametrize("stem", STEMS)
def test_a_changed_layout_is_a_miss(stem, tmp_path):
    """One tensor more, one less, and one of another shape are all found."""
    wanted = next(value for start, value in EDITED.items() if stem.startswith(start))
    layout = {name: list(shape) for name, shape in read_layout(HERE / f"{stem}.json.gz").items()}
    name = next(name for name in layout if name.endswith(wanted))
    changed = (
        {**layout, "extra.weight": [3]},
        {key: shape for key, shape in layout.items() if key != name},
        {**layout, name: [length + 1 for length in layout[name]]},
    )
    for tensors in changed:
        path = tmp_path / f"{stem}.json.gz"
        path.write_bytes(gzip.compress(json.dumps({"tensors": tensors}).encode()))
        assert check_file(path)
