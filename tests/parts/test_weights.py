"""Checkpoint files: everything that a person may hand over, read exactly or refused in one clear line."""

from __future__ import annotations

import errno
import json
import os
import random
import struct

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file
from torch import nn

from engine.contract.errors import DiskError, WeightsError
from engine.ops.fp8 import dequantize
from engine.parts.weights import load_into, open_weights, write_weights

TENSORS = {
    "a.weight": torch.arange(6, dtype=torch.float32).view(2, 3),
    "a.bias": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "scalar": torch.tensor(7.0),
    "empty": torch.empty(0, 4),
    "counts": torch.tensor([1, 2, 3]),
}


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)


def test_a_safetensors_file_reads_back_whole(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path, metadata={"head_dim": "32"})
    file = open_weights(path, role="--dit")
    assert file.metadata == {"head_dim": "32"}
    assert file.shapes == {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}
    assert all(same(file.read(name), tensor) for name, tensor in TENSORS.items())
    assert file.read("a.weight", dtype=torch.float16).dtype == torch.float16
    assert file.read("counts", dtype=torch.float16).dtype == torch.int64


def test_read_gives_memory_of_its_own(tmp_path):
    """A file that is replaced while its tensors are in use must not change or break them."""
    for path in (tmp_path / "model.safetensors", tmp_path / "model.pt"):
        save_file(TENSORS, path) if path.suffix == ".safetensors" else torch.save(TENSORS, path)
        tensor = open_weights(path, role="--dit").read("a.weight")
        tensor.add_(1)
        path.write_bytes(b"\0" * path.stat().st_size)
        assert torch.equal(tensor, TENSORS["a.weight"] + 1)


@pytest.mark.parametrize("wrapper", [None, "module", "state_dict"])
@pytest.mark.parametrize("zipped", [True, False])
def test_pytorch_files_are_unwrapped(tmp_path, wrapper, zipped):
    path = tmp_path / "model.pth"
    content = TENSORS if wrapper is None else {wrapper: TENSORS, "epoch": 3}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    file = open_weights(path, role="--t5")
    assert set(file.shapes) == set(TENSORS)
    assert all(same(file.read(name), tensor) for name, tensor in TENSORS.items())


def write_shards(folder, *, index: bool) -> list:
    names = [f"model-{number:05d}-of-00003.safetensors" for number in (1, 2, 3)]
    for number, name in enumerate(names):
        save_file({f"layer{number}": torch.full((2,), float(number))}, folder / name)
    if index:
        listed = {f"layer{number}": name for number, name in enumerate(names)}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    return [folder / name for name in names]


@pytest.mark.parametrize("given", ["folder", "index", "first", "folder without index"])
def test_shards_are_gathered(tmp_path, given):
    shards = write_shards(tmp_path, index="without" not in given)
    path = {"index": tmp_path / "model.safetensors.index.json", "first": shards[0]}.get(given, tmp_path)
    file = open_weights(path, role="--dit")
    assert set(file.shapes) == {"layer0", "layer1", "layer2"}
    assert file.read("layer2").tolist() == [2.0, 2.0]


def test_a_missing_shard_is_named(tmp_path):
    shards = write_shards(tmp_path, index=True)
    shards[1].unlink()
    for path in (tmp_path, shards[0], tmp_path / "model.safetensors.index.json"):
        with pytest.raises(WeightsError, match=r"1 cannot be found \(model-00002-of-00003.safetensors\)"):
            open_weights(path, role="--dit")


