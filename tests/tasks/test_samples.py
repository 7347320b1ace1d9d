"""Samples while training are what `generate` makes, lie where musubi-tuner puts them, and leave no trace in it."""

from __future__ import annotations

import functools
import json
import random
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from engine.contract import cli
from engine.contract.errors import OptionError
from engine.contract.events import Artifact, Control, Event, Warning_
from engine.contract.options import Prompting, Run
from engine.contract.options.saving import LONGEST_NAME
from engine.demo.prepare import prepare
from engine.families import part
from engine.media.images import image_size
from engine.media.latents import SUFFIX
from engine.media.video import probe
from engine.sampling.prompts import parse_line
from engine.tasks.experts import Experts
from engine.tasks.samples import TrainingSamples, fitted, generation_job, sample_name
from engine.tasks.studio import Studio
from tests.clips import draw_image, draw_video

FAMILIES = ("wan", "hunyuan_video", "framepack")
SIZE = ("--video_size", 48, 64)
LINE = "a red circle --w 64 --h 48 --s 2"


def words_of(options: dict[str, object]) -> list[str]:
    return [word for name, value in options.items() for word in (f"--{name}", *([] if value is True else [str(value)]))]


@dataclass(frozen=True)
class Workshop:
    """The demo of one family; its models with pictures beside them."""

    family: str
    folder: Path
    prepared: object
    variant: dict[str, str] = field(default_factory=dict)

    def options(self, verb: str) -> dict[str, object]:
        found = part(self.family, "tiny").tiny_model_options(self.folder / "models", **self.variant)[verb]
        return {name: value for name, value in found.items() if name != "video_sections"}

    @property
    def for_training(self) -> list[str]:
        """Everything that a training with samples says about its models."""
        return words_of(self.options("generate") | self.options("train"))

    @property
    def name(self) -> str:
        return self.family.replace("_", "-")


@pytest.fixture(scope="module")
def demo_of(tmp_path_factory):
    """The demo of a family with its caches, made when it is first asked for."""
    from engine.__main__ import main

    @functools.cache
    def made(family: str) -> Workshop:
        folder = tmp_path_factory.mktemp(family)
        shop = Workshop(family, folder, prepare(folder, family, trained=False))
        for step in shop.prepared.steps[:2]:
            assert main([*step.command, "--job_dir", str(folder / "jobs")]) == 0
        return shop

    return made


@dataclass
class Training:
    """A training of three steps that had samples at first, after steps 2 and after the epoch: what is left of it."""

    out: Path
    latents: dict[str, torch.Tensor]
    events: list[dict]

    def written(self, prefix: str) -> list[Path]:
        return sorted((self.out / "sample").glob(f"demo-lora_{prefix}_*"))


@pytest.fixture(scope="module", params=FAMILIES)
def cached(request, demo_of) -> Workshop:
    return demo_of(request.param)


def train(shop: Workshop, out: Path, *more: object) -> int:
    from engine.__main__ import main

    words = [
        *shop.prepared.steps[2].command, "--max_train_steps", 3, "--network_dropout", 0.1, "--output_dir", out,
        "--job_dir", out / "job", "--logging_dir", out / "logs", *more,
    ]  # fmt: skip
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def trained(cached, tmp_path_factory) -> Training:
    out = tmp_path_factory.mktemp("out")
    (out / "prompts.txt").write_text(f"# two samples\n{LINE} --d 7\n{LINE} --d 8 --l 2 --n grey\n")
    kept = {}

    def keep(studio, request, latents_BCTHW, *, name="", notes=None):
        kept[name] = latents_BCTHW
        return original(studio, request, latents_BCTHW, name=name, notes=notes)

    original = Studio.keep
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Studio, "keep", keep)
        status = train(
            cached, out, *cached.for_training, "--sample_prompts", out / "prompts.txt", "--sample_at_first",
            "--sample_every_n_steps", 3,
        )  # fmt: skip
    assert status == 0
    events = [json.loads(line) for line in (out / "job" / "events.jsonl").read_text().splitlines()]
    return Training(out, kept, events)


