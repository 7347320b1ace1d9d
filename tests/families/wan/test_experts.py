"""Wan 2.2's two experts: who works when, with which guidance and LoRA, and that where they wait changes no number."""

from __future__ import annotations

import shlex

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from torch.nn.functional import pad

from engine.contract import cli
from engine.contract.errors import OptionError, WeightsError
from engine.contract.events import Control, Warning_
from engine.families.wan import model, sample, tiny
from engine.lora.files import write_lora
from engine.lora.network import create
from engine.sampling.prompts import PromptLine
from engine.sampling.schedules import linear_schedule
from engine.tasks.requests import letters, make_request, parse_line
from engine.tasks.studio import Studio

SIZE = (1, 16, 2, 4, 6)
PROMPTS = {"a": 7, "b": 3}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """diffusers' pipeline of two random transformers, saved: `transformer` is the one for high noise."""
    torch.manual_seed(0)
    made = []
    for _ in range(2):
        one = WanTransformer3DModel(
            num_attention_heads=2, attention_head_dim=32, in_channels=16, out_channels=16, text_dim=24, freq_dim=32,
            ffn_dim=96, num_layers=3, cross_attn_norm=True, qk_norm="rms_norm_across_heads", rope_max_seq_len=32,
        ).eval()  # fmt: skip
        with torch.no_grad():
            for parameter in one.parameters():
                parameter.add_(torch.randn(parameter.shape) / 16)
        made.append(one)
    folder = tmp_path_factory.mktemp("pipeline")
    (folder / "model_index.json").write_text("{}")
    for name, one in zip(("transformer", "transformer_2"), made, strict=True):
        one.save_pretrained(folder / name)
        header_with_head_size(folder / name / "diffusion_pytorch_model.safetensors", 32)
    return folder, *made


def header_with_head_size(path, head_dim: int) -> None:
    from safetensors.torch import load_file, save_file

    save_file(load_file(path), path, metadata={"format": "pt", "head_dim": str(head_dim)})


class LinearEuler(FlowMatchEulerDiscreteScheduler):
    """diffusers' Euler on our schedule, so that only the denoising loop is compared."""

    def set_timesteps(self, num_inference_steps=None, device=None, **_):
        super().set_timesteps(sigmas=linear_schedule(num_inference_steps, 12.0).sigmas[:-1].tolist(), device=device)


def texts() -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(4)
    return {text: {"varlen_t5": torch.randn(count, 24, generator=generator)} for text, count in PROMPTS.items()}


def job_of(folder, words: str = ""):
    line = (
        f"generate wan --task t2v-A14B --dit '{folder}' --dit_high_noise '{folder}' --vae v --t5 t --save_path out "
        "--prompt a --negative_prompt b --infer_steps 6 --sample_solver euler --seed 3 --cpu_noise --device cpu "
        f"{words}"
    )
    return cli.parse(shlex.split(line))


def made_by(folder, words: str = "", *, line: PromptLine | None = None) -> torch.Tensor:
    """The latents that our generation makes from embedded prompts."""
    job = job_of(folder, words)
    studio = Studio(job, lambda event: None, Control())
    studio.experts.check()
    request = make_request(job, line or PromptLine(prompt="a", where="--prompt"))
    return studio.latents(request, texts(), {"latent_size": SIZE[2:]}, label="test")


def noise() -> torch.Tensor:
    return sample.draw_noise(SIZE, seed=3, device=torch.device("cpu"), on_cpu=True)


def test_denoising_equals_diffusers_two_stage_pipeline(pipeline):
    """Boundary 0.875 and guidance 4, then 3, are what t2v-A14B has where nothing is said."""
    folder, high, low = pipeline
    theirs = WanPipeline(
        tokenizer=None, text_encoder=None, vae=None, scheduler=LinearEuler(), transformer=high, transformer_2=low,
        boundary_ratio=0.875,
    )  # fmt: skip
    theirs.set_progress_bar_config(disable=True)
    embeds = {name: pad(t["varlen_t5"], (0, 0, 0, 512 - len(t["varlen_t5"])))[None] for name, t in texts().items()}
    wanted = theirs(
        prompt_embeds=embeds["a"], negative_prompt_embeds=embeds["b"], height=32, width=48, num_frames=5,
        num_inference_steps=6, guidance_scale=4.0, guidance_scale_2=3.0, latents=noise(), output_type="latent",
    ).frames  # fmt: skip
    found = made_by(folder)
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()
    assert (made_by(folder, "--timestep_boundary 0.5") - wanted).abs().max() > 1e-3