def test_a_pipeline_folder_leads_to_its_part(tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    for part in ("transformer", "vae"):
        (tmp_path / part).mkdir()
        save_file({part: torch.zeros(1)}, tmp_path / part / "diffusion_pytorch_model.safetensors")
    assert list(open_weights(tmp_path, role="--vae").shapes) == ["vae"]
    assert list(open_weights(tmp_path, role="--dit").shapes) == ["transformer"]


def test_of_a_pipeline_with_two_experts_each_flag_gets_its_own(tmp_path):
    """diffusers keeps the one for high noise in `transformer` and that for low noise in `transformer_2`."""
    (tmp_path / "model_index.json").write_text("{}")
    for part in ("transformer", "transformer_2"):
        (tmp_path / part).mkdir()
        save_file({part: torch.zeros(1)}, tmp_path / part / "diffusion_pytorch_model.safetensors")
    assert list(open_weights(tmp_path, role="--dit").shapes) == ["transformer_2"]
    assert list(open_weights(tmp_path, role="--dit_high_noise").shapes) == ["transformer"]


def test_a_folder_with_nothing_or_several_files(tmp_path):
    with pytest.raises(WeightsError, match="no weight file"):
        open_weights(tmp_path, role="--dit")
    for name in ("one", "two"):
        save_file(TENSORS, tmp_path / f"{name}.safetensors")
    with pytest.raises(WeightsError, match=r"several weight files \(one.safetensors, two.safetensors\)"):
        open_weights(tmp_path, role="--dit")


def test_a_missing_file_names_its_neighbours(tmp_path):
    save_file(TENSORS, tmp_path / "wan2.1_t2v_14B.safetensors")
    with pytest.raises(WeightsError) as caught:
        open_weights(tmp_path / "wan2.1_t2v_14b.safetensor", role="--dit")
    assert caught.value.message.startswith("--dit: no such file:")
    assert caught.value.hint == "Did you mean wan2.1_t2v_14B.safetensors?"
    with pytest.raises(WeightsError) as caught:
        open_weights(tmp_path / "nowhere" / "deep" / "x.safetensors", role="--vae")
    assert str(tmp_path) in caught.value.hint
    with pytest.raises(WeightsError, match="no file was given"):
        open_weights("", role="--vae")


def broken_files() -> dict[str, tuple[bytes, str]]:
    content = save(TENSORS)
    header = json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}}).encode()
    odd = json.dumps({"a": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}).encode()
    return {
        "empty": (b"", "is empty"),
        "truncated": (content[:-5], rf"cut short: it has {len(content) - 5:,} bytes of {len(content):,} expected"),
        "header only": (content[:40], "not a readable safetensors file"),
        "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n", "git-lfs pointer"),
        "page": (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "is a web page"),
        "text": (b"Access to model is restricted.\nLog in.", "it begins with: Access to model is restricted."),
        "zip": (b"PK\x03\x04" + bytes(60), "is a PyTorch file with a .safetensors name"),
        "noise": (bytes(range(128, 256)) * 4, "not a readable safetensors file"),
        "wrong offsets": (struct.pack("<Q", len(header)) + header + bytes(16), "not a readable safetensors file"),
        "unknown dtype": (struct.pack("<Q", len(odd)) + odd + bytes(2), "stores a as F4"),
    }


@pytest.mark.parametrize("case", broken_files())
def test_what_is_not_safetensors_is_recognised(tmp_path, case):
    content, message = broken_files()[case]
    path = tmp_path / "given.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=message) as caught:
        open_weights(path, role="--dit")
    assert caught.value.hint and caught.value.message.startswith("--dit: ")


class Evil:
    def __reduce__(self):
        return (os.system, ("true",))


@pytest.mark.parametrize("suffix", [".pt", ".ckpt"])
def test_a_pickle_that_wants_to_run_code_is_refused(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    torch.save({"state_dict": TENSORS, "callback": Evil()}, path)
    with pytest.raises(WeightsError, match="could run code") as caught:
        open_weights(path, role="--dit")
    assert ".safetensors" in caught.value.hint


def test_broken_pytorch_files_are_named(tmp_path):
    path = tmp_path / "model.pth"
    torch.save(TENSORS, path)
    for content in (path.read_bytes()[:-200], b"<html>no</html>", b""):
        path.write_bytes(content)
        with pytest.raises(WeightsError):
            open_weights(path, role="--t5")
    for seed in range(500):  # the unpickler answers garbage with whatever error its opcodes come to
        path.write_bytes(random.Random(seed).randbytes(64))
        with pytest.raises(WeightsError):
            open_weights(path, role="--t5")
    torch.save([1, 2], path)
    with pytest.raises(WeightsError, match="no named tensors"):
        open_weights(path, role="--t5")
    with pytest.raises(WeightsError, match="suffix .gguf"):
        (tmp_path / "model.gguf").write_bytes(b"GGUF")
        open_weights(tmp_path / "model.gguf", role="--dit")


@pytest.mark.parametrize("scale_name", ["scale_weight", "weight_scale"])
def test_scaled_fp8_reads_as_the_real_weight(tmp_path, scale_name):
    torch.manual_seed(0)
    weight, scale = torch.randn(4, 8), torch.tensor(0.02)
    stored = (weight / scale).to(torch.float8_e4m3fn)
    content = {
        "l.weight": stored, f"l.{scale_name}": scale, "l.bias": torch.zeros(4), "l.scale_input": torch.ones(()),
        "scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn),
    }  # fmt: skip
    save_file(content, tmp_path / "m.safetensors")
    file = open_weights(tmp_path / "m.safetensors", role="--dit")
    assert set(file.shapes) == {"l.bias", "l.weight"}
    assert file.read("l.weight").dtype == torch.bfloat16
    assert torch.equal(file.read("l.weight", dtype=torch.float32), stored.float() * scale)
    raw = open_weights(tmp_path / "m.safetensors", role="--dit", dequantize=False)
    assert set(raw.shapes) == set(content) and raw.read("l.weight").dtype == torch.float8_e4m3fn


@pytest.mark.parametrize(
    ("scale", "rows"),
    [
        (torch.tensor(0.5), [[0.5] * 4, [0.5] * 4]),
        (torch.tensor([0.5]), [[0.5] * 4, [0.5] * 4]),
        (torch.tensor([0.5, 3.0]), [[0.5] * 4, [3.0] * 4]),
        (torch.tensor([[0.5], [3.0]]), [[0.5] * 4, [3.0] * 4]),
        (torch.tensor([[[0.5], [1.0]], [[2.0], [3.0]]]), [[0.5, 0.5, 1.0, 1.0], [2.0, 2.0, 3.0, 3.0]]),
    ],
)
def test_every_scale_shape_is_applied(scale, rows):
    assert dequantize(torch.full((2, 4), 2.0), scale).tolist() == [[2 * value for value in row] for row in rows]


def test_identity_follows_content_not_path(tmp_path):
    for name in ("one", "two"):
        save_file(TENSORS, tmp_path / f"{name}.safetensors")
    save_file({**TENSORS, "scalar": torch.tensor(8.0)}, tmp_path / "three.safetensors")
    one, two, three = (
        open_weights(tmp_path / f"{n}.safetensors", role="x").identity() for n in ("one", "two", "three")
    )
    assert one == two != three
    assert len(one) == 16 and int(one, 16) >= 0


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 2)
        self.table = nn.Embedding(4, 3)
        self.again = nn.Embedding(4, 3)
        self.again.weight = self.table.weight
        self.register_buffer("kept", torch.zeros(2))
        self.register_buffer("made", torch.ones(1), persistent=False)