def losses(out: Path) -> list[float]:
    rows = [json.loads(line) for line in (out / "job" / "events.jsonl").read_text().splitlines()]
    return [row["values"]["loss/current"] for row in rows if row["event"] == "metric"]


def test_a_training_is_the_same_with_samples_and_without(cached, trained, tmp_path):
    assert train(cached, tmp_path) == 0
    assert losses(tmp_path) == losses(trained.out) and len(losses(tmp_path)) == 3
    before, after = (load_file(out / "demo-lora.safetensors") for out in (tmp_path, trained.out))
    assert all(before[name].equal(after[name]) for name in before)


def test_samples_lie_where_musubi_tuner_puts_them(trained):
    for prefix in ("e000000", "000003"):
        first, second = trained.written(prefix)
        assert first.name.startswith(f"demo-lora_{prefix}_00_") and first.stem.removesuffix("_000").endswith("_7")
        assert second.name.startswith(f"demo-lora_{prefix}_01_") and second.stem.removesuffix("_000").endswith("_8")
    assert not (trained.out / "sample" / "jobs").exists()


def test_each_sample_is_said_as_artifact_and_preview(trained):
    paths = [row["path"] for row in trained.events if row["event"] == "artifact" and "sample" in row["path"]]
    previews = [row for row in trained.events if row["event"] == "preview"]
    assert [Path(path).exists() for path in paths] == [True] * 4 and len(previews) == 4
    assert all(row["jpeg"].startswith("/9j/") for row in previews)
    assert "step 3, sample 2 of 2: a red circle" in previews[-1]["label"]


def test_samples_are_in_tensorboard(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = {path.parent for path in (trained.out / "logs").rglob("events.out.*")}
    log = EventAccumulator(str(folder))
    log.Reload()
    assert log.Tags()["images"] == ["sample_0", "sample_1"]
    assert [image.step for image in log.Images("sample_0")] == [0, 3]


def generated(engine, shop: Workshop, out: Path, *more: object) -> torch.Tensor:
    """The latents of one video that `generate` makes."""
    result = engine(
        "generate", shop.name, *words_of(shop.options("generate")), "--save_path", out, "--output_type", "latent",
        *SIZE, "--infer_steps", 2, *more,
    )  # fmt: skip
    assert result.status == 0, result.err
    (path,) = out.glob("*_latent.safetensors")
    return load_file(path)["latent"].unsqueeze(0)


LIKE_SAMPLES = {  # what samples do by themselves
    "wan": ("--video_length", 1, "--flow_shift", 14.5),
    "hunyuan_video": ("--video_length", 1, "--flow_shift", 14.5),
    "framepack": ("--video_sections", 1),
}


@pytest.mark.parametrize("prefix", ["e000000", "000003"])
def test_generate_makes_the_same_with_the_saved_lora(cached, trained, engine, tmp_path, prefix):
    """Before the first step the LoRA is nothing, and both compute the same; later it is merged there, not here."""
    lora = () if prefix == "e000000" else ("--lora_weight", trained.out / "demo-lora.safetensors")
    own_guidance = () if cached.family != "wan" else ("--guidance_scale", 5.0)
    like = LIKE_SAMPLES[cached.family]
    alone = generated(
        engine, cached, tmp_path / "1", "--prompt", "a red circle", "--seed", 7, *like, *own_guidance, *lora
    )
    guidance = ("--guidance_scale", 2, "--negative_prompt", "grey")
    both = generated(engine, cached, tmp_path / "2", "--prompt", "a red circle", "--seed", 8, *like, *guidance, *lora)
    for made, path in zip((alone, both), trained.written(prefix), strict=True):
        sampled = trained.latents[path.stem]
        if lora:
            torch.testing.assert_close(sampled, made, atol=1e-5, rtol=1e-5)
        else:
            assert sampled.equal(made)


# ------------------------------------------------------------------------------------- every variant, without training


def make_samples(shop: Workshop, tmp_path: Path, *more: object, line: str) -> tuple[torch.Tensor, list[Event], Path]:
    """What one line gives with an untrained DiT of a training job, its events and its file."""
    (tmp_path / "prompts.txt").write_text(line)
    said: list[Event] = []
    job = training_job(shop, tmp_path, *more)
    made = TrainingSamples(job, said.append, Control())
    kept = []

    def keep(studio, request, latents_BCTHW, **given):
        kept.append(latents_BCTHW)
        return original(studio, request, latents_BCTHW, **given)

    original = Studio.keep
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Studio, "keep", keep)
        made.encode()
        experts = Experts(
            job, device=torch.device("cpu"), weight_format="stored", attention_backend="auto", say=said.append
        )
        experts.dit.train()
        experts.arrange()
        made.make(experts, 100, None)
    assert not [event.message for event in said if isinstance(event, Warning_)]
    (path,) = [Path(event.path) for event in said if isinstance(event, Artifact)]
    return kept[0], said, path


