"""What a plan says of scratch files is what loading writes, byte for byte."""

from __future__ import annotations

import gc

import pytest
import torch

from engine.contract.cli import parse
from engine.contract.options import GenerationPrecision, TrainingPrecision
from engine.families.wan.tiny import DIT_CONFIG, dit_tensors
from engine.memory import disk_loading
from engine.memory.machine import Card
from engine.ops.device import DTYPES
from engine.ops.fp8 import quantize
from engine.ops.fp8_scales import MODES, scale_bytes
from engine.parts.mapped_files import scratch_held
from engine.parts.weight_files import SAFETENSORS_DTYPES
from engine.parts.weights import write_weights
from engine.tasks import kept, planned_scratch, planned_weights
from engine.tasks.experts import Experts
from engine.tasks.planned_weights import FORMATS, PlannedDit
from tests.families.test_shared_base import DITS
from tests.tasks.test_generate import write_lora

CPU = torch.device("cpu")
FP8 = ("--fp8_base", "--fp8_scaled")
ON_DISK = ("--blocks_to_swap", "1", "--block_swap_from_disk")


@pytest.fixture
def written(tmp_path, monkeypatch):
    """The sizes of the scratch files that were made."""
    made = []
    scratch = disk_loading.Scratch
    monkeypatch.setattr(disk_loading, "Scratch", lambda size: made.append(size) or scratch(size))
    monkeypatch.setenv("MUSUBI_SCRATCH", str(tmp_path / "scratch"))
    return made


def checkpoint(family, path, *, change=lambda name, tensor: tensor):
    """A small DiT in a file, and the file's weights."""
    make, _, metadata = DITS[family]
    tensors = {name: change(name, tensor) for name, tensor in make().state_dict().items()}
    write_weights(path, tensors, metadata=metadata)
    return tensors


def job_of(family, path, *words):
    return parse(
        ["train", family, "--dit", str(path), "--dataset_config", "none.toml", "--device", "cpu", *ON_DISK, *words]
    )


def load(job):
    precision = TrainingPrecision if TrainingPrecision in job else GenerationPrecision
    weight_format = job[precision].weight_format
    experts = Experts(job, device=CPU, weight_format=weight_format, attention_backend="auto", say=lambda event: None)
    experts.arrange()
    return experts


def planned(job):
    return PlannedDit(job, job.values()["dit"]).weights(job, trained=True).scratch


@pytest.mark.parametrize("words", [(), ("--fp8_base",), FP8], ids=str)
@pytest.mark.parametrize("family", list(DITS))
def test_weights_in_fp8_are_written_and_others_are_not(family, words, tmp_path, written):
    path = tmp_path / "dit.safetensors"
    checkpoint(family, path)
    job = job_of(family, path, *words)
    load(job)
    assert planned(job) == sum(written) and bool(written) == bool(words)


def test_weights_of_another_format_than_most_are_written(tmp_path, written):
    path = tmp_path / "dit.safetensors"
    checkpoint("wan", path, change=lambda name, tensor: tensor.bfloat16() if name.endswith("q.weight") else tensor)
    job = job_of("wan", path)
    load(job)
    assert planned(job) == sum(written) > 0


def test_all_of_another_format_is_written(tmp_path, written):
    path = tmp_path / "dit.safetensors"
    checkpoint("hunyuan-video", path)
    job = job_of("hunyuan-video", path, "--dit_dtype", "bfloat16")
    load(job)
    assert planned(job) == sum(written) > 0


def test_what_pytorch_wrote_is_written(tmp_path, written):
    path = tmp_path / "dit.pt"
    torch.save(dit_tensors(0, DIT_CONFIG), path)
    job = job_of("wan", path)
    load(job)
    assert planned(job) == sum(written) > 0


@pytest.mark.parametrize("words", [(), FP8], ids=str)
@pytest.mark.parametrize("family", list(DITS))
def test_what_loras_are_merged_into_is_written(family, words, tmp_path, written):
    path = tmp_path / "dit.safetensors"
    weights = checkpoint(family, path)
    linear = {name.removesuffix(".weight"): tuple(weight.shape) for name, weight in weights.items() if weight.ndim == 2}
    inside = {
        name.replace(".", "_"): shape for name, shape in linear.items() if "blocks." in name and "mod" not in name
    }
    lora = write_lora(tmp_path / "lora.safetensors", dict(list(inside.items())[::3]))
    job = job_of(family, path, "--base_weights", str(lora), *words)
    load(job)
    assert planned(job) == sum(written) > 0


