"""Weights that go straight to a GPU: what came is what the file holds, sooner than one thread would bring it."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from engine.memory.fp8 import QuantizeOnLoad
from engine.parts.weights import WorkedOn, load_into, open_weights, write_weights

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]
GAIN = 1.5


def model(device: str, *, layers: int, width: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(width, width, device=device, dtype=torch.bfloat16) for _ in range(layers)))


def test_every_tensor_is_the_files(tmp_path):
    torch.manual_seed(0)
    theirs = model("cpu", layers=40, width=1024)
    theirs.append(nn.Linear(4999, 4999))  # 100 MB in pieces, the last of which is not whole
    path = tmp_path / "weights.safetensors"
    write_weights(path, theirs.state_dict())
    ours = model("meta", layers=40, width=1024).append(nn.Linear(4999, 4999, device="meta"))
    load_into(ours, open_weights(path, role="--dit"), rename=lambda name: name, device="cuda")
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name].cpu(), tensor), name


def test_what_waits_in_main_memory_is_quantised_on_the_gpu(tmp_path):
    """The same codes and scales as on the CPU, and nothing stays behind on the GPU."""
    torch.manual_seed(0)
    path = tmp_path / "weights.safetensors"
    write_weights(path, model("cpu", layers=3, width=512).state_dict())
    made, before = {}, torch.cuda.memory_allocated()
    for device in ("cpu", "cuda"):
        ours = model("meta", layers=3, width=512)
        quantizer = QuantizeOnLoad(ours, wanted=lambda name: name != "1", mode="channel")
        worked = WorkedOn(quantizer, torch.device(device))
        load_into(ours, open_weights(path, role="--dit"), rename=lambda name: name, device="cpu", transform=worked)
        assert quantizer.install(ours) == ["0", "2"]
        made[device] = ours.state_dict()
    assert made["cpu"].keys() == made["cuda"].keys()
    for name, tensor in made["cpu"].items():
        theirs = made["cuda"][name]
        assert theirs.device.type == "cpu" and torch.equal(theirs.float(), tensor.float()), name
    assert torch.cuda.memory_allocated() == before


def test_a_cached_file_comes_faster_than_through_one_thread(tmp_path):
    theirs = model("cpu", layers=24, width=8192)  # 3 GB
    path = tmp_path / "weights.safetensors"
    write_weights(path, theirs.state_dict())
    file = open_weights(path, role="--dit")

    def one_thread() -> None:
        for name in file.shapes:
            file.read(name).to("cuda")

    def loading() -> None:
        load_into(model("meta", layers=24, width=8192), file, rename=lambda name: name, device="cuda")

    seconds = {}
    for way in (one_thread, loading, one_thread, loading):
        torch.cuda.synchronize()
        started = time.perf_counter()
        way()
        torch.cuda.synchronize()
        seconds[way.__name__] = time.perf_counter() - started
    gib = path.stat().st_size / 2**30
    print({name: f"{gib / took:.1f} GiB/s" for name, took in seconds.items()})
    assert seconds["one_thread"] > GAIN * seconds["loading"]
