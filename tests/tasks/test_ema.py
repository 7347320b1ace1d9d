"""`--use_ema` through the command that a person types: the files, what they say, who sees the average, going on."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from engine.__main__ import main
from engine.families.wan import tiny
from engine.training.ema import decay_at
from engine.training.states import read_position
from tests.tasks.test_resuming import change_record, same_weights
from tests.tasks.test_samples import words_of

EMA = ("--use_ema", "--ema_decay", 0.7)
SIX_STEPS = ("--max_train_steps", 6, "--save_every_n_steps", 1, "--save_state")


def words(cached, folder: Path, *more: object) -> list[str]:
    out = ("--output_dir", folder / "out", "--logging_dir", folder / "logs")
    return [str(word) for word in (*cached.steps[2].command, *out, *SIX_STEPS, *more)]


@pytest.fixture
def train(engine, cached, tmp_path):
    return lambda *more: engine(*words(cached, tmp_path, *more))


@pytest.fixture(scope="module")
def whole(cached, tmp_path_factory) -> Path:
    """What a training with an average leaves."""
    folder = tmp_path_factory.mktemp("whole")
    assert main(words(cached, folder, *EMA)) == 0
    return folder / "out"


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def averaged(files: list[Path], decay: float) -> dict[str, torch.Tensor]:
    """The average of LoRA files in order."""
    found = load_file(files[0])
    for update, file in enumerate(files[1:], 2):
        for name, value in load_file(file).items():
            found[name] = found[name].lerp(value, 1 - decay_at(update, decay))
    return found


def test_the_average_is_that_of_the_saved_steps_and_lies_beside_them(whole) -> None:
    names = [f"-step{step:08d}" for step in range(1, 7)]
    assert {path.name for path in whole.glob("*.safetensors")} == {
        f"demo-lora{ema}{name}.safetensors" for name in [*names, ""] for ema in ("", "_ema")
    }
    wanted = averaged([whole / f"demo-lora{name}.safetensors" for name in names], 0.7)
    for file in ("demo-lora_ema.safetensors", "demo-lora_ema-step00000006.safetensors"):
        found = load_file(whole / file)
        assert found.keys() == wanted.keys()
        assert all(torch.allclose(value, wanted[name], rtol=0, atol=1e-7) for name, value in found.items())
    assert not same_weights(whole / "demo-lora_ema.safetensors", whole / "demo-lora.safetensors")


def test_the_file_says_what_it_is(whole, engine) -> None:
    average, raw = (metadata_of(whole / f"demo-lora{ema}.safetensors") for ema in ("_ema", ""))
    assert average["ss_ema_decay"] == "0.7" and "ss_ema_decay" not in raw
    assert (average["ss_output_name"], average["modelspec.title"]) == ("demo-lora_ema", "demo-lora_ema")
    assert average["ss_steps"] == raw["ss_steps"] == "6"
    told = engine("lora", "info", whole / "demo-lora_ema.safetensors")
    assert told.status == 0 and "average (EMA), decay" in told.out + told.err


@pytest.mark.parametrize(
    "more",
    [
        ("--network_args", "dora_wd=True"),
        ("--network_module", "networks.loha"),
        ("--network_module", "networks.lokr"),
        ("--network_module", "lycoris.kohya", "--network_args", "algo=lokr", "factor=4"),
        ("--lora_format", "other", "--save_precision", "bf16"),
        ("--full_bf16", "--mixed_precision", "bf16", "--ema_device", "cpu"),
    ],
    ids=lambda more: " ".join(map(str, more)),
)
def test_every_kind_of_adapter_is_averaged(train, tmp_path, more) -> None:
    result = train(*EMA, *more, "--max_train_steps", 3)
    assert result.status == 0, result.err
    average, raw = (load_file(tmp_path / "out" / f"demo-lora{ema}.safetensors") for ema in ("_ema", ""))
    assert average.keys() == raw.keys() and all(value.shape == raw[name].shape for name, value in average.items())
    moved = [name for name, value in average.items() if not value.equal(raw[name])]
    assert moved and not any(name.endswith("alpha") for name in moved)


def test_bf16_weights_have_an_average_in_float32(train, tmp_path) -> None:
    """Rounded to bf16 it would be less than the weights that it is made of."""
    assert train(*EMA, "--full_bf16", "--mixed_precision", "bf16").status == 0
    out = tmp_path / "out"
    stored = load_file(out / "demo-lora_ema.safetensors")
    wanted = averaged([out / f"demo-lora-step{step:08d}.safetensors" for step in range(1, 7)], 0.7)
    assert all(torch.allclose(value, wanted[name], rtol=0, atol=1e-7) for name, value in stored.items())
    assert any(not value.to(torch.bfloat16).float().equal(value) for value in stored.values())


def test_two_experts_have_an_average_each(train, tmp_path) -> None:
    tiny.write_tiny_models(tmp_path / "models", variant="t2v-A14B")
    options = tiny.tiny_model_options(tmp_path / "models", variant="t2v-A14B")["train"]
    models = [word for name, value in options.items() for word in (f"--{name}", value)]
    result = train(*models, "--timestep_boundary", 0.5, *EMA, "--seed", 3)
    assert result.status == 0, result.err
    out = tmp_path / "out"
    for expert in ("", "_high_noise"):
        steps = [out / f"demo-lora{expert}-step{step:08d}.safetensors" for step in range(1, 7)]
        turns = [steps[0], *(file for last, file in itertools.pairwise(steps) if not same_weights(last, file))]
        if not any(value.any() for name, value in load_file(steps[0]).items() if "lora_up" in name):
            turns = turns[1:]  # the first step was the other's
        found, wanted = load_file(out / f"demo-lora{expert}_ema.safetensors"), averaged(turns, 0.7)
        assert len(turns) in range(1, 6)
        assert all(torch.allclose(value, wanted[name], rtol=0, atol=1e-7) for name, value in found.items())
        assert metadata_of(out / f"demo-lora{expert}_ema.safetensors")["ss_output_name"] == f"demo-lora{expert}_ema"


def test_an_optimizer_that_averages_by_itself_is_refused_before_anything_is_loaded(train, tmp_path) -> None:
    result = train(*EMA, "--optimizer_type", "AdamWScheduleFree")
    assert result.status == 2 and "--use_ema averages the weights, but --optimizer_type" in " ".join(result.err.split())
    assert "Loading" not in result.err and not list((tmp_path / "out").glob("*.safetensors"))


def test_samples_are_made_with_the_average(train, cached, engine, tmp_path) -> None:
    """What `generate` makes with its file, and not what it makes with the other."""
    (tmp_path / "prompts.txt").write_text("a red circle --w 64 --h 48 --f 1 --s 2 --d 7\n")
    options = tiny.tiny_model_options(cached.folder / "models")
    models = words_of(options["generate"] | options["train"])
    sampling = ("--sample_prompts", tmp_path / "prompts.txt", "--sample_every_n_steps", 6, "--learning_rate", 0.05)
    assert train(*EMA, *models, *sampling).status == 0
    (sample,) = (tmp_path / "out" / "sample").glob("*.png")
    made = {}
    for ema in ("", "_ema"):
        lora, out = tmp_path / "out" / f"demo-lora{ema}.safetensors", tmp_path / f"made{ema}"
        result = engine(
            "generate", "wan", *words_of(options["generate"]), "--lora_weight", lora, "--save_path", out, "--prompt",
            "a red circle", "--video_size", 48, 64, "--video_length", 1, "--infer_steps", 2, "--seed", 7,
            "--flow_shift", 14.5, "--guidance_scale", 5.0,
        )  # fmt: skip
        assert result.status == 0, result.err
        (made[ema],) = out.glob("*.png")
    assert distance(sample, made["_ema"]) <= 1 < distance(sample, made[""])


def distance(one: Path, other: Path) -> int:
    from engine.media.images import read_image

    return int(abs(read_image(one).astype(int) - read_image(other).astype(int)).max())


# ----------------------------------------------------------------------------------------------------------- going on


def as_if_killed(whole: Path, folder: Path, *, after: int) -> Path:
    """The output folder of a training that was killed after that step."""
    out = folder / "out"
    shutil.copytree(whole, out, ignore=shutil.ignore_patterns("jobs", "demo-lora-state"))
    for state in out.glob("*-state"):
        if read_position(state).step > after:
            shutil.rmtree(state)
    for lora in out.glob("*.safetensors"):
        if not lora.stem[-1].isdigit() or int(lora.stem[-8:]) > after:
            lora.unlink()
    change_record(out, finished_steps=None)
    return out


def test_a_killed_training_goes_on_with_its_average(train, whole, tmp_path) -> None:
    out = as_if_killed(whole, tmp_path, after=4)
    result = train(*EMA)
    assert result.status == 0 and "Resuming after step 4" in result.err, result.err
    for ema in ("", "_ema"):
        assert same_weights(out / f"demo-lora{ema}.safetensors", whole / f"demo-lora{ema}.safetensors")


def test_another_decay_counts_from_there_and_is_told(train, whole, tmp_path) -> None:
    out = as_if_killed(whole, tmp_path, after=4)
    result = train("--use_ema", "--ema_decay", 0.1, "--ema_device", "cpu")
    said = " ".join(result.err.split())
    assert result.status == 0 and "Options changed from here on: ema_decay is 0.1, was 0.7." in said
    assert same_weights(out / "demo-lora.safetensors", whole / "demo-lora.safetensors")
    assert not same_weights(out / "demo-lora_ema.safetensors", whole / "demo-lora_ema.safetensors")


def test_it_can_be_left_out_and_begun_again(train, whole, tmp_path) -> None:
    out = as_if_killed(whole, tmp_path, after=2)
    result = train("--max_train_steps", 4)
    assert result.status == 0 and "use_ema is False, was True" in " ".join(result.err.split())
    assert same_weights(out / "demo-lora-step00000004.safetensors", whole / "demo-lora-step00000004.safetensors")
    result = train(*EMA)
    assert result.status == 0 and "averaging starts at step 4" in " ".join(result.err.split())
    steps = [out / f"demo-lora-step{step:08d}.safetensors" for step in (5, 6)]
    found, wanted = load_file(out / "demo-lora_ema.safetensors"), averaged(steps, 0.7)
    assert all(torch.allclose(value, wanted[name], rtol=0, atol=1e-7) for name, value in found.items())


def test_a_state_of_before_there_were_averages_is_no_other_training(train, whole, tmp_path) -> None:
    """Options that an engine did not have are not options that have changed."""
    out = as_if_killed(whole, tmp_path, after=3)
    shutil.rmtree(out)
    assert train("--max_train_steps", 3).status == 0
    record = json.loads((out / "demo-lora-training.json").read_text())
    later = ("use_ema", "ema_decay")
    change_record(out, options={name: value for name, value in record["options"].items() if name not in later})
    result = train("--max_train_steps", 3)
    assert result.status == 0 and "Nothing to do" in " ".join(result.err.split()), result.err


def test_an_average_is_not_written_over_another_lora(train, tmp_path) -> None:
    (tmp_path / "out").mkdir()
    other = tmp_path / "out" / "demo-lora_ema.safetensors"
    other.write_bytes(b"of another training")
    refused = train(*EMA)
    assert refused.status == 2 and "there is no record of how they were made" in " ".join(refused.err.split())
    assert train("--max_train_steps", 1).status == 0 and other.read_bytes() == b"of another training"