@pytest.mark.parametrize("words", [FP8, (*FP8, "--offload_inactive_dit")], ids=str)
def test_experts_have_a_file_each(words, tmp_path, written):
    paths = [tmp_path / f"{name}.safetensors" for name in ("low", "high")]
    for path in paths:
        checkpoint("wan", path)
    job = job_of("wan", paths[0], "--task", "t2v-A14B", "--dit_high_noise", str(paths[1]), *words)
    load(job).use(0)
    assert len(written) == 2 and planned(job) == sum(written)


def generated(tmp_path, *words):
    """A generation with two experts."""
    paths = [tmp_path / f"{name}.safetensors" for name in ("low", "high")]
    for path in paths:
        checkpoint("wan", path)
    return parse(
        ["generate", "wan", "--dit", str(paths[0]), "--dit_high_noise", str(paths[1]), "--vae", "v", "--t5", "t",
         "--prompt", "x", "--save_path", "s", "--task", "t2v-A14B", "--fp8_scaled", "--device", "cpu", *ON_DISK, *words]
    )  # fmt: skip


def test_of_experts_that_are_loaded_in_turn_there_is_one_file_at_a_time(tmp_path, written):
    job = generated(tmp_path, "--lazy_loading")
    gc.collect()
    before = scratch_held()
    gc.disable()  # what goes must not have to wait for it: there is room for one file
    try:
        experts = load(job)
        held = [scratch_held() - before]
        for number in (0, 1):
            experts.use(number)
            held.append(scratch_held() - before)
    finally:
        gc.enable()
    wanted = PlannedDit(job, job.values()["dit"]).weights(job, trained=False).scratch
    assert held == written == [wanted] * 3 and wanted > 0


def test_the_file_of_a_model_that_is_kept_no_longer_goes_at_once(tmp_path, monkeypatch, written):
    """The next job's plan has counted its room as free."""
    monkeypatch.setattr(kept, "main_memory", lambda: 10 * kept.SPARE)
    job, models = generated(tmp_path), kept.Kept()
    for let_go in (lambda: models.let_go("dit", unless=kept.Key("two")), models.clear):
        gc.collect()
        before = scratch_held()
        experts = load(job)
        models.put(
            "dit", kept.Key("one"), experts, lambda event: None, weights=experts.weights(), stream=experts.stream
        )
        del experts
        assert scratch_held() > before
        let_go()
        assert scratch_held() == before


def test_loras_are_not_read_where_nothing_waits_on_disk(tmp_path, monkeypatch):
    path = tmp_path / "dit.safetensors"
    checkpoint("wan", path)
    monkeypatch.setattr(planned_scratch, "PlannedScratch", None)
    job = parse(["train", "wan", "--dit", str(path), "--dataset_config", "x", "--base_weights", "no_such_file"])
    assert planned(job) == 0


def test_the_words_for_number_formats_are_those_that_loading_knows():
    assert {word: SAFETENSORS_DTYPES[name] for word, name in FORMATS.items()} == DTYPES


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(8, 128), (8, 100)])
def test_scales_are_counted_as_they_are_made(mode, shape):
    _, scale = quantize(torch.randn(shape), mode, scale_dtype=torch.float32)
    assert scale_bytes(mode, shape) == scale.nbytes


@pytest.mark.parametrize(("device", "capability", "mode"), [
    ("cuda", (8, 6), "block"), ("cuda", (9, 0), "channel"), ("cuda", None, "channel"), ("cpu", None, "block"),
])  # fmt: skip
def test_scales_are_those_of_the_card(device, capability, mode, tmp_path, monkeypatch):
    """Of a card that is not here the best is thought."""
    card = None if capability is None else Card("a card", 1, 1, capability)
    monkeypatch.setattr(planned_weights, "find_card", lambda device: card)
    path = tmp_path / "dit.safetensors"
    checkpoint("wan", path)
    job = parse(["train", "wan", "--dit", str(path), "--dataset_config", "x", "--device", device, *ON_DISK, *FP8])
    dit = PlannedDit(job, str(path))
    assert dit.weights(job, trained=True).scratch == sum(dit.scratch(mode, "F32", ())[1:2])
