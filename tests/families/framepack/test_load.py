"""Loading a FramePack DiT: prefixes, shards, number formats, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from engine.contract.errors import OptionError, WeightsError
from engine.families.framepack.model import build, load, velocity
from engine.parts.weights import write_weights
from tests.families.framepack.tiny import TINY, inputs, randomised


def saved(tmp_path, model, *, prefix="", metadata=None, dtype=torch.float32):
    path = tmp_path / "framepack.safetensors"
    tensors = {prefix + name: value.to(dtype) for name, value in model.state_dict().items()}
    write_weights(path, tensors, metadata={"head_dim": "32"} if metadata is None else metadata)
    return path


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model.", "transformer."])
def test_load_takes_prefixes_and_says_what_it_found(tmp_path, prefix):
    model = randomised()
    loaded = load(saved(tmp_path, model, prefix=prefix), task="f1", device="cpu")
    assert loaded.variant.name == "f1" and loaded.config == TINY
    assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_any_shard_or_the_index_or_the_folder_loads(tmp_path):
    model = randomised()
    state = model.state_dict()
    names, stem = list(state), "diffusion_pytorch_model"
    files = {f"{stem}-{i + 1:05d}-of-00003.safetensors": names[i::3] for i in range(3)}
    for file, held in files.items():
        write_weights(tmp_path / file, {name: state[name] for name in held}, metadata={"head_dim": "32"})
    index = {"weight_map": {name: file for file, held in files.items() for name in held}}
    (tmp_path / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
    for path in (tmp_path, *tmp_path.iterdir()):
        assert load(path, task=None, device="cpu").variant.name == "i2v"


def test_load_keeps_the_files_type_and_reads_scaled_fp8(tmp_path):
    model = randomised()
    assert load(saved(tmp_path, model, dtype=torch.float16), task=None, device="cpu").dtype == torch.float16
    content = {}
    for name, value in model.state_dict().items():
        content[name] = value
        if "transformer_blocks" in name and "norm" not in name and value.ndim == 2:
            scale = value.abs().amax() / 448
            content[name] = (value / scale).to(torch.float8_e4m3fn)
            content[name.replace(".weight", ".scale_weight")] = scale
    save_file(content, tmp_path / "fp8.safetensors", metadata={"head_dim": "32"})
    loaded = load(tmp_path / "fp8.safetensors", task=None, device="cpu", dtype=torch.float32)
    x_BCTHW, timestep_B, cond = inputs()
    wanted = velocity(model, x_BCTHW, timestep_B, cond)
    assert (velocity(loaded, x_BCTHW, timestep_B, cond) - wanted).norm() / wanted.norm() < 0.1


def test_load_refuses_in_one_line(tmp_path):
    model = randomised()
    with pytest.raises(WeightsError, match="no FramePack task 't2v-14B'"):
        load(saved(tmp_path, model), task="t2v-14B", device="cpu")
    with pytest.raises(WeightsError, match="does not divide into heads of 128"):
        load(saved(tmp_path, model, metadata={}), task=None, device="cpu")
    state = model.state_dict()
    state.pop("single_transformer_blocks.1.proj_mlp.bias")
    write_weights(tmp_path / "framepack.safetensors", state, metadata={"head_dim": "32"})
    with pytest.raises(WeightsError, match=r"1 missing \(single_transformer_blocks.1.proj_mlp.bias\)"):
        load(tmp_path / "framepack.safetensors", task=None, device="cpu")
    with pytest.raises(OptionError, match="no attention backend"):
        build(TINY, attention_backend="fast")