@pytest.mark.parametrize(
    "words",
    ["--offload_inactive_dit", "--lazy_loading", "--blocks_to_swap 2", "--blocks_to_swap 3 --lazy_loading",
     "--blocks_to_swap 1 --offload_inactive_dit", "--blocks_to_swap 2 --block_swap_from_disk",
     "--blocks_to_swap 2 --block_swap_from_disk --lazy_loading",
     "--blocks_to_swap 1 --block_swap_from_disk --offload_inactive_dit"],
)  # fmt: skip
def test_where_the_other_expert_waits_changes_nothing(pipeline, words):
    folder, *_ = pipeline
    assert torch.equal(made_by(folder, words), made_by(folder))


def test_both_waiting_places_work_with_fp8(pipeline):
    folder, *_ = pipeline
    wanted = made_by(folder, "--fp8_scaled")
    assert torch.equal(made_by(folder, "--fp8_scaled --offload_inactive_dit"), wanted)
    assert torch.equal(made_by(folder, "--fp8_scaled --blocks_to_swap 2 --block_swap_from_disk --lazy_loading"), wanted)
    assert (wanted - made_by(folder)).abs().max() > 1e-4


def test_a_turn_comes_back_for_the_next_video(pipeline):
    folder, *_ = pipeline
    for words in ("", "--lazy_loading"):
        job = job_of(folder, words)
        studio = Studio(job, lambda event: None, Control())
        request = make_request(job, PromptLine(prompt="a", where="--prompt"))
        first, second = (
            studio.latents(request, texts(), {"latent_size": SIZE[2:]}, label="test").clone() for _ in range(2)
        )
        assert torch.equal(first, second)


def stepped(folder, *, scales=(4.0, 3.0), velocity=None) -> torch.Tensor:
    """The same walk by hand: Euler over the schedule, with the experts and `velocity(dit, x, t, scale, index)`."""
    dits = [model.load(folder / name, task=None, device="cpu") for name in ("transformer", "transformer_2")]
    schedule, x = linear_schedule(6, 12.0), noise()
    for index, timestep in enumerate(schedule.timesteps.tolist()):
        number = 0 if timestep >= 875 else 1
        with torch.no_grad():
            v = (velocity or guided)(dits[number], x, timestep, scales[number], index)
        x = x + (schedule.sigmas[index + 1] - schedule.sigmas[index]) * v
    return x


def asked(dit, x, timestep, text, **more):
    cond = {"text": [texts()[text]["varlen_t5"]], **more}
    return model.velocity(dit, x, torch.tensor([timestep]), cond)


def guided(dit, x, timestep, scale, index):
    cond, uncond = (asked(dit, x, timestep, text) for text in "ab")
    return uncond + scale * (cond - uncond)


