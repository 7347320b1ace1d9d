"""What the options of Wan 2.2's experts and of guidance along the steps come to, and what they refuse."""

from __future__ import annotations

import shlex

import pytest

from engine.contract import cli
from engine.contract.errors import OptionError
from engine.contract.options import GuidanceSteps
from engine.families.wan import options
from engine.tasks.experts import experts_of

TRAIN = "train wan --dit low --dataset_config c"
GENERATE = "generate wan --dit low --vae v --t5 t --save_path out --prompt cat"


def job(line: str):
    return cli.parse(shlex.split(line))


def test_one_expert_is_the_ordinary_case():
    for line in (TRAIN, GENERATE, f"{GENERATE} --task t2v-A14B"):
        (expert,) = experts_of(job(line))
        assert (expert.dit, expert.flag, expert.starts_at) == ("low", "--dit", 0.0)


@pytest.mark.parametrize(
    ("task", "boundary", "scales"), [("t2v-A14B", 0.875, (3.0, 4.0)), ("i2v-A14B", 0.9, (3.5, 3.5))]
)
def test_boundary_and_guidance_are_the_tasks(task, boundary, scales):
    made = job(f"{GENERATE} --task {task} --dit_high_noise high")
    low, high = experts_of(made)
    assert (high.dit, high.flag, high.starts_at) == ("high", "--dit_high_noise", boundary)
    assert (options.generation_defaults(made, _Line()).guidance_scale, high.guidance) == scales
    assert "timestep_boundary = 0." in made.to_toml()
    trained = experts_of(job(f"{TRAIN} --task {task} --dit_high_noise high --timestep_boundary 700"))
    assert [expert.starts_at for expert in trained] == [0.0, 0.7]
    assert [expert.name for expert in trained] == ["low_noise", "high_noise"]


class _Line:
    """A prompt line that says nothing."""

    def __getattr__(self, name):
        return None


def test_loras_of_each():
    low, high = experts_of(
        job(f"{GENERATE} --task t2v-A14B --dit_high_noise high --lora_weight a --lora_weight_high_noise b c "
            "--lora_multiplier_high_noise 0.5 --lazy_loading")
    )  # fmt: skip
    assert (low.loras, low.multipliers) == (("a",), (1.0,))
    assert (high.loras, high.multipliers, high.waits) == (("b", "c"), (0.5,), "file")
    low, high = experts_of(
        job(f"{TRAIN} --task t2v-A14B --dit_high_noise high --network_weights n --network_weights_high_noise m "
            "--base_weights x --base_weights_high_noise y --base_weights_multiplier_high_noise 0.3 "
            "--offload_inactive_dit")
    )  # fmt: skip
    assert (low.network_weights, low.loras) == ("n", ("x",))
    assert (high.network_weights, high.loras, high.multipliers, high.waits) == ("m", ("y",), (0.3,), "memory")


def test_the_official_folder_has_both():
    made = job("generate wan --task i2v-A14B --ckpt_dir folder --image_path i --save_path out --prompt cat")
    assert [expert.dit for expert in experts_of(made)] == ["folder/low_noise_model", "folder/high_noise_model"]
    assert options.files(made)["clip"] is None and options.files(made)["vae"] == "folder/Wan2.1_VAE.pth"
    single = job("generate wan --task i2v-14B --ckpt_dir folder --save_path out --prompt cat")
    assert [expert.dit for expert in experts_of(single)] == ["folder"] and options.files(single)["clip"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (f"{TRAIN} --dit_high_noise h", "does not say where --dit_high_noise takes over"),
        (f"{TRAIN} --task t2v-A14B --dit_high_noise h --timestep_boundary 1000", "no noise level"),
        (f"{TRAIN} --task t2v-A14B --dit_high_noise h --timestep_boundary 0", "no noise level"),
        (f"{TRAIN} --task t2v-A14B --network_weights_high_noise n", "there is none"),
        (f"{TRAIN} --task t2v-A14B --dit_high_noise h --base_weights_multiplier_high_noise 1", "names 0 files"),
        (f"{GENERATE} --task t2v-A14B --lora_weight_high_noise n", "there is none"),
        (f"{GENERATE} --task t2v-A14B --dit_high_noise h --lora_multiplier_high_noise 1", "names 0 files"),
        (f"{GENERATE} --task t2v-A14B --dit_high_noise h --lazy_loading --offload_inactive_dit", "two places"),
        (f"{GENERATE} --task t2v-A14B --dit_high_noise h --lora_weight a --save_merged_model m", "one DiT at a time"),
        (f"{GENERATE} --slg_layers 4", "--slg_layers does nothing without --slg_mode"),
        (f"{GENERATE} --slg_mode uncond", "--slg_mode does nothing without --slg_layers"),
        (f"{GENERATE} --slg_mode uncond --slg_layers 4,x", "is not a list of numbers"),
        (f"{GENERATE} --slg_mode uncond --slg_layers=-1", "is not a list of numbers"),
        (f"{GENERATE} --slg_mode uncond --slg_layers 4 --slg_start 0.5", "leave no step between them"),
        (f"{GENERATE} --cfg_skip_mode late", "--cfg_skip_mode does nothing without --cfg_apply_ratio"),
        (f"{GENERATE} --cfg_apply_ratio 0.5", "--cfg_apply_ratio does nothing without --cfg_skip_mode"),
    ],
)
def test_what_does_not_go_together_is_one_error(line, words):
    with pytest.raises(OptionError, match=words):
        job(line)


def test_one_expert_of_two_is_allowed_and_told():
    """People ask again and again why such a LoRA has no effect."""
    (note,) = options.notes(job(f"{TRAIN} --task t2v-A14B"))
    assert "--dit_high_noise" in note and "--max_timestep 875" in note and "--min_timestep 875" in note
    (note,) = options.notes(job(f"{GENERATE} --task i2v-A14B"))
    assert "--dit_high_noise" in note
    for line in (
        f"{TRAIN} --task t2v-A14B --min_timestep 875", f"{TRAIN} --task t2v-A14B --dit_high_noise h", TRAIN,
        f"{GENERATE} --task t2v-A14B --dit_high_noise h",
    ):  # fmt: skip
        assert options.notes(job(line)) == ()


def test_layers_are_counted_from_0_and_checked_against_the_model():
    given = GuidanceSteps(slg_mode="original", slg_layers="4, 5,6")
    assert given.layers == (4, 5, 6)
    given.check_layers(7)
    with pytest.raises(OptionError, match="names block 6, but this model has 6"):
        given.check_layers(6)