def training_job(shop: Workshop, tmp_path: Path, *more: object):
    return cli.parse(
        [str(word) for word in (
            "train", shop.name, *shop.for_training, "--dataset_config", "d.toml", "--output_dir", tmp_path / "out",
            "--output_name", "it", "--device", "cpu", "--seed", 5, "--guidance_scale", 3, "--sample_prompts",
            tmp_path / "prompts.txt", *more,
        )]
    )  # fmt: skip


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    draw_image(folder / "start.png", number=5, size=(64, 48))
    draw_image(folder / "end.png", number=60000, size=(64, 48))
    draw_video(folder / "control.mp4", size=(64, 48), frames=6, first_number=77)
    return folder


def variant_of(tmp_path_factory, family: str, variant: str) -> Workshop:
    folder = tmp_path_factory.mktemp(variant)
    part(family, "tiny").write_tiny_models(folder / "models", variant=variant)
    return Workshop(family, folder, None, {"variant": variant})


WAN = {
    "i2v-14B": ("--i {0}/start.png --f 6", ("--image_path", "{0}/start.png", "--video_length", 5)),
    "flf2v-14B": (
        "--i {0}/start.png --ei {0}/end.png --f 5",
        ("--image_path", "{0}/start.png", "--end_image_path", "{0}/end.png", "--video_length", 5),
    ),
    "t2v-1.3B-FC": ("--cn {0}/control.mp4 --f 5", ("--control_path", "{0}/control.mp4", "--video_length", 5)),
    "t2v-A14B": ("--f 5", ("--video_length", 5)),
}


@pytest.mark.parametrize("variant", WAN)
def test_variants_of_wan_sample_what_they_generate(variant, engine, pictures, tmp_path, tmp_path_factory):
    """With both experts where there are two: musubi-tuner's samples are made with the low noise one alone."""
    shop = variant_of(tmp_path_factory, "wan", variant)
    letters, flags = WAN[variant]
    latents, _, path = make_samples(
        shop, tmp_path, line=f"a cat --w 64 --h 50 --s 2 --d 9 --l 1 {letters.format(pictures)}"
    )
    more = [str(flag).format(pictures) for flag in flags]
    made = generated(
        engine, shop, tmp_path / "video", "--prompt", "a cat", "--seed", 9, "--flow_shift", 14.5, "--guidance_scale", 1,
        *more,
    )  # fmt: skip
    assert latents.equal(made)
    info = probe(path)
    assert info.frames == 5 and info.fps == pytest.approx(16), "musubi-tuner writes every sample at 24 frames a second"


def test_one_frame_samples_of_wan(engine, pictures, tmp_path, tmp_path_factory):
    shop = variant_of(tmp_path_factory, "wan", "i2v-14B")
    places = "target_index=2,control_index=0"
    latents, _, path = make_samples(
        shop, tmp_path, "--one_frame",
        line=f"a cat --w 64 --h 48 --f 25 --s 2 --d 9 --l 1 --ci {pictures}/start.png --of {places}",
    )  # fmt: skip
    made = generated(
        engine, shop, tmp_path / "video", "--prompt", "a cat", "--seed", 9, "--flow_shift", 14.5, "--guidance_scale", 1,
        "--control_image_path", pictures / "start.png", "--one_frame_inference", places,
    )  # fmt: skip
    assert latents.equal(made) and path.name.endswith("_9_000.png")


