"""Two processes do what one does with twice the accumulation: the same losses, the same LoRA."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engine.contract.errors import OptionError, ProcessLost
from engine.ops.device import device_of_process
from engine.training.group import Group
from tests.training.several import Found, run

SAVING = {"keep": {"save_every_n_steps": 4, "save_state": True}, "max_steps": 10, "count": 7}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},  # five batches an epoch: in the last round the second process has none
    "accumulated": {"count": 7, "accumulation": 2},  # and here one of two
    "dropout": {"dropout": 0.3, "scale_weight_norms": 0.2, "accumulation": 2},
    "whole": SAVING,
    "damaged": {"damaged": [[4, 1]], "max_steps": 16},  # an item that one of them has
    "averaged": {"ema": 0.8, "keep": {"save_every_n_steps": 4, "save_last_n_steps": 1}},
}
SIGMAS = [0.1, 0.35, 0.5, 0.9]
VALIDATED: dict[str, dict[str, Any]] = {  # five clips: one process has more of them
    "clips": {"lr": 0.0, "validated_on": 5, "sigmas": SIGMAS},
    "experts": {"lr": 0.0, "validated_on": 5, "sigmas": SIGMAS, "experts": [0.0, 0.4]},
}
BEST = {"best": {"validated_on": 5, "sigmas": SIGMAS}}
COMPARED = ("loss/current", "loss/average", "lr/unet", "grad_norm")


def doubled(values: dict[str, Any]) -> dict[str, Any]:
    """The case for one process."""
    return {**values, "accumulation": 2 * values.get("accumulation", 1)}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, Any], Found]]:
    """(what one process found, what each of two found) in each case, and of two trainings that go on from a state."""
    folder = tmp_path_factory.mktemp("several")
    one = run(folder / "one", 1, {name: doubled(values) for name, values in (CASES | VALIDATED | BEST).items()})
    going_on = {
        "by two": {**SAVING, "resume": str(folder / "two" / "whole" / "toy-step00000004-state")},
        "from one": {**SAVING, "resume": str(folder / "one" / "whole" / "toy-step00000004-state")},
        "regrouped": {**SAVING, "accumulation": 2, "resume": str(folder / "one" / "whole" / "toy-step00000004-state")},
    }
    two = run(folder / "two", 2, {**CASES, **VALIDATED, **BEST, **going_on})
    return {name: (one.get(name, one["whole"])[0], two[name]) for name in two}


def same(one: dict[str, Any], other: dict[str, Any], *, first: int = 0) -> None:
    assert len(other["metrics"]) == len(one["metrics"]) - first > 0
    for ours, theirs in zip(one["metrics"][first:], other["metrics"], strict=True):
        for name in COMPARED:
            assert theirs[name] == pytest.approx(ours[name], rel=0, abs=1e-6), name
    for name, values in one["weights"].items():
        assert torch.allclose(torch.tensor(other["weights"][name]), torch.tensor(values), rtol=0, atol=1e-6), name


@pytest.mark.parametrize("case", list(CASES))
def test_losses_and_lora_are_those_of_one_process_with_the_same_global_batch(found, case: str) -> None:
    one, (first, second) = found[case]
    same(one, first)
    assert first["weights"] == second["weights"], "the copies have drifted apart"


@pytest.mark.parametrize("case", list(VALIDATED))
def test_validation_gives_the_numbers_of_one_process_to_the_last_bit(found, case: str) -> None:
    one, (first, second) = validations(found[case][0]), map(validations, found[case][1])
    assert first == one and len(one) == 6 and second == []
    assert all(values == one[0] for values in one), "nothing is learnt at a learning rate of 0"


def test_each_level_is_validated_with_its_own_expert(found) -> None:
    """One expert's velocity is twice the other's here; the levels of the first are those of a training without."""
    with_experts, without = (validations(found[case][0])[0] for case in ("experts", "clips"))
    same = {sigma: with_experts[level(sigma)] == without[level(sigma)] for sigma in SIGMAS}
    assert same == {0.1: True, 0.35: True, 0.5: False, 0.9: False}


def level(sigma: float) -> str:
    return f"loss/validation_sigma_{sigma:g}"


def validations(process: dict[str, Any]) -> list[dict[str, float]]:
    return [values for values in process["metrics"] if "loss/validation" in values]


def test_each_batch_of_an_epoch_is_seen_once_by_one_of_them(found) -> None:
    one, both = found["plain"]
    epochs = [
        sorted(seen for process in both for epoch, seen in process["seen"] if epoch == number) for number in (0, 1)
    ]
    assert epochs == [list(range(5)), list(range(5))]
    assert [len([1 for epoch, _ in process["seen"] if epoch == 0]) for process in both] == [3, 2]
    assert sorted(seen for process in both for seen in process["seen"]) == sorted(one["seen"])


def test_what_one_of_them_cannot_use_none_of_them_takes(found) -> None:
    one, (first, second) = found["damaged"]
    told = [[message.split(" to ")[0] for message in process["warnings"]] for process in (one, first)]
    assert told[0] == told[1] == ["Step 15: the loss has exploded"] and first["weights"] == second["weights"]
    assert len(first["metrics"]) == 15


def test_the_average_is_the_same_in_all_and_one_of_them_writes_it(found) -> None:
    one, (first, second) = found["averaged"]
    assert first["average"] == second["average"]
    for ours, theirs in zip(one["average"], first["average"], strict=True):
        assert torch.allclose(torch.tensor(theirs), torch.tensor(ours), rtol=0, atol=1e-6)
    names = ["toy-step00000004", "toy_ema-step00000004", "toy-step00000008", "toy_ema-step00000008", "toy", "toy_ema"]
    assert first["saved"] == [f"{name}.safetensors" for name in names] and second["saved"] == []


def test_the_lora_with_the_lowest_validation_loss_is_saved_by_one_of_them_after_the_same_steps(found) -> None:
    one, (first, second) = found["best"]
    assert one["saved"] == first["saved"] and "toy-best.safetensors" in first["saved"] and second["saved"] == []
    assert found["clips"][1][0]["saved"] == ["toy.safetensors"], "nothing is learnt, so nothing is better"


def test_one_of_them_speaks_and_saves(found) -> None:
    first, second = found["whole"][1]
    names = ["toy-step00000004", "toy-step00000008", "toy"]
    assert first["saved"] == [f"{name}{ending}" for name in names for ending in (".safetensors", "-state")]
    assert second["saved"] == second["metrics"] == second["warnings"] == [] and second["step"] == first["step"] == 10


@pytest.mark.parametrize("case", ["by two", "from one"])
def test_a_state_goes_on_with_as_many_processes_or_as_much_more_accumulation(found, case: str) -> None:
    """Of the same training in one process, whoever saved it: the same row of batches, the same noise."""
    one, (first, second) = found[case]
    same(one, first, first=4)
    assert first["weights"] == second["weights"] and not first["warnings"]


def test_another_global_batch_goes_on_at_an_epoch_s_beginning_and_says_so(found) -> None:
    first, second = found["regrouped"][1]
    (warning,) = first["warnings"]
    assert "resuming after step 4 at the beginning of epoch 3" in warning and first["step"] == 10
    seen = [seen for process in (first, second) for epoch, seen in process["seen"] if epoch == 2]
    assert sorted(seen) == list(range(7))


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert device_of_process(torch.device("cuda", 1)) == torch.device("cuda", 1)  # alone: what was asked for
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(OptionError, match="needs a GPU for each process, but torch sees 2"):
        device_of_process(torch.device("cuda"))
    assert device_of_process(torch.device("cpu")) == torch.device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert device_of_process(torch.device("cuda")) == torch.device("cuda", 1)
    with pytest.raises(OptionError, match="cannot share the device mps"):
        device_of_process(torch.device("mps"))


def test_a_broken_connection_is_told_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """What gloo and NCCL raise when another process is gone; running out of memory there stays what it is."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    group = object.__new__(Group)
    group.count = 2
    for error, expected in (
        (RuntimeError("Connection closed by peer\nmore"), ProcessLost),
        (torch.OutOfMemoryError("CUDA out of memory"), torch.OutOfMemoryError),
    ):
        monkeypatch.setattr(torch.distributed, "all_reduce", failing(error))
        with pytest.raises(expected, match=str(error).partition("\n")[0]):
            group.add_up([torch.zeros(2)])


def test_processes_that_ran_different_blocks_of_a_shared_base_are_found_out(monkeypatch) -> None:
    """What they gathered is made of parts of different blocks: numbers like any others."""
    group, shared = object.__new__(Group), SimpleNamespace(gathered=7)
    group.number, group.count = 0, 2
    monkeypatch.setattr(group, "broadcast", lambda value: 7)
    assert list(group.rounds(4, shared)) == [0, 2]
    shared.gathered = 8
    with pytest.raises(RuntimeError, match="ran different blocks"):
        list(group.rounds(4, shared))


def failing(error: Exception):
    def fail(tensor: torch.Tensor) -> None:
        raise error

    return fail
