"""A checkpoint in another arrangement: joined rows, swapped halves, and the strict loader on top of it."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from engine.contract.errors import WeightsError
from engine.parts.arrangement import Rows, arranged_shapes
from engine.parts.weight_views import ArrangedWeights
from engine.parts.weights import load_into, open_weights

TENSORS = {
    "q": torch.arange(6.0).view(2, 3),
    "k": torch.arange(10.0, 13.0).view(1, 3),
    "halves": torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.bfloat16),
    "same": torch.tensor([5, 6]),
    "scalar": torch.tensor(7.0),
}
ARRANGEMENT = {
    "qk": (Rows("q"), Rows("k")),
    "swapped": (Rows("halves", 2), Rows("halves", 0, 2)),
    "same": (Rows("same"),),
    "one": (Rows("scalar"),),
    "first": (Rows("q", 0, 1),),
}


@pytest.fixture
def file(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"head_dim": "32"})
    return open_weights(tmp_path / "model.safetensors", role="--dit")


def test_rows_are_joined_in_order(file):
    view = ArrangedWeights(file, ARRANGEMENT)
    assert view.shapes == {"qk": (3, 3), "swapped": (4,), "same": (2,), "one": (), "first": (1, 3)}
    assert torch.equal(view.read("qk"), torch.cat([TENSORS["q"], TENSORS["k"]]))
    assert view.read("swapped").tolist() == [3.0, 4.0, 1.0, 2.0]
    assert view.read("same").tolist() == [5, 6] and view.read("one") == 7
    assert torch.equal(view.read("first", dtype=torch.float16), TENSORS["q"][:1].half())
    assert view.dtypes["swapped"] == torch.bfloat16 and view.metadata == {"head_dim": "32"}
    assert (view.identity(), view.path, view.role) == (file.identity(), file.path, "--dit")


def test_parts_of_different_types_take_the_first(tmp_path):
    save_file({"a": torch.ones(2, dtype=torch.bfloat16), "b": torch.ones(1)}, tmp_path / "m.safetensors")
    view = ArrangedWeights(open_weights(tmp_path / "m.safetensors", role="--dit"), {"ab": (Rows("a"), Rows("b"))})
    assert view.read("ab").dtype == view.dtypes["ab"] == torch.bfloat16
    assert view.read("ab", dtype=torch.float32).dtype == torch.float32


def test_scaled_fp8_parts_are_multiplied_out_each_with_its_scale(tmp_path):
    """Query, key and value of one file have scales of their own; joining codes would lose that."""
    codes = torch.ones(2, 4).to(torch.float8_e4m3fn)
    tensors = {"q.weight": codes, "q.scale_weight": torch.tensor(2.0), "k.weight": codes.clone()}
    tensors["k.scale_weight"] = torch.tensor(3.0)
    save_file(tensors, tmp_path / "m.safetensors")
    file = open_weights(tmp_path / "m.safetensors", role="--dit")
    view = ArrangedWeights(file, {"qk.weight": (Rows("q.weight"), Rows("k.weight"))})
    assert view.read("qk.weight", dtype=torch.float32)[:, 0].tolist() == [2.0, 2.0, 3.0, 3.0]


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(WeightsError, match=r"--dit m: tensors that make up qk .* q \[2, 3\], k \[1, 4\]"):
        arranged_shapes({"qk": (Rows("q"), Rows("k"))}, {"q": (2, 3), "k": (1, 4)}, source="--dit m")
    with pytest.raises(WeightsError, match="do not fit together"):
        arranged_shapes({"qk": (Rows("q"), Rows("k"))}, {"q": (), "k": ()})


def test_the_strict_loader_reads_a_view(file):
    module = nn.Linear(3, 3, device="meta")
    seen = []

    def transform(name, tensor):
        seen.append((name, tuple(tensor.shape)))
        return tensor

    view = ArrangedWeights(file, {"weight": (Rows("q"), Rows("k")), "bias": (Rows("halves", 1),)})
    load_into(module, view, rename=lambda name: name, device="cpu", dtype=torch.float32, transform=transform)
    assert seen == [("weight", (3, 3)), ("bias", (3,))]
    assert module.weight[2].tolist() == [10.0, 11.0, 12.0] and module.bias.tolist() == [2.0, 3.0, 4.0]
    with pytest.raises(WeightsError, match=r"1 missing \(bias\)"):
        load_into(nn.Linear(3, 3), ArrangedWeights(file, {"weight": (Rows("q"), Rows("k"))}), rename=str, device="cpu")
