"""Checkpoints and caches of random numbers: in the layouts of public files, in bounded memory."""

from __future__ import annotations

import math

import pytest
import torch

from engine.bench import files
from engine.bench.cases import all_cases
from engine.bench.files import Input, command_line, config_of, weight_pieces, write_caches, write_dataset, write_random
from engine.data.batches import load_items
from engine.data.config import load_config
from engine.families import names, part
from engine.families.values import BenchModel, BenchSize
from engine.parts.weights import open_weights
from tests.layouts.checks import HERE, read_layout

LAYOUTS = {
    "wan-1.3b": "wan21_t2v_1_3b", "wan-14b": "wan21_t2v_14b", "hunyuan-13b": "hunyuanvideo_t2v_13b",
    "framepack": "framepack_i2v_hy",
}  # fmt: skip
VAES = {"wan": "wan21_vae", "hunyuan": "hunyuanvideo_vae_tencent"}
FULL_SIZE = [(family, model) for family in names(extra=False) for model in part(family, "bench").MODELS]


@pytest.mark.parametrize(("family", "model"), FULL_SIZE, ids=lambda value: getattr(value, "name", ""))
def test_full_size_models_have_the_layout_of_the_public_files(family, model):
    shapes = {
        name: tuple(value.shape) for name, value in part(family, "model").build(model.config).state_dict().items()
    }
    assert shapes == {
        name: tuple(shape) for name, shape in read_layout(HERE / f"{LAYOUTS[model.name]}.json.gz").items()
    }
    variant = part(family, "detect").detect(shapes, {})
    assert variant.config == model.config and model.heads * model.head_dim == model.config.dim
    for options in model.options.values():
        if "task" in options:
            part(family, "detect").check_task(variant, options["task"])


@pytest.mark.parametrize("family", names(extra=False))
def test_full_size_vaes_have_the_layout_of_the_public_files(family):
    vae = part(family, "bench").VAE
    public = read_layout(HERE / f"{VAES[vae.name]}.json.gz")
    assert vae.shapes() == {name: tuple(shape) for name, shape in public.items()}


@pytest.mark.parametrize("family", names(extra=False))
def test_caches_are_what_training_wants(family, tmp_path):
    paths = part(family, "tiny").write_tiny_models(tmp_path / "models")
    given = Input(BenchSize(height=48, width=64, frames=9), window=2)
    file = write_dataset(family, tmp_path, given)
    write_caches(family, tmp_path, given, config_of(family, str(paths["dit"])))
    (item,) = load_items(
        load_config(file), architecture=part(family, "options").ARCHITECTURE, say=lambda event: None
    )  # fmt: skip
    assert part(family, "model").check_cache(item.shapes) == ""


def test_random_weights_are_read_back_at_the_scale_of_trained_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "POOL", 101)  # every weight in many pieces
    path = tmp_path / "some.safetensors"
    shapes = {
        "a.weight": (40, 64),
        "norm.weight": (3,),
        "a.bias": (4,),
        "norm.gamma": (8, 1, 1, 1),
        "b.weight": (40, 64),
    }
    assert sum(write_random(path, shapes)) == 2 * sum(map(math.prod, shapes.values()))
    file = open_weights(path, role="--dit")
    assert file.dtypes["a.weight"] == torch.bfloat16 and dict(file.shapes) == shapes
    assert file.read("norm.weight").tolist() == [1, 1, 1] and not file.read("a.bias").any()
    assert file.read("norm.gamma").flatten().tolist() == [1] * 8
    assert file.read("a.weight").float().std() == pytest.approx(64**-0.5, rel=0.25)
    assert not torch.equal(file.read("a.weight"), file.read("b.weight"))


def test_rows_of_a_matrix_differ():
    pool = torch.randn(files.POOL).bfloat16()
    weight = torch.cat(list(weight_pieces("a.weight", (2000, 5000), pool))).view(2000, 5000)
    assert not torch.equal(weight[0], weight[1]) and not torch.equal(weight[0], weight[-1])
    assert max(piece.numel() for piece in weight_pieces("a.weight", (2000, 5000), pool)) <= files.POOL


def test_a_broken_off_file_is_not_there_under_its_name(tmp_path):
    pieces = write_random(tmp_path / "some.safetensors", {"a.weight": (4, 4), "b.weight": (4, 4)})
    next(pieces)
    pieces.close()
    assert list(tmp_path.iterdir()) == []


def test_options_become_words():
    words = command_line("train", "hunyuan_video", {"size": (1, 2), "left_out": None, "name": "a b"}, ("--fp8_scaled",))
    assert words == ["train", "hunyuan-video", "--size", "1", "2", "--name", "a b", "--fp8_scaled"]


def test_tiny_inputs_keep_the_name_of_their_case():
    cases = all_cases(["wan"], lambda family: part(family, "bench"), backends=["sdpa"])
    case = next(case for case in cases if case.kind == "train")
    assert Input.of(case, tiny=False) == Input(case.size, BenchModel.window)
    small = Input.of(case, tiny=True).size
    assert (small.height, small.width, small.frames) == (48, 64, 9) and small.name == case.size.name