def near(found, wanted):
    return (found - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_each_expert_has_its_guidance_and_a_line_changes_the_low_ones(pipeline):
    """As in musubi-tuner; the other one is --guidance_scale_high_noise."""
    folder, *_ = pipeline
    assert near(made_by(folder, "--guidance_scale 2 --guidance_scale_high_noise 6"), stepped(folder, scales=(6, 2)))
    line = parse_line("a --l 1.5 --s 6", letters=letters(job_of(folder)))
    assert near(made_by(folder, line=line), stepped(folder, scales=(4.0, 1.5)))


def test_no_guidance_needs_no_negative_prompt(pipeline):
    folder, *_ = pipeline
    job = job_of(folder, "--guidance_scale 1 --guidance_scale_high_noise 1")
    request = make_request(job, PromptLine(prompt="a", where="--prompt"))
    assert not request.guided and sample.texts(request) == ["a"]
    high_only = job_of(folder, "--guidance_scale 1")
    assert make_request(high_only, PromptLine(prompt="a", where="--prompt")).guided


def test_guidance_is_left_out_in_the_steps_of_the_skip_mode(pipeline):
    folder, *_ = pipeline

    def late(dit, x, timestep, scale, index):
        return guided(dit, x, timestep, scale, index) if index < 3 else asked(dit, x, timestep, "a")

    found = made_by(folder, "--cfg_skip_mode late --cfg_apply_ratio 0.5")
    assert near(found, stepped(folder, velocity=late))


def test_skip_layer_guidance_by_the_documented_formula(pipeline):
    folder, *_ = pipeline

    def original(dit, x, timestep, scale, index):
        guess = guided(dit, x, timestep, scale, index)
        if index not in range(1, 3):
            return guess
        return guess + 2.5 * (asked(dit, x, timestep, "a") - asked(dit, x, timestep, "b", skip_blocks=(0, 2)))

    def uncond(dit, x, timestep, scale, index):
        if index not in range(1, 3):
            return guided(dit, x, timestep, scale, index)
        cond, skipped = asked(dit, x, timestep, "a"), asked(dit, x, timestep, "b", skip_blocks=(0, 2))
        return skipped + scale * (cond - skipped)

    words = "--slg_layers 0,2 --slg_scale 2.5 --slg_start 0.2 --slg_end 0.5 --slg_mode"
    assert near(made_by(folder, f"{words} original"), stepped(folder, velocity=original))
    assert near(made_by(folder, f"{words} uncond"), stepped(folder, velocity=uncond))
    assert not near(made_by(folder), stepped(folder, velocity=original))


def test_a_skipped_block_that_is_not_there_is_an_error(pipeline):
    """The reference skips nothing then, in silence."""
    folder, *_ = pipeline
    job = job_of(folder, "--slg_layers 1,3 --slg_mode uncond")
    with pytest.raises(OptionError, match="names block 3, but this model has 3"):
        Studio(job, lambda event: None, Control()).check_files()


def test_skipping_a_block_is_leaving_it_out(pipeline):
    folder, *_ = pipeline
    dit = model.load(folder / "transformer", task=None, device="cpu")
    found = asked(dit, noise(), 500.0, "a", skip_blocks=(1,))
    del dit.blocks[1]
    assert torch.equal(found, asked(dit, noise(), 500.0, "a"))


def test_each_expert_has_its_own_loras(pipeline, tmp_path):
    folder, *_ = pipeline
    dit = model.load(folder / "transformer", task=None, device="cpu")
    paths = []
    for seed in range(2):
        network = create(dit, block_classes=["WanAttentionBlock"], exclude="", dim=2, seed=seed)
        torch.manual_seed(seed)
        for adapter in network.adapters.values():
            torch.nn.init.normal_(adapter.lora_up.weight)
        network.detach()
        paths.append(tmp_path / f"{seed}.safetensors")
        write_lora(paths[-1], network.state(), metadata={})
    low, high = paths
    plain = made_by(folder)
    only_high = made_by(folder, f"--lora_weight_high_noise {high} --lora_multiplier_high_noise 0.5")
    swapped = made_by(folder, f"--lora_weight {high} --lora_multiplier 0.5")
    both = made_by(folder, f"--lora_weight {low} --lora_weight_high_noise {high} --lora_multiplier_high_noise 0.5")
    waiting = made_by(
        folder, f"--lora_weight {low} --lora_weight_high_noise {high} --lora_multiplier_high_noise 0.5 --lazy_loading"
    )
    for one, other in ((plain, only_high), (only_high, swapped), (only_high, both), (swapped, both)):
        assert (one - other).abs().max() > 1e-4
    assert torch.equal(both, waiting)


def test_one_embedded_time_equals_wan22s_for_each_token(pipeline):
    """--force_v2_1_time_embedding changes nothing here: equal times embedded once are what 2.2 computes."""
    folder, high, _ = pipeline
    dit, x = model.load(folder / "transformer", task=None, device="cpu"), noise()
    tokens = SIZE[2] * SIZE[3] * SIZE[4] // 4
    text_BLD = pad(texts()["a"]["varlen_t5"], (0, 0, 0, 512 - PROMPTS["a"]))[None]
    with torch.no_grad():
        theirs = high(x, torch.full((1, tokens), 612.0), text_BLD, return_dict=False)[0]
        assert near(asked(dit, x, 612.0, "a"), theirs)


def test_experts_of_different_shapes_and_twice_the_same_file(pipeline, tmp_path):
    folder, *_ = pipeline
    other = tmp_path / "other.safetensors"
    tiny.write_dit(other, 1, "t2v-A14B")
    job = cli.parse(shlex.split(
        f"generate wan --task t2v-A14B --dit {folder}/transformer_2 --dit_high_noise {other} --vae v --t5 t "
        "--save_path out --prompt a --device cpu"
    ))  # fmt: skip
    with pytest.raises(WeightsError, match="--dit and --dit_high_noise are models of different shapes"):
        Studio(job, lambda event: None, Control()).experts.check()
    said = []
    twice = cli.parse(shlex.split(
        f"generate wan --task t2v-A14B --dit {other} --dit_high_noise {other} --vae v --t5 t --save_path out --prompt a"
    ))  # fmt: skip
    Studio(twice, said.append, Control()).experts.check()
    assert [type(event) for event in said] == [Warning_] and "given twice" in said[0].message