@pytest.fixture(scope="module")
def framepack(tmp_path_factory) -> Workshop:
    folder = tmp_path_factory.mktemp("framepack")
    part("framepack", "tiny").write_tiny_models(folder / "models")
    return Workshop("framepack", folder, None)


FRAMEPACK = {
    "sections": (
        (),
        "--f 24 --i {0}/start.png --ei {0}/end.png --g 4",
        ("--video_sections", 2, "--end_image_path", "{0}/end.png"),
    ),
    "f1": (("--f1",), "--f 17 --i {0}/start.png --g 4", ("--video_sections", 2, "--f1")),
    "one frame": (
        ("--one_frame",),
        "--i {0}/start.png --ci {0}/end.png --g 4 --of no_2x,target_index=1,control_index=0",
        ("--one_frame_inference", "no_2x,target_index=1,control_index=0", "--control_image_path", "{0}/end.png"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", FRAMEPACK)
def test_framepack_samples_what_it_generates(kind, framepack, engine, pictures, tmp_path):
    """24 frames are no whole sections: as in musubi-tuner the last section is left out."""
    flags, letters, generation = FRAMEPACK[kind]
    latents, _, path = make_samples(
        framepack, tmp_path, *flags, line=f"a cat --w 64 --h 48 --s 2 --d 9 {letters.format(pictures)}"
    )
    made = generated(
        engine, framepack, tmp_path / "video", "--prompt", "a cat", "--seed", 9, "--embedded_cfg_scale", 4,
        "--image_path", pictures / "start.png", *(str(word).format(pictures) for word in generation),
    )  # fmt: skip
    assert latents.equal(made)
    assert (image_size(path) == (64, 48)) if kind == "one frame" else (probe(path).frames == 17)


# ---------------------------------------------------------------------------------------------- lines and their letters


@pytest.fixture(scope="module")
def wan(tmp_path_factory) -> Workshop:
    folder = tmp_path_factory.mktemp("wan")
    part("wan", "tiny").write_tiny_models(folder / "models")
    return Workshop("wan", folder, None)


def requests_for(shop: Workshop, tmp_path: Path, text: str, *more: object, name: str = "prompts.txt"):
    (tmp_path / name).write_text(text)
    said: list[Event] = []
    job = training_job(shop, tmp_path, *more, "--sample_prompts", tmp_path / name)
    return TrainingSamples(job, said.append, Control())._requests, [getattr(event, "message", "") for event in said]


def test_what_a_line_leaves_out_is_as_in_musubi_tuner(wan, framepack, tmp_path):
    (request,), _ = requests_for(wan, tmp_path, "a cat")
    assert (request.width, request.height, request.frames, request.steps, request.shift) == (256, 256, 1, 20, 14.5)
    assert request.guidance == 5.0 and "色调" in request.negative_prompt, "Wan's own guidance and negative prompt"
    (request,), _ = requests_for(framepack, tmp_path, "a cat")
    assert (request.frames, request.steps, request.shift, request.guidance) == (9, 20, None, 1.0)
    assert request.settings["embedded_cfg_scale"] == 10.0


def test_g_and_l_mean_what_they_mean_in_training(wan, framepack, tmp_path):
    """In --from_file --g is classifier-free guidance, in --sample_prompts embedded guidance."""
    (request,), said = requests_for(wan, tmp_path, "a cat --g 6 --l 3")
    assert request.guidance == 3.0 and any("no embedded guidance" in line for line in said)
    (request,), said = requests_for(framepack, tmp_path, "a cat --g 6 --l 3 --f 9")
    assert request.guidance == 3.0 and request.settings["embedded_cfg_scale"] == 6.0 and request.frames == 9
    assert not any("no embedded guidance" in line for line in said)


def test_options_in_the_text_are_no_options(wan, tmp_path):
    """musubi-tuner looks for them in the prompt too, whatever their case: "I walk" becomes an image path."""
    (request,), _ = requests_for(wan, tmp_path, "I walk in d 5 streets, W 3 --d 1")
    assert request.prompt == "I walk in d 5 streets, W 3" and request.settings["image_path"] is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "p.toml",
            '[prompt]\nwidth = 64\n[[prompt.subset]]\nprompt = "a cat"\nguidance_scale = 6.0\ncfg_scale = 2.0\n',
        ),
        ("p.json", '[{"prompt": "a cat", "width": 64, "guidance_scale": 6.0, "cfg_scale": 2.0}]'),
        ("p.json", '["a cat --w 64 --g 6 --l 2"]'),
    ],
)
def test_other_forms_of_prompt_files(framepack, tmp_path, name, text):
    (request,), _ = requests_for(framepack, tmp_path, text, name=name)
    assert (request.width, request.guidance, request.settings["embedded_cfg_scale"]) == (64, 2.0, 6.0)


