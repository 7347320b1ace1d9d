"""`plan`: the options that make a job fit, from files that are headers only; what its command says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from engine.contract import cli
from engine.contract.errors import OptionError, WeightsError
from engine.contract.events import Control, Plan
from engine.memory.estimate import GIB
from engine.tasks import fitting, plan
from engine.tasks.planning import Survey, cached_sizes
from tests.memory.measured import header_only
from tests.tasks.planned_jobs import (
    MODELS,
    dataset,
    generation_line,
    planned,
    training_line,
    worst,
)

pytestmark = pytest.mark.usefixtures("machine")
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("vram", [12, 24, 48])
def test_a_plan_keeps_within_the_card(headers, tmp_path, model, vram):
    size = (640, 640, 37) if model == "framepack" else (480, 832, 33)
    for line in (training_line, generation_line):
        found = planned([*line(headers, tmp_path, model, size), "--vram", f"{vram}GB"])
        assert found.fits and found.needed <= vram * GIB
        again = cli.parse([*line(headers, tmp_path, model, size), *found.flags.split()])
        assert again is not None and fitting.plan(again).needed == found.needed, "the flags give the planned job"


def test_a_large_card_needs_nothing(headers, tmp_path):
    assert not planned([*training_line(headers, tmp_path, "wan-1.3b", (480, 832, 33)), "--vram", "24"]).options


def test_a_base_that_does_not_fit_is_shared_out(headers, tmp_path, monkeypatch):
    line = training_line(headers, tmp_path, "wan-14b", (480, 832, 33), "--gradient_checkpointing")
    assert "blocks_to_swap" in planned([*line, "--vram", "24GB"]).options
    shared = planned([*line, "--num_processes", "4", "--shard_base", "--vram", "24GB"])
    assert shared.fits and not {"blocks_to_swap", "fp8_scaled"} & shared.options.keys()
    by_the_command = planned(["plan", *line, "--num_processes", "4", "--shard_base", "--vram", "24GB"])
    assert by_the_command.options == shared.options
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert planned([*line, "--shard_base", "--vram", "24GB"]).needed == shared.needed, "under an outer launcher"


def test_what_does_not_fit_is_said_with_what_would(headers, tmp_path):
    found = planned([*training_line(headers, tmp_path, "wan-14b", (720, 1280, 81)), "--vram", "12GB"])
    assert not found.fits and found.longest is not None and 1 < found.longest < 81
    assert "does not fit" in plan.verdict(found) and f"{found.longest} frames" in plan.verdict(found)
    line = training_line(headers, tmp_path, "wan-14b", (720, 1280, found.longest), *found.flags.split())
    assert planned([*line, "--vram", "12GB"]).fits


def test_vae_and_text_encoder_get_lighter_where_they_are_too_large(headers, tmp_path):
    header_only(tmp_path / "large.safetensors", {"layer.weight": (80_000, 80_000)})
    line = generation_line(headers, tmp_path, "framepack", (640, 640, 145))
    line[line.index("--text_encoder1") + 1] = str(tmp_path / "large.safetensors")
    found = planned([*line, "--vram", "12GB"])
    assert found.fits and {"vae_tiling", "fp8_llm", "blocks_to_swap"} <= found.options.keys()


def test_guidance_in_one_call_takes_two_samples(headers, tmp_path):
    line = generation_line(headers, tmp_path, "hunyuan-video-13b", (544, 960, 33))
    once, twice = worst(line), worst([*line, "--guidance_scale", "6", "--embedded_cfg_scale", "1"])
    split = worst([*line, "--guidance_scale", "6", "--split_uncond"])
    assert twice.passing == pytest.approx(2 * once.passing, rel=0.01) and split.passing == once.passing


def test_a_saved_latent_is_planned_for_in_its_own_size(headers, tmp_path):
    vae, latent = headers / "wan21_vae.safetensors", tmp_path / "saved_latent.safetensors"
    line = ["generate", "wan", "--vae", str(vae), "--latent_path", str(latent), "--save_path", str(tmp_path)]
    sizes = []
    for size in ((16, 9, 60, 104), (1, 16, 9, 120, 104)):
        header_only(latent, {"latent": size})
        sizes.append(worst(line).device["frames in the VAE"])
    assert sizes[1] == 2 * sizes[0] == pytest.approx(2 * 3.37 * GIB, rel=0.01)
    latent.write_bytes(b"no safetensors file")
    assert worst(line).device["VAE weights"], "the job itself says what is wrong with the file"


def test_caching_is_planned_too(headers, tmp_path):
    vae = headers / "wan21_vae.safetensors"
    line = ["cache-latents", "wan", "--vae", str(vae), "--dataset_config", str(dataset(tmp_path, (480, 832, 81)))]
    once, twice = worst(line), worst([*line, "--batch_size", "2"])
    assert once.device["VAE weights"] == pytest.approx(0.236 * GIB, rel=0.01)
    assert twice.device["frames in the VAE"] == 2 * once.device["frames in the VAE"]
    assert planned([*line, "--batch_size", "2", "--vram", "5GB"]).options == {"vae_cache_cpu": True}


def test_caches_tell_the_sizes_before_the_settings_do(headers, tmp_path):
    line = training_line(headers, tmp_path, "wan-1.3b", (480, 832, 81))
    by_settings = worst(line)
    for place in ("00000-033", "00033-033"):
        name = f"a_{place}_0832x0480_wan.safetensors"
        header_only(tmp_path / "cache" / name, {"latents_9x60x104_bfloat16": (16, 9, 60, 104)})
    header_only(tmp_path / "cache" / "a_wan_te.safetensors", {"varlen_t5_bfloat16": (4, 8)})
    job = cli.parse(line)
    assert [clip.latents for clip in Survey(job).clips] == [(9, 60, 104)]
    assert worst(line).device_bytes < by_settings.device_bytes


def test_of_clips_of_one_name_and_size_one_is_opened(tmp_path, monkeypatch):
    from engine.data.config import load_config
    from engine.tasks import planning

    opened = []
    monkeypatch.setattr(planning, "read_header", lambda path: opened.append(path) or type("H", (), {"tensors": {}}))
    path = dataset(tmp_path, (480, 832, 81))
    for number in range(20):
        (tmp_path / "cache" / f"a{number}_00000-081_0832x0480_wan.safetensors").touch()
    assert not list(cached_sizes(load_config(path).datasets[0], "wan")) and len(opened) == 1


def test_samples_while_training_count(headers, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat --w 1280 --h 720 --f 81\n")
    line = training_line(headers, tmp_path, "wan-1.3b", (256, 256, 5))
    more = [
        "--vae", f"{headers}/wan21_vae.safetensors", "--t5", f"{headers}/encoder.safetensors",
        "--sample_prompts", str(prompts),
    ]  # fmt: skip
    assert worst([*line, *more]).name == "sample: decoding"
    assert worst([*line, *more]).device_bytes > worst(line).device_bytes


def test_attention_in_8_bits_is_planned_for_in_a_training_and_in_its_samples(headers, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat --w 832 --h 480 --f 81\n")
    samples = [
        "--vae", f"{headers}/wan21_vae.safetensors", "--t5", f"{headers}/encoder.safetensors",
        "--sample_prompts", str(prompts),
    ]  # fmt: skip
    for size, tokens in (((480, 832, 81), 32_760), ((240, 256, 5), 480)):
        line = training_line(headers, tmp_path, "wan-14b", size, "--network_dim", "1", "--ffn_chunks", "8", *samples)
        (_, exact, exactly, _), (_, codes, coded, _) = (
            Survey(job).stages(job) for job in (cli.parse(line), cli.parse([*line, "--attn_8bit"]))
        )
        assert exact.spare and codes.spare == (0 if tokens > 2048 else exact.spare)
        assert (codes.device_bytes < exact.device_bytes) == (tokens > 2048)
        assert coded.device_bytes - exactly.device_bytes == 1.5 * 32_760 * 5120 * 2


@pytest.mark.parametrize(("more", "kind"), [
    (("--network_module", "networks.loha"), "larger"),
    (("--network_module", "networks.lokr"), "smaller"),
    (("--network_module", "networks.lokr", "--network_args", "factor=2", "full_matrix=True"), "larger"),
    (("--network_dim", "4"), "smaller"),
    (("--optimizer_type", "AdamW8bit"), "smaller"),
    (("--optimizer_type", "Prodigy"), "larger"),
])  # fmt: skip
def test_kinds_of_adapters_and_optimizers(headers, tmp_path, more, kind):
    line = training_line(headers, tmp_path, "wan-14b", (480, 832, 33))
    before, after = worst(line).device, worst([*line, *more]).device
    change = sum(after[name] - before[name] for name in ("LoRA", "optimizer state"))
    assert change and (change > 0) == (kind == "larger")


def test_an_average_of_the_lora_takes_four_bytes_a_parameter_unless_it_waits_in_main_memory(headers, tmp_path):
    line = training_line(headers, tmp_path, "wan-14b", (480, 832, 33), "--full_bf16", "--mixed_precision", "bf16")
    there = worst([*line, "--use_ema"]).device
    assert there["average of the LoRA"] == 2 * there["LoRA"] > 0
    assert worst([*line, "--use_ema", "--ema_device", "cpu"]).device == worst(line).device


def test_two_experts(headers, tmp_path):
    line = training_line(headers, tmp_path, "wan-14b", (480, 832, 33))
    line[line.index("t2v-14B")] = "t2v-A14B"
    line += ["--dit_high_noise", f"{headers}/wan21_t2v_14b.safetensors"]
    both, one = worst(line), worst([*line, "--offload_inactive_dit"])
    assert both.device["idle expert"] == pytest.approx(26.6 * GIB, rel=0.01)
    assert "idle expert" not in one.device and one.main["idle expert"] == both.device["idle expert"]


# ---------------------------------------------------------------------------------------------------------- the command


def test_the_tables_and_the_verdict(headers, tmp_path, capsys):
    job = cli.parse(["plan", *training_line(headers, tmp_path, "wan-14b", (480, 832, 33)), "--vram", "12GB"])
    assert plan.run(job, lambda event: None, Control()) == ""
    printed = capsys.readouterr().out
    for words in ("832x480, 33 frames", "planned", "DiT weights", "block inputs", "main memory", "it fits with --"):
        assert words in printed


def test_the_event_for_the_nodes(headers, tmp_path):
    line = training_line(headers, tmp_path, "wan-14b", (480, 832, 33), "--vram", "12GB", "--events")
    job = cli.parse(["plan", *line])
    said = []
    assert "it fits with" in plan.run(job, said.append, Control())
    (event,) = said
    assert isinstance(event, Plan) and event.fits and event.options["blocks_to_swap"]
    assert event.needed_mib <= event.limit_mib == 12 * 1024 < event.asked_mib
    assert event.stages[0]["device_mib"]["LoRA"] > 0


@pytest.mark.parametrize(
    ("model", "size", "vram", "verdict"),
    [("wan-14b", (480, 832, 33), "12GB", "it fits with"), ("hunyuan-video-13b", (720, 1280, 129), "8GB", "not fit")],
)
def test_a_second_without_torch(headers, tmp_path, model, size, vram, verdict):
    line = ["plan", *training_line(headers, tmp_path, model, size), "--vram", vram]
    code = (
        "import resource, sys; from engine.__main__ import main; status = main(sys.argv[1:]);"
        "used = resource.getrusage(resource.RUSAGE_SELF); print('torch' in sys.modules, used.ru_utime + used.ru_stime);"
        "sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code, *line], cwd=ROOT, capture_output=True, text=True, check=True)
    torch, seconds = done.stdout.splitlines()[-1].split()
    assert verdict in done.stdout and torch == "False" and float(seconds) < 2, done.stdout


def test_nothing_is_written(headers, tmp_path):
    line = training_line(headers, tmp_path, "wan-1.3b", (480, 832, 33), "--job_dir", str(tmp_path / "job"))
    before = sorted(tmp_path.rglob("*"))
    subprocess.run([sys.executable, "-m", "engine", "plan", *line], cwd=ROOT, capture_output=True, check=True)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("words", [["plan"], ["plan", "doctor"], ["plan", "--log_level", "info"]])
def test_it_needs_a_command_to_plan(words):
    job = cli.parse(words)
    with pytest.raises(OptionError, match="needs the command that is to be planned"):
        plan.run(job, lambda event: None, Control())


def test_wrong_files_are_refused_as_the_job_would(headers, tmp_path):
    with pytest.raises(WeightsError, match="looks like a Wan VAE"):
        worst(["train", "wan", "--dit", f"{headers}/wan21_vae.safetensors", "--dataset_config",
               str(dataset(tmp_path, (64, 64, 1)))])  # fmt: skip
    with pytest.raises(WeightsError, match="no such file"):
        worst(training_line(tmp_path, tmp_path, "wan-1.3b", (64, 64, 1)))


@pytest.mark.parametrize("vram", ["much", "0GB", "-1", "12TB"])
def test_a_size_that_is_none(vram):
    with pytest.raises(OptionError, match="--vram"):
        cli.parse(["generate", "wan", "--dit", "d", "--vae", "v", "--t5", "t", "--prompt", "x", "--save_path", "s",
                   f"--vram={vram}"])  # fmt: skip
