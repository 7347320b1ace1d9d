"""`train --shard_base` in two processes does what it does without, bit for bit: losses, LoRA, validation, samples."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from engine.contract.cli import parse
from engine.contract.errors import OptionError
from engine.contract.events import Failed, Log, Metric
from engine.families import part
from engine.tasks.experts import Experts
from tests.faults.engine_child import EngineChild, train_words
from tests.faults.kit import needs_kill
from tests.memory.company import Member, Table
from tests.tasks.test_several_processes import TWO, gone, processes_of, with_ordinary

pytestmark = [pytest.mark.slow, needs_kill]
PROMPTS = "A red square --w 64 --h 48 --f 5 --s 2 --d 7\n"
# five clips to train on, so that the second process has none in the last step of an epoch; one to validate on
UNEVEN = ("--validation_split", 0.17, "--validate_every_n_steps", 2, "--validation_timesteps", 200, 800)
STEPS = 4


@pytest.fixture(scope="module")
def words(cached, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """What a training with samples, validation and a preserved prior in two processes is started with, but for where
    its results go."""
    folder = tmp_path_factory.mktemp("prompts")
    (folder / "prompts.txt").write_text(PROMPTS)
    models = part("wan", "tiny").tiny_model_options(cached.folder / "models")["generate"]
    encoders = ("--vae", models["vae"], "--t5", models["t5"])
    samples = ("--sample_prompts", folder / "prompts.txt", "--sample_at_first", "--sample_every_n_steps", 3, *encoders)
    memory = ("--gradient_checkpointing", "--fp8_base", "--fp8_scaled")
    dataset = ("--dataset_config", with_ordinary(cached, folder))
    return [*TWO, *UNEVEN, *samples, *memory, *dataset, "--save_every_n_steps", 2]


@pytest.fixture(scope="module")
def both(cached, words, tmp_path_factory: pytest.TempPathFactory) -> dict[str, EngineChild]:
    """The training with a whole base in each process, and with one that is shared out."""
    folder = tmp_path_factory.mktemp("trainings")
    return {name: trained(cached, folder / name, *words, *more) for name, more in (("whole", ()), ("shared", SHARED))}


SHARED = ("--shard_base",)


def trained(cached, out: Path, *words: object) -> EngineChild:
    out.mkdir(exist_ok=True)
    with EngineChild(*train_words(cached, out, "--max_train_steps", STEPS, *words), folder=out) as child:
        assert child.end() == 0, child.last
    return child


def values(child: EngineChild) -> list[dict[str, Any]]:
    return [event.values for event in child.heard if isinstance(event, Metric)]


def same_lora(one: Path, other: Path) -> bool:
    ours, theirs = (load_file(path / "demo-lora.safetensors") for path in (one, other))
    return all(torch.equal(ours[name], theirs[name]) for name in ours) and ours.keys() == theirs.keys()


def test_losses_validation_and_lora_are_the_same(both) -> None:
    whole, shared = values(both["whole"]), values(both["shared"])
    assert whole == shared and sum("loss/validation" in row for row in whole) == 3 and len(whole) == 3 + STEPS
    assert any("loss/prior" in row for row in whole)
    assert same_lora(*(child.artifacts("LoRA")[-1].parent for child in both.values()))


def test_number_0_samples_with_the_others_help(both) -> None:
    whole, shared = (child.artifacts("video") for child in both.values())
    assert len(whole) == len(shared) == 2
    for ours, theirs in zip(whole, shared, strict=True):
        assert ours.read_bytes() == theirs.read_bytes()


def test_the_person_is_told(both) -> None:
    said = [event.message for event in both["shared"].heard if isinstance(event, Log)]
    assert sum("The base is shared out over 2 processes: " in message for message in said) == 1


def test_a_state_goes_on_shared_or_not(cached, words, both, tmp_path: Path) -> None:
    folder = both["shared"].artifacts("LoRA")[-1].parent
    child = trained(cached, tmp_path / "on", *words, "--resume", folder / "demo-lora-step00000002-state")
    assert child.steps[0] == 3 and same_lora(tmp_path / "on", folder)


def test_a_process_that_dies_while_others_gather_ends_the_job(cached, tmp_path: Path) -> None:
    words = train_words(cached, tmp_path / "out", *TWO, *SHARED)
    with EngineChild(*words, folder=tmp_path) as child:
        child.step(1)
        (other,) = processes_of(child)
        os.kill(other, signal.SIGKILL)
        assert child.end() == 3 and isinstance(child.last, Failed), child.last
        assert "Process 1 of the job was killed" in child.last.message and gone(other)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ((), "this is the only one"),
        (("--network_args", "dora_wd=True"), "DoRA starts from the norms of the base's weights"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(cached, engine, tmp_path: Path, more: tuple[str, ...], said: str) -> None:
    refused = engine(*train_words(cached, tmp_path / "out", "--device", "cpu", *SHARED, *more))
    assert refused.status == 2 and said in refused.err and "--shard_base" in refused.err


def test_experts_that_take_turns_are_refused() -> None:
    job = parse([*"train wan --task t2v-A14B --dit a --dit_high_noise b --dataset_config c".split(), *SHARED])
    experts = Experts(job, device=torch.device("cpu"), weight_format="stored", attention_backend="auto", say=print)
    with pytest.raises(OptionError, match="shares out one DiT, but 2 take turns") as caught:
        experts.share_out(Member(0, Table(2)))
    assert "leave out --dit_high_noise" in caught.value.hint