def test_sizes_are_rounded_down_and_said(wan, tmp_path):
    (request,), said = requests_for(wan, tmp_path, "a cat --w 856 --h 480 --f 83")
    assert (request.width, request.height, request.frames) == (848, 480, 81)
    assert sum("becomes" in line for line in said) == 2


def test_a_length_means_nothing_where_single_images_are_made(framepack, tmp_path):
    job = generation_job(training_job(framepack, tmp_path, "--one_frame"))
    line = parse_line("a cat --f 37")
    assert fitted(job, line, lambda event: None).frame_count == 1


def test_the_trainings_own_seed_and_guidance_stay_its_own(wan, tmp_path):
    job = generation_job(training_job(wan, tmp_path))
    assert (job[Prompting].seed, job[Prompting].guidance_scale) == (None, 5.0) and job[Run].device == "cpu"


def test_a_name_as_musubi_tuner_has_it():
    named = {"index": 1, "seed": 42, "now": "20260131235959"}
    assert sample_name("it", step=100, epoch=None, single=False, **named) == "it_000100_01_20260131235959_42"
    assert sample_name("it", step=100, epoch=2, single=True, **named) == "it_e000002_01_20260131235959_42_000"


def test_the_longest_name_of_a_training_leaves_room_for_what_is_added():
    """At its first save a training of hours would end, since no disk takes a file's name of more than 255 bytes."""
    added = sample_name("", step=10**6 - 1, epoch=10**6 - 1, single=True, index=99, seed=2**64 - 1) + SUFFIX
    for more in (added, "_high_noise-step00000002-state.previous"):
        assert LONGEST_NAME + len(more) <= 255


# -------------------------------------------------------------------------------------------- what can go wrong, early


def refused(engine, shop: Workshop, tmp_path: Path, *more: object, without: str = "", text: str = "a cat"):
    (tmp_path / "prompts.txt").write_text(text)
    (tmp_path / "dataset.toml").write_text("")
    options = shop.options("generate") | shop.options("train")
    options.pop(without, None)
    result = engine(
        "train", shop.name, *words_of(options), "--dataset_config", tmp_path / "dataset.toml", "--output_dir",
        tmp_path / "out", "--sample_prompts", tmp_path / "prompts.txt", *more,
    )  # fmt: skip
    assert result.status == 2 and len(result.error_lines) == 1, result.err
    assert "Loading" not in result.err and "dataset" not in result.error_lines[0]
    return result.err


@pytest.mark.parametrize("missing", ["vae", "t5"])
def test_a_missing_file_is_named_before_anything_is_loaded(engine, wan, tmp_path, missing):
    assert f"--{missing} is required" in (said := refused(engine, wan, tmp_path, without=missing))
    assert "--sample_prompts" in said


def test_a_missing_image_encoder_is_named(engine, framepack, tmp_path, tmp_path_factory, pictures):
    assert "--image_encoder is required" in refused(engine, framepack, tmp_path, without="image_encoder")
    shop = variant_of(tmp_path_factory, "wan", "i2v-14B")
    line = f"a cat --i {pictures}/start.png"
    assert "--clip" in refused(engine, shop, tmp_path, without="clip", text=line)


