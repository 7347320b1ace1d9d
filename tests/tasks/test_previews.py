"""Previews show what is being denoised, change nothing of it, and are gone when the video is there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from engine.contract import cli
from engine.contract.errors import DiskError, WeightsError
from engine.contract.events import Control, Event, Preview, Warning_
from engine.families import part
from engine.parts import tae
from engine.sampling.samplers import Step
from engine.tasks import generate, previews
from engine.tasks.previews import Previewing
from tests.golden.kit import read_golden
from tests.tasks.conftest import FAMILIES

GOLDEN = Path(__file__).parents[1] / "golden"
SMALL = ("--video_size", 48, 64, "--infer_steps", 3, "--prompt", "a bar", "--seed", 1, "--device", "cpu")


@pytest.fixture(scope="module")
def tiny_vae(tmp_path_factory) -> Path:
    """The one of the golden numbers."""
    path = tmp_path_factory.mktemp("tae") / "small.safetensors"
    save_file(read_golden(GOLDEN / "taehv_tiny.json").weights, path)
    return path


class Watched:
    """What a generation says, and each preview's picture as it lay there when it was said."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.pictures: list[tuple[int, tuple[int, int]]] = []  # frames, size

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Preview):
            with Image.open(event.path) as picture:
                self.pictures.append((getattr(picture, "n_frames", 1), picture.size))

    @property
    def labels(self) -> list[str]:
        assert all(event.passing for event in self.events if isinstance(event, Preview))
        return [event.label for event in self.events if isinstance(event, Preview)]

    @property
    def warnings(self) -> list[str]:
        return [event.message for event in self.events if isinstance(event, Warning_)]


def generated(*words: object) -> Watched:
    watched = Watched()
    generate.run(cli.parse([str(word) for word in ("generate", *words)]), watched, Control())
    return watched