FULL = {
    "x.a.weight": torch.randn(2, 3),
    "x.a.bias": torch.randn(2),
    "x.table.weight": torch.randn(4, 3),
    "x.kept": torch.ones(2),
}


def into(tmp_path, tensors, *, rename=lambda name: name.removeprefix("x."), **options) -> Small:
    save_file(tensors, tmp_path / "m.safetensors")
    with torch.device("meta"):
        module = Small()
    module.made = torch.ones(1)
    load_into(module, open_weights(tmp_path / "m.safetensors", role="--dit"), rename=rename, device="cpu", **options)
    return module


def test_load_fills_a_meta_module_and_keeps_ties(tmp_path):
    module = into(tmp_path, FULL)
    assert torch.equal(module.a.weight, FULL["x.a.weight"]) and torch.equal(module.kept, torch.ones(2))
    assert module.again.weight is module.table.weight and not any(p.is_meta for p in module.parameters())
    twice = into(
        tmp_path, {**FULL, "y": FULL["x.table.weight"].clone()}, rename=lambda n: {"y": "table.weight"}.get(n, n[2:])
    )
    assert torch.equal(twice.table.weight, FULL["x.table.weight"])


def test_load_is_strict_and_says_what_is_wrong(tmp_path):
    without = {name: tensor for name, tensor in FULL.items() if name != "x.a.bias"}
    with pytest.raises(WeightsError, match=r"1 missing \(a.bias\)"):
        into(tmp_path, without)
    with pytest.raises(WeightsError, match=r"1 not expected \(x.extra\)"):
        into(tmp_path, {**FULL, "x.extra": torch.zeros(1)})
    with pytest.raises(WeightsError, match=r"x.a.weight \[5, 3\] instead of \[2, 3\]"):
        into(tmp_path, {**FULL, "x.a.weight": torch.zeros(5, 3)})
    dropped = into(tmp_path, {**FULL, "junk": torch.zeros(1)}, rename=lambda n: None if n == "junk" else n[2:])
    assert torch.equal(dropped.a.bias, FULL["x.a.bias"])


def test_transform_sees_the_stored_type_and_may_choose_its_own(tmp_path):
    seen = {}

    def transform(name, tensor):
        seen[name] = tensor.dtype
        return tensor.to(torch.float16) if name == "a.bias" else tensor * 2

    module = into(tmp_path, FULL, dtype=torch.bfloat16, transform=transform)
    assert set(seen.values()) == {torch.float32}
    assert module.a.bias.dtype == torch.float16 and module.a.weight.dtype == torch.bfloat16
    assert torch.equal(module.a.weight, (FULL["x.a.weight"] * 2).bfloat16())


def test_written_files_are_read_by_the_safetensors_library(tmp_path):
    path = tmp_path / "new" / "out.safetensors"
    write_weights(
        path, {**TENSORS, "t": torch.randn(3, 2).t(), "f8": torch.ones(3).to(torch.float8_e4m3fn)}, metadata={"k": "ü"}
    )
    read = load_file(path)
    assert all(same(read[name], tensor) for name, tensor in TENSORS.items())
    assert read["t"].shape == (2, 3) and read["f8"].dtype == torch.float8_e4m3fn
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"k": "ü"}
    assert [child.name for child in path.parent.iterdir()] == ["out.safetensors"]


def test_a_full_disk_leaves_the_old_file_and_no_rubbish(tmp_path, monkeypatch):
    path = tmp_path / "out.safetensors"
    write_weights(path, {"old": torch.ones(2)})
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
    with pytest.raises(DiskError, match="No space left"):
        write_weights(path, {"new": torch.zeros(2)})
    assert list(load_file(path)) == ["old"] and [child.name for child in tmp_path.iterdir()] == ["out.safetensors"]


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(DiskError, match="could not be written"):
        write_weights(tmp_path / "out.safetensors", TENSORS)