@pytest.mark.parametrize(
    ("text", "named"),
    [("a cat --x 5", "prompts.txt:1"), ("# nothing", "no prompt"), ("a cat --i nowhere.png", "--image_path")],
)
def test_a_bad_prompt_file_is_refused_early(engine, wan, tmp_path, text, named):
    assert named in refused(engine, wan, tmp_path, text=text)


def test_a_prompt_file_that_is_not_there(engine, wan, tmp_path):
    assert "nowhere.txt" in refused(engine, wan, tmp_path, "--sample_prompts", "nowhere.txt")


def test_a_file_of_another_kind_is_refused_early(engine, wan, tmp_path):
    assert "--vae" in refused(engine, wan, tmp_path, "--vae", __file__)


def test_a_time_without_prompts_is_refused(wan):
    words = ["train", "wan", *wan.for_training, "--dataset_config", "d", "--sample_every_n_steps", "5"]
    with pytest.raises(OptionError, match="sample_every_n_steps"):
        cli.parse(words)


# --------------------------------------------------------------------------------------------- what can go wrong, late


@pytest.fixture(scope="module")
def demo(demo_of) -> Workshop:
    return demo_of("wan")


def sampled(shop: Workshop, out: Path, *more: object) -> list[dict]:
    """The events of a training with two samples after its second step."""
    out.mkdir(exist_ok=True)
    (out / "prompts.txt").write_text(f"{LINE} --d 1 --l 1\n{LINE} --d 2 --l 1\n")
    samples = ("--sample_prompts", out / "prompts.txt", "--sample_every_n_steps", 2)
    assert train(shop, out, *shop.for_training, *samples, *more) == 0
    return [json.loads(line) for line in (out / "job" / "events.jsonl").read_text().splitlines()]


def test_a_sample_that_fails_is_a_warning_and_training_goes_on(demo, tmp_path, monkeypatch):
    def fail(self, *_, **__):
        random.random(), np.random.rand(), torch.rand(1)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB")

    monkeypatch.setattr(Studio, "latents", fail)
    events = sampled(demo, tmp_path / "failing")
    warnings = [row["message"] for row in events if row["event"] == "warning"]
    assert len(warnings) == 2 and all("ut of memory" in text and "--w, --h, --f" in text for text in warnings)
    assert "Sample 2 (" in warnings[1] and "prompts.txt:2)" in warnings[1]
    assert train(demo, tmp_path / "off") == 0
    assert losses(tmp_path / "failing") == losses(tmp_path / "off")


def test_a_stop_while_sampling_saves_at_once(demo, tmp_path, monkeypatch):
    def latents(studio, *given, **named):
        studio.control.request_stop()
        return original(studio, *given, **named)

    original = Studio.latents
    monkeypatch.setattr(Studio, "latents", latents)
    events = sampled(demo, tmp_path / "out", "--max_train_steps", 5)
    assert len(losses(tmp_path / "out")) == 2, "no further step"
    assert events[-1]["event"] == "done" and events[-1]["stopped"]
    assert not list((tmp_path / "out").glob("sample/*.png"))
    assert (tmp_path / "out" / "demo-lora-step00000002-state").is_dir()
    assert load_file(tmp_path / "out" / "demo-lora-step00000002.safetensors")


def test_a_line_without_seed_gets_another_each_time(demo, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red circle --w 64 --h 48 --s 1 --l 1")
    more = ("--sample_prompts", tmp_path / "prompts.txt", "--sample_every_n_steps", 1)
    assert train(demo, tmp_path, *demo.for_training, *more) == 0
    seeds = {path.stem.split("_")[-2] for path in (tmp_path / "sample").glob("*.png")}
    assert len(seeds) == 3


def test_samples_work_with_streamed_checkpointed_blocks(demo, tmp_path):
    plain = sampled(demo, tmp_path / "plain")
    memory = ("--blocks_to_swap", 3, "--gradient_checkpointing", "--gradient_checkpointing_cpu_offload")
    streamed = sampled(demo, tmp_path / "streamed", *memory)
    first, second = ([row["jpeg"] for row in events if row["event"] == "preview"] for events in (plain, streamed))
    assert first == second and len(first) == 2