def latents_in(folder: Path) -> torch.Tensor:
    (path,) = folder.glob("*_latent.safetensors")
    return load_file(path)["latent"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_video_with_previews_and_without(family, models, tiny_vae, tmp_path):
    made = {}
    ways = {"none": (), "colours": ("--preview_latent_every", 2),
            "vae": ("--preview_latent_every", 2, "--preview_vae", tiny_vae)}  # fmt: skip
    for way, flags in ways.items():
        torch.manual_seed(7)
        watched = generated(
            family, *models[family], *SMALL, *flags, "--output_type", "both", "--save_path", tmp_path / way
        )
        assert not watched.warnings
        made[way] = latents_in(tmp_path / way), torch.rand(4)  # random numbers are where they were
        single = "video 1 of 1, "
        assert watched.labels == ([f"{single}step 2 of 3", f"{single}step 3 of 3"] if flags else [])
        assert not list((tmp_path / way).glob("latent_preview*")), "the video is there"
        latent_frames = made[way][0].shape[1]
        if family == "framepack":
            latent_frames -= 1  # the start frame was given
        counts = {"none": [], "colours": [latent_frames] * 2, "vae": [4 * latent_frames - 3] * 2}[way]
        assert [frames for frames, _ in watched.pictures] == counts
        assert all(size[0] > size[1] for _, size in watched.pictures)
    for latents, numbers in made.values():
        assert torch.equal(latents, made["none"][0]) and torch.equal(numbers, made["none"][1])


def test_framepack_shows_each_section_beside_those_before_it(models, tmp_path):
    """Blissful Tuner counts sections there; here a step is a step, and the last step of a section is always shown."""
    for f1 in ((), ("--f1",)):
        words = ("--video_sections", 3, "--output_type", "latent", "--save_path", tmp_path / str(len(f1)), *f1)
        watched = generated("framepack", *models["framepack"][:-2], *SMALL, *words, "--preview_latent_every", 100)
        assert watched.labels == [f"video 1 of 1, section {number} of 3, step 3 of 3" for number in (1, 2, 3)]
        window = watched.pictures[0][0]
        assert [frames for frames, _ in watched.pictures] == [window, 2 * window, 3 * window]


def test_what_was_stopped_keeps_its_preview(models, tmp_path):
    """And it lies in the folder of the results, whatever the video is called."""
    control = Control()
    seen = []

    def say(event: Event) -> None:
        seen.append(event)
        if isinstance(event, Preview):
            control.request_stop()

    words = ("--preview_latent_every", 1, "--save_path", tmp_path / "deep" / "it.mp4")
    job = cli.parse([str(word) for word in ("generate", "wan", *models["wan"], *SMALL, *words)])
    generate.run(job, say, control)
    assert [event.path for event in seen if isinstance(event, Preview)] == [str(tmp_path / "deep/latent_preview.webp")]
    assert (tmp_path / "deep" / "latent_preview.webp").is_file() and not list(tmp_path.rglob("*.mp4"))


def test_a_single_frame_is_a_png_in_the_place_of_the_record(models, tmp_path):
    words = ("--video_length", 1, "--preview_latent_every", 2, "--save_path", tmp_path, "--job_dir", tmp_path / "job")
    watched = generated("wan", *models["wan"][:-2], *SMALL, *words, "--output_type", "latent")
    assert (tmp_path / "job" / "latent_preview.png").is_file() and watched.pictures[0][0] == 1


def test_a_wrong_file_is_refused_before_anything_is_loaded(models, tmp_path):
    words = ("wan", *models["wan"], *SMALL, "--save_path", tmp_path, "--preview_latent_every", 1, "--preview_vae")
    vae = models["wan"][models["wan"].index("--vae") + 1]
    with pytest.raises(WeightsError, match="not a tiny autoencoder") as refused:
        generated(*words, vae)
    assert "taew2_1" in refused.value.hint
    with pytest.raises(WeightsError, match="--preview_vae"):
        generated(*words, tmp_path / "missing.pth")


def test_the_tiny_autoencoder_of_another_family_is_known_by_its_name(models, tiny_vae, tmp_path):
    """Its file has the same layout, and only wrong colours would tell."""
    other = tmp_path / "taehv.safetensors"
    other.write_bytes(tiny_vae.read_bytes())
    words = (*SMALL, "--output_type", "latent", "--preview_latent_every", 4, "--preview_vae", other, "--save_path")
    (warning,) = generated("wan", *models["wan"], *words, tmp_path / "wan").warnings
    assert "taew2_1" in warning
    assert not generated("hunyuan_video", *models["hunyuan_video"], *words, tmp_path / "hv").warnings


# ------------------------------------------------------------------------------------------------- without a model


def previewing(tmp_path: Path, *words: object) -> tuple[Previewing, list[Event]]:
    line = "generate wan --dit d --vae v --t5 t --prompt p --save_path".split()
    said: list[Event] = []
    job = cli.parse([*line, str(tmp_path), *map(str, words)])
    return Previewing(job, torch.device("cpu"), said.append, folder=tmp_path), said


def step_of(done: int, latents_BCTHW: torch.Tensor, *, total: int = 10) -> Step:
    return Step(done=done, total=total, sigma=0.5, start=latents_BCTHW, x=latents_BCTHW, clean=latents_BCTHW)


LATENTS = torch.randn(1, 16, 3, 6, 8, generator=torch.Generator().manual_seed(5))


def test_a_preview_that_fails_is_a_warning_and_the_last(tmp_path, monkeypatch):
    this, said = previewing(tmp_path, "--preview_latent_every", 1)

    def full(*arguments: object, **more: object) -> None:
        raise DiskError("The disk is full.")

    monkeypatch.setattr(previews, "write_preview", full)
    for done in (1, 2, 3):
        this.show(step_of(done, LATENTS), label="video")
    (warning,) = said
    assert isinstance(warning, Warning_) and "The disk is full." in warning.message


def test_without_room_beside_the_dit_a_preview_is_in_colours(tmp_path, tiny_vae, monkeypatch):
    words = ("--preview_latent_every", 1, "--preview_vae", tiny_vae)
    frames = {}
    for free in (1 << 10, 1 << 40):
        monkeypatch.setattr(previews, "free_bytes", lambda device, free=free: free)
        this, said = previewing(tmp_path, *words)
        this.show(step_of(1, LATENTS), label="video")
        (path,) = [event.path for event in said if isinstance(event, Preview)]
        with Image.open(path) as picture:
            frames[free] = picture.n_frames
    assert frames == {1 << 10: 3, 1 << 40: 9}


def test_memory_that_runs_out_in_a_preview_does_not_end_the_video(tmp_path, tiny_vae, monkeypatch):
    this, said = previewing(tmp_path, "--preview_latent_every", 1, "--preview_vae", tiny_vae)

    def greedy(*arguments: object, **more: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(tae.TinyAutoencoder, "decode_frames", greedy)
    this.show(step_of(1, LATENTS), label="video")
    assert [type(event) for event in said] == [Warning_] and "The video is made all the same." in said[0].message


def test_long_videos_are_thinned_and_as_fast_as_the_video(tmp_path, tiny_vae):
    this, said = previewing(tmp_path, "--preview_latent_every", 1, "--preview_vae", tiny_vae, "--fps", 16)
    this.show(step_of(10, LATENTS[:, :, [0] * 21]), label="video")
    with Image.open(tmp_path / "latent_preview.webp") as picture:
        assert picture.n_frames <= previews.MOST_FRAMES < 81
        picture.load()
        shown_s = picture.n_frames * picture.info["duration"] / 1000
    assert shown_s == pytest.approx(81 / 16, rel=0.05)


def test_colours_are_those_that_comfyui_shows(tmp_path):
    """Its latent2rgb: factors and bias as published, -1..1 on 0..255, and no stretching from preview to preview."""
    colours = part("wan", "vae").COLOURS
    zero_TRHW = colours.frames(torch.zeros(1, 16, 2, 1, 1))
    assert zero_TRHW.shape == (2, 3, 1, 1)
    expected = (torch.tensor([-0.1835, -0.0868, -0.3360]) + 1) / 2
    assert torch.allclose(zero_TRHW[0, :, 0, 0], expected, atol=1e-7)
    one = torch.zeros(1, 16, 1, 1, 1)
    one[0, 2] = 1.0
    assert torch.allclose(colours.frames(one)[0, :, 0, 0], expected + torch.tensor([0.3568, 0.2548, 0.1747]) / 2)
    for family in FAMILIES:
        colours = part(family, "vae").COLOURS
        assert len(colours.factors) == part(family, "vae").LATENT_CHANNELS


def test_nothing_is_shown_that_was_not_asked_for(tmp_path):
    this, said = previewing(tmp_path)
    this.show(step_of(10, LATENTS), label="video")
    assert said == [] and not list(tmp_path.iterdir())
