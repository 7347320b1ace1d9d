"""`plan`: what whole jobs are predicted to take against what an H100 took, from files that are headers only.

The checkpoints have the names and shapes of the public files (tests/layouts) and no weights: nothing may read any.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from engine.contract import cli
from engine.contract.errors import OptionError, WeightsError
from engine.contract.events import Control, Plan
from engine.contract.options import Memory
from engine.memory.estimate import GIB, largest
from engine.parts.scratch_place import scratch_free
from engine.tasks import fitting, plan, planned_weights
from engine.tasks.planning import Survey, cached_sizes
from tests.layouts.checks import HERE, read_layout
from tests.memory.measured import BENCHMARKS, ROOM, header_only

ROOT = Path(__file__).parents[2]
RECOMPUTE = ("--gradient_checkpointing_attention", "recompute")
SWAP = ("--fp8_scaled", "--use_pinned_memory_for_block_swap", "--blocks_to_swap", "20")
MODELS = {
    "wan-1.3b": ("wan", "wan21_t2v_1_3b", "wan21_vae", ("--task", "t2v-1.3B")),
    "wan-14b": ("wan", "wan21_t2v_14b", "wan21_vae", ("--task", "t2v-14B")),
    "hunyuan-video-13b": ("hunyuan-video", "hunyuanvideo_t2v_13b", "hunyuanvideo_vae_tencent", ()),
    "framepack": ("framepack", "framepack_i2v_hy", "hunyuanvideo_vae_tencent", ()),
}
# benchmarks/h100_wan_train.json; in fp8 without the Triton kernel, which came later
TRAININGS = [
    ("wan-1.3b", (480, 832, 33), (), 6.2),
    ("wan-1.3b", (480, 832, 33), ("--fp8_scaled",), 5.9),
    ("wan-1.3b", (480, 832, 33), SWAP, 5.1),
    ("wan-1.3b", (480, 832, 81), (), 10.1),
    ("wan-14b", (480, 832, 33), (), 38.1),
    ("wan-14b", (480, 832, 33), ("--fp8_scaled",), 26.6),
    ("wan-14b", (480, 832, 33), SWAP, 20.8),
]
# what the modes of benchmarks/h100_full_size.json were, and how many blocks "swap" streamed
RECORDED = {
    "bf16": (), "fp8_scaled": ("--fp8_scaled",), "compile": ("--compile",),
    "fp8_compile": ("--fp8_scaled", "--compile"),
    "swap": ("--fp8_scaled", "--use_pinned_memory_for_block_swap", "--blocks_to_swap"),
    "magcache": ("--magcache_mag_ratios", "0"), "plain": ("--gradient_checkpointing_attention", "recompute"),
    "free": ("--fp8_scaled", "--compile"), "exact": ("--compile",), "fast": ("--fp8_scaled", "--compile"),
}  # fmt: skip
STREAMED = {"wan-1.3b": "20", "wan-14b": "20", "hunyuan-video-13b": "30", "framepack": "30"}
OVERTAKEN = ("generate-wan-14b-480x832x33/compile",)  # before Wan's blocks were cut at their attention
ROWS = json.loads((BENCHMARKS / "h100_full_size.json").read_text())
FULL_SIZE = [
    row for row in ROWS
    if row["case"].split("-")[0] in ("train", "generate", "denoise") and row["mode"] in RECORDED
    and f"{row['case']}/{row['mode']}" not in OVERTAKEN
]  # fmt: skip


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("headers")
    for _, dit, vae, _ in MODELS.values():
        for layout in (dit, vae):
            header_only(folder / f"{layout}.safetensors", read_layout(HERE / f"{layout}.json.gz"))
    header_only(folder / "encoder.safetensors", {"shared.weight": (256, 64), "layer.weight": (4096, 4096)})
    return folder


def dataset(folder, size, **more):
    height, width, frames = size
    keys = {"resolution": [width, height], "target_frames": [frames], "batch_size": 1, **more}
    lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
    for name in ("clips", "cache"):
        (folder / name).mkdir(exist_ok=True)
    path = folder / "dataset.toml"
    path.write_text(
        f'[[datasets]]\nvideo_directory = "{folder}/clips"\ncache_directory = "{folder}/cache"\n'
        f'caption_extension = ".txt"\n{lines}'
    )
    return path


def training_line(models, folder, model, size, *more):
    family, dit, _, task = MODELS[model]
    return [
        "train", family, *task, "--dit", f"{models}/{dit}.safetensors", "--dataset_config", str(dataset(folder, size)),
        "--gradient_checkpointing", "--network_dim", "32", "--output_dir", f"{folder}/out", "--output_name", "x", *more,
    ]  # fmt: skip


def generation_line(models, folder, model, size, *more):
    family, dit, vae, task = MODELS[model]
    names = ["t5"] if family == "wan" else ["text_encoder1", "text_encoder2"]
    names += ["image_encoder"] if family == "framepack" else []
    encoders = [word for name in names for word in (f"--{name}", f"{models}/encoder.safetensors")]
    height, width, frames = map(str, size)
    return [
        "generate", family, *task, "--dit", f"{models}/{dit}.safetensors", "--vae", f"{models}/{vae}.safetensors",
        *encoders, "--prompt", "a cat", "--video_size", height, width, "--video_length", frames,
        "--save_path", f"{folder}/videos", *more,
    ]  # fmt: skip


def worst(words):
    job = cli.parse(words)
    return largest(Survey(job).stages(job))


@pytest.fixture
def plain_quantizing(monkeypatch):
    monkeypatch.setattr(planned_weights, "has_triton", lambda: False)


@pytest.fixture(autouse=True)
def _a_machine(monkeypatch):
    """No GPU but the one that --vram names, much main memory and disk, Triton."""
    monkeypatch.setattr(fitting, "find_card", lambda device: None)
    monkeypatch.setattr(fitting, "main_memory", lambda: 128 * GIB)
    monkeypatch.setattr(fitting, "scratch_free", lambda: 1000 * GIB)
    monkeypatch.setattr(planned_weights, "find_card", lambda device: None)
    monkeypatch.setattr(planned_weights, "has_triton", lambda: True)


# ---------------------------------------------------------------------------------------- predicted against measured


@pytest.mark.parametrize(("model", "size", "more", "measured"), TRAININGS)
@pytest.mark.usefixtures("plain_quantizing")
def test_trainings_take_what_was_measured(models, tmp_path, model, size, more, measured):
    stage = worst(training_line(models, tmp_path, model, size, *RECOMPUTE, *more))
    assert stage.name == "training step" and stage.device_bytes / GIB == pytest.approx(measured, rel=0.05)


BENCH_NAMES = {"hunyuan-13b": "hunyuan-video-13b"}
ONE_SECTION = {"640x640": "640x640x37"}  # FramePack's, in frames of the clip


@pytest.mark.parametrize("row", FULL_SIZE, ids=lambda row: f"{row['case']}/{row['mode']}")
def test_full_size_cases_take_what_was_measured(models, tmp_path, row):
    verb, _, rest = row["case"].partition("-")
    model, _, size = rest.rpartition("-")
    model, size = BENCH_NAMES.get(model, model), ONE_SECTION.get(size, size)
    more = [*RECORDED[row["mode"]], *([STREAMED[model]] if row["mode"] == "swap" else [])]
    line = training_line if verb == "train" else generation_line
    job = cli.parse(line(models, tmp_path, model, [int(number) for number in size.split("x")], *more))
    stage = largest(Survey(job).stages(job, room=ROOM[row["device"]]))
    assert stage.device_bytes / GIB == pytest.approx(row["peak_alloc_gib"], rel=0.05)


# ------------------------------------------------------------------------------------------------------- what is asked


def planned(words):
    job = cli.parse(words)
    return fitting.plan(job, survey=Survey(job))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("vram", [12, 24, 48])
def test_a_plan_keeps_within_the_card(models, tmp_path, model, vram):
    size = (640, 640, 37) if model == "framepack" else (480, 832, 33)
    for line in (training_line, generation_line):
        found = planned([*line(models, tmp_path, model, size), "--vram", f"{vram}GB"])
        assert found.fits and found.needed <= vram * GIB
        again = cli.parse([*line(models, tmp_path, model, size), *found.flags.split()])
        assert again is not None and fitting.plan(again).needed == found.needed, "the flags give the planned job"


def test_a_large_card_needs_nothing(models, tmp_path):
    assert not planned([*training_line(models, tmp_path, "wan-1.3b", (480, 832, 33)), "--vram", "24"]).options


def test_a_base_that_does_not_fit_is_shared_out(models, tmp_path, monkeypatch):
    line = training_line(models, tmp_path, "wan-14b", (480, 832, 33), "--gradient_checkpointing")
    assert "blocks_to_swap" in planned([*line, "--vram", "24GB"]).options
    shared = planned([*line, "--num_processes", "4", "--shard_base", "--vram", "24GB"])
    assert shared.fits and not {"blocks_to_swap", "fp8_scaled"} & shared.options.keys()
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert planned([*line, "--shard_base", "--vram", "24GB"]).needed == shared.needed, "under an outer launcher"


def test_what_does_not_fit_is_said_with_what_would(models, tmp_path):
    found = planned([*training_line(models, tmp_path, "wan-14b", (720, 1280, 81)), "--vram", "12GB"])
    assert not found.fits and found.longest is not None and 1 < found.longest < 81
    assert "does not fit" in plan.verdict(found) and f"{found.longest} frames" in plan.verdict(found)
    line = training_line(models, tmp_path, "wan-14b", (720, 1280, found.longest), *found.flags.split())
    assert planned([*line, "--vram", "12GB"]).fits


def test_too_little_main_memory_is_said(models, tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "main_memory", lambda: 3.5 * GIB)
    found = planned([*training_line(models, tmp_path, "wan-14b", (480, 832, 33)), "--vram", "12GB"])
    assert not found.fits and "GiB of main memory free it would fit" in plan.verdict(found)


@pytest.mark.parametrize("main", [48, 32, 16, 8])
def test_where_main_memory_is_short_streamed_blocks_stay_on_disk(models, tmp_path, monkeypatch, main):
    """A 14B in 16 bits takes 27 GiB there, in fp8 14."""
    line = [*training_line(models, tmp_path, "wan-14b", (480, 832, 33)), "--vram", "12GB"]
    much = planned(line).options
    monkeypatch.setattr(fitting, "main_memory", lambda: main * GIB)
    found = planned(line)
    assert found.fits and max(stage.main_bytes for stage in found.planned) <= main * GIB
    assert ("block_swap_from_disk" in found.options) == (main < 17) == ("read from disk" in plan.verdict(found))
    assert "block_swap_from_disk" not in much and (found.options == much) == (main == 48)
    videos = planned([*generation_line(models, tmp_path, "wan-14b", (480, 832, 33)), "--vram", "6GB"])
    assert videos.fits and ("block_swap_from_disk" in videos.options) == (main < 17)


def test_an_expert_that_waits_leaves_its_streamed_blocks_on_disk(models, tmp_path):
    line = training_line(
        models, tmp_path, "wan-14b", (480, 832, 33), "--blocks_to_swap", "20", "--block_swap_from_disk"
    )
    line[line.index("t2v-14B")] = "t2v-A14B"
    line += ["--dit_high_noise", f"{models}/wan21_t2v_14b.safetensors"]
    both, one = worst(line), worst([*line, "--offload_inactive_dit"])
    assert "idle expert" not in both.main and one.main["idle expert"] == both.device["idle expert"] < 14 * GIB
    assert both.main["buffers of streamed blocks"] == pytest.approx(2 * 0.65 * GIB, rel=0.02)


def test_vae_and_text_encoder_get_lighter_where_they_are_too_large(models, tmp_path):
    header_only(tmp_path / "large.safetensors", {"layer.weight": (80_000, 80_000)})
    line = generation_line(models, tmp_path, "framepack", (640, 640, 145))
    line[line.index("--text_encoder1") + 1] = str(tmp_path / "large.safetensors")
    found = planned([*line, "--vram", "12GB"])
    assert found.fits and {"vae_tiling", "fp8_llm", "blocks_to_swap"} <= found.options.keys()


def test_guidance_in_one_call_takes_two_samples(models, tmp_path):
    line = generation_line(models, tmp_path, "hunyuan-video-13b", (544, 960, 33))
    once, twice = worst(line), worst([*line, "--guidance_scale", "6", "--embedded_cfg_scale", "1"])
    split = worst([*line, "--guidance_scale", "6", "--split_uncond"])
    assert twice.passing == pytest.approx(2 * once.passing, rel=0.01) and split.passing == once.passing


def test_a_saved_latent_is_planned_for_in_its_own_size(models, tmp_path):
    vae, latent = models / "wan21_vae.safetensors", tmp_path / "saved_latent.safetensors"
    line = ["generate", "wan", "--vae", str(vae), "--latent_path", str(latent), "--save_path", str(tmp_path)]
    sizes = []
    for size in ((16, 9, 60, 104), (1, 16, 9, 120, 104)):
        header_only(latent, {"latent": size})
        sizes.append(worst(line).device["frames in the VAE"])
    assert sizes[1] == 2 * sizes[0] == pytest.approx(2 * 3.37 * GIB, rel=0.01)
    latent.write_bytes(b"no safetensors file")
    assert worst(line).device["VAE weights"], "the job itself says what is wrong with the file"


def test_caching_is_planned_too(models, tmp_path):
    vae = models / "wan21_vae.safetensors"
    line = ["cache-latents", "wan", "--vae", str(vae), "--dataset_config", str(dataset(tmp_path, (480, 832, 81)))]
    once, twice = worst(line), worst([*line, "--batch_size", "2"])
    assert once.device["VAE weights"] == pytest.approx(0.236 * GIB, rel=0.01)
    assert twice.device["frames in the VAE"] == 2 * once.device["frames in the VAE"]
    assert planned([*line, "--batch_size", "2", "--vram", "5GB"]).options == {"vae_cache_cpu": True}


def test_caches_tell_the_sizes_before_the_settings_do(models, tmp_path):
    line = training_line(models, tmp_path, "wan-1.3b", (480, 832, 81))
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


def test_samples_while_training_count(models, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat --w 1280 --h 720 --f 81\n")
    line = training_line(models, tmp_path, "wan-1.3b", (256, 256, 5))
    more = [
        "--vae", f"{models}/wan21_vae.safetensors", "--t5", f"{models}/encoder.safetensors",
        "--sample_prompts", str(prompts),
    ]  # fmt: skip
    assert worst([*line, *more]).name == "sample: decoding"
    assert worst([*line, *more]).device_bytes > worst(line).device_bytes


@pytest.mark.parametrize(("more", "kind"), [
    (("--network_module", "networks.loha"), "larger"),
    (("--network_module", "networks.lokr"), "smaller"),
    (("--network_module", "networks.lokr", "--network_args", "factor=2", "full_matrix=True"), "larger"),
    (("--network_dim", "4"), "smaller"),
    (("--optimizer_type", "AdamW8bit"), "smaller"),
    (("--optimizer_type", "Prodigy"), "larger"),
])  # fmt: skip
def test_kinds_of_adapters_and_optimizers(models, tmp_path, more, kind):
    line = training_line(models, tmp_path, "wan-14b", (480, 832, 33))
    before, after = worst(line).device, worst([*line, *more]).device
    change = sum(after[name] - before[name] for name in ("LoRA", "optimizer state"))
    assert change and (change > 0) == (kind == "larger")


def test_an_average_of_the_lora_takes_four_bytes_a_parameter_unless_it_waits_in_main_memory(models, tmp_path):
    line = training_line(models, tmp_path, "wan-14b", (480, 832, 33), "--full_bf16", "--mixed_precision", "bf16")
    there = worst([*line, "--use_ema"]).device
    assert there["average of the LoRA"] == 2 * there["LoRA"] > 0
    assert worst([*line, "--use_ema", "--ema_device", "cpu"]).device == worst(line).device


def test_two_experts(models, tmp_path):
    line = training_line(models, tmp_path, "wan-14b", (480, 832, 33))
    line[line.index("t2v-14B")] = "t2v-A14B"
    line += ["--dit_high_noise", f"{models}/wan21_t2v_14b.safetensors"]
    both, one = worst(line), worst([*line, "--offload_inactive_dit"])
    assert both.device["idle expert"] == pytest.approx(26.6 * GIB, rel=0.01)
    assert "idle expert" not in one.device and one.main["idle expert"] == both.device["idle expert"]


# ---------------------------------------------------------------------------------------------------------- the command


def test_the_tables_and_the_verdict(models, tmp_path, capsys):
    job = cli.parse(["plan", *training_line(models, tmp_path, "wan-14b", (480, 832, 33)), "--vram", "12GB"])
    assert plan.run(job, lambda event: None, Control()) == ""
    printed = capsys.readouterr().out
    for words in ("832x480, 33 frames", "planned", "DiT weights", "block inputs", "main memory", "it fits with --"):
        assert words in printed


def test_the_event_for_the_nodes(models, tmp_path):
    job = cli.parse(["plan", *training_line(models, tmp_path, "wan-14b", (480, 832, 33)), "--vram", "12GB", "--events"])
    said = []
    assert "it fits with" in plan.run(job, said.append, Control())
    (event,) = said
    assert isinstance(event, Plan) and event.fits and event.options["blocks_to_swap"]
    assert event.needed_mib <= event.limit_mib == 12 * 1024 < event.asked_mib
    assert event.stages[0]["device_mib"]["LoRA"] > 0


def test_a_second_without_torch(models, tmp_path):
    line = ["plan", *training_line(models, tmp_path, "wan-14b", (480, 832, 33)), "--vram", "12GB"]
    code = (
        "import resource, sys; from engine.__main__ import main; status = main(sys.argv[1:]);"
        "used = resource.getrusage(resource.RUSAGE_SELF); print('torch' in sys.modules, used.ru_utime + used.ru_stime);"
        "sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code, *line], cwd=ROOT, capture_output=True, text=True, check=True)
    torch, seconds = done.stdout.splitlines()[-1].split()
    assert torch == "False" and float(seconds) < 2, done.stdout


def test_nothing_is_written(models, tmp_path):
    line = training_line(models, tmp_path, "wan-1.3b", (480, 832, 33), "--job_dir", str(tmp_path / "job"))
    before = sorted(tmp_path.rglob("*"))
    subprocess.run([sys.executable, "-m", "engine", "plan", *line], cwd=ROOT, capture_output=True, check=True)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("words", [["plan"], ["plan", "doctor"], ["plan", "--log_level", "info"]])
def test_it_needs_a_command_to_plan(words):
    job = cli.parse(words)
    with pytest.raises(OptionError, match="needs the command that is to be planned"):
        plan.run(job, lambda event: None, Control())


def test_wrong_files_are_refused_as_the_job_would(models, tmp_path):
    with pytest.raises(WeightsError, match="looks like a Wan VAE"):
        worst(["train", "wan", "--dit", f"{models}/wan21_vae.safetensors", "--dataset_config",
               str(dataset(tmp_path, (64, 64, 1)))])  # fmt: skip
    with pytest.raises(WeightsError, match="no such file"):
        worst(training_line(tmp_path, tmp_path, "wan-1.3b", (64, 64, 1)))


@pytest.mark.parametrize("vram", ["much", "0GB", "-1", "12TB"])
def test_a_size_that_is_none(vram):
    with pytest.raises(OptionError, match="--vram"):
        cli.parse(["generate", "wan", "--dit", "d", "--vae", "v", "--t5", "t", "--prompt", "x", "--save_path", "s",
                   f"--vram={vram}"])  # fmt: skip


def test_from_disk_without_a_number_of_blocks(models, tmp_path):
    """The plan chooses how many, without main memory being short; none where all fits."""
    for line in (training_line, generation_line):
        words = [*line(models, tmp_path, "wan-14b", (480, 832, 33)), "--block_swap_from_disk", "--memory", "auto"]
        found = planned([*words, "--vram", "12GB"])
        assert found.fits and found.options["blocks_to_swap"] and found.job[Memory].streams_from_disk
        assert not {"block_swap_from_disk", "use_pinned_memory_for_block_swap"} & found.options.keys()
        assert not any("weights of streamed blocks" in stage.main for stage in found.planned)
        assert not planned([*words, "--vram", "80GB"]).job[Memory].streams_from_disk


# ---------------------------------------------------------------------------------------------------- the scratch file

FROM_DISK = ("--blocks_to_swap", "40", "--block_swap_from_disk")


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """A folder for scratch files that is still to be made, and how much its disk has free."""
    monkeypatch.setenv("MUSUBI_SCRATCH", str(tmp_path / "not" / "yet"))
    return lambda free: monkeypatch.setattr(fitting, "scratch_free", lambda: free)


def test_what_goes_to_a_scratch_file_is_told_and_where(models, tmp_path, capsys, scratch):
    scratch(100 * GIB)
    line = training_line(models, tmp_path, "wan-14b", (480, 832, 33), *FROM_DISK)
    assert not planned([*line, "--vram", "16GB"]).scratch, "an unchanged checkpoint is read where it lies"
    job = cli.parse(["plan", *line, "--fp8_scaled", "--vram", "16GB"])
    plan.run(job, lambda event: None, Control())
    printed = capsys.readouterr().out
    assert f"take 13.1 GiB in a scratch file in {tmp_path / 'not' / 'yet'}." in printed
    assert "scratch file on disk" in printed and not (tmp_path / "not").exists()
    event = plan.event_of(fitting.plan(job))
    assert event.scratch_mib == pytest.approx(13.1 * 1024, rel=0.01) and event.scratch_free_mib == 100 * 1024
    assert event.scratch_folder == str(tmp_path / "not" / "yet") and event.fits


@pytest.mark.parametrize("vram", [("--vram", "16GB"), ()])
def test_a_disk_that_is_too_small_is_told(models, tmp_path, scratch, vram):
    scratch(3 * GIB)
    line = training_line(models, tmp_path, "wan-14b", (480, 832, 33), *FROM_DISK, "--fp8_scaled", *vram)
    found = planned(line)
    told = plan.verdict(found)
    assert not found.fits and found.only_disk_is_short and not found.options.keys() & {"ffn_chunks"}
    assert "which has 3.0 GiB free" in told and "MUSUBI_SCRATCH" in told and "main memory free" not in told
    assert not plan.event_of(found).fits


def test_where_the_disk_is_too_small_for_fp8_the_checkpoint_is_read_as_it_is(models, tmp_path, monkeypatch, scratch):
    scratch(GIB)
    monkeypatch.setattr(fitting, "main_memory", lambda: 8 * GIB)
    found = planned([*training_line(models, tmp_path, "wan-14b", (480, 832, 33)), "--vram", "12GB"])
    assert found.fits and found.options["block_swap_from_disk"] and not found.scratch


def test_the_free_space_of_a_folder_that_is_still_to_be_made(tmp_path, monkeypatch):
    monkeypatch.setenv("MUSUBI_SCRATCH", str(tmp_path / "not" / "yet"))
    assert scratch_free() == pytest.approx(shutil.disk_usage(tmp_path).free, abs=1 << 30)
