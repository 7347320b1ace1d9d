"""Caching: what is made, what is kept, what is removed, and what is told. How it runs is in test_stages.py."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial

import pytest
import torch
from PIL import Image

from engine.contract.errors import DataError
from engine.contract.events import Control
from engine.data import cache, clips, fingerprints, pipeline
from engine.data.config import load_config
from engine.data.items import sources

from ..clips import draw_image, draw_item
from . import caching
from .caching import Heard, cache_names, encode_clips, given, latents, make_dataset, texts, write_config


def test_every_window_gets_a_cache_with_its_own_pictures(tmp_path):
    config = make_dataset(tmp_path, clips=2, frames=11, frame_extraction="chunk", target_frames=[5, 9])
    heard = Heard()
    report = latents(config, say=heard, batch_size=3)
    assert (report.done, report.skipped, report.failed, report.purged) == (6, 0, (), 0)
    names = cache_names(config, "*.safetensors")
    assert names == [
        f"clip_{clip}_{window}_0064x0048_wan.safetensors"
        for clip in range(2)
        for window in ("00000-005", "00000-009", "00005-005")
    ]
    assert cache_names(config, "*.tmp") == []
    for source in sources(config.datasets[0]):
        for clip in clips.read(clips.plan(source, target_fps=16.0), target_fps=16.0):
            stored = cache.read(cache.latent_path(clip.window, "wan"))
            pixels = torch.from_numpy(clip.frames_FHWC).permute(3, 0, 1, 2)[None] / 127.5 - 1
            (key,) = stored
            assert key == f"latents_{(clip.window.count - 1) // 4 + 1}x6x8_bfloat16"
            assert torch.allclose(stored[key].float(), encode_clips(pixels)[0]["latents"].float(), atol=0.01)
    assert heard.progress[-1].done == heard.progress[-1].total == 6


def test_fresh_caches_are_skipped_before_anything_is_decoded(tmp_path, monkeypatch):
    """The reference decodes and resizes every clip again before it looks whether the cache is there."""
    config = make_dataset(tmp_path)
    latents(config)

    def refuse(*_, **__):
        raise AssertionError("decoded")

    monkeypatch.setattr(clips, "read", refuse)
    heard = Heard()
    assert latents(config, say=heard, encode=refuse).skipped == 3
    assert "3 clips: 3 fresh, 0 to do." in heard.logs


def test_what_has_changed_is_made_again_and_nothing_else(tmp_path):
    config = make_dataset(tmp_path)
    latents(config)
    draw_item(tmp_path / "videos", "clip_1.mp4", caption="new", first_number=900)
    report = latents(config)
    assert (report.done, report.skipped) == (1, 2)
    assert latents(config, identity="vae-2").done == 3
    assert latents(config, identity="vae-2", settings={"i2v": True}).done == 3
    assert latents(config, identity="vae-2", settings={"i2v": True}).done == 0
    assert latents(config, identity="vae-2", settings={"i2v": True}, recache=True).done == 3


def test_other_windows_are_added_and_the_common_ones_kept(tmp_path):
    config = make_dataset(tmp_path, target_frames=[5])
    latents(config)
    wider = write_config(tmp_path, target_frames=[5, 9])
    report = latents(wider)
    assert (report.done, report.skipped, report.purged) == (3, 3, 0)
    narrower = write_config(tmp_path, target_frames=[9])
    report = latents(narrower)
    assert (report.done, report.skipped, report.purged) == (0, 3, 3)
    assert len(cache_names(narrower)) == 6  # three caches, three sidecars


def test_foreign_caches_are_redone_unless_existing_ones_are_to_be_skipped(tmp_path):
    config = make_dataset(tmp_path)
    latents(config)
    for sidecar in config.datasets[0].cache_directory.glob("*.json"):
        sidecar.unlink()
    assert latents(config, skip_existing=True).skipped == 3
    assert cache_names(config, "*.json") == []
    assert latents(config).done == 3


def test_stale_caches_are_redone_even_when_existing_ones_are_to_be_skipped(tmp_path):
    config = make_dataset(tmp_path, clips=1)
    latents(config)
    assert latents(config, identity="vae-2", skip_existing=True).done == 1


def test_orphans_go_and_other_files_stay(tmp_path):
    config = make_dataset(tmp_path, clips=2)
    latents(config)
    texts(config)
    folder = config.datasets[0].cache_directory
    (folder / "my_style_wan.safetensors").write_bytes(b"a LoRA")
    (folder / "notes.json").write_text("{}")
    for suffix in (".mp4", ".txt"):
        (tmp_path / "videos" / f"clip_1{suffix}").unlink()
    assert latents(config).purged == 1
    assert texts(config).purged == 1
    assert [name for name in cache_names(config) if "clip_1" in name] == []
    assert {"my_style_wan.safetensors", "notes.json"} < set(cache_names(config))
    assert len(cache_names(config, "clip_0*")) == 4


def test_kept_orphans_of_other_settings_are_marked(tmp_path):
    config = make_dataset(tmp_path, clips=1, target_frames=[5])
    latents(config)
    other = write_config(tmp_path, target_frames=[9])
    assert latents(other, keep_cache=True).purged == 0
    folder = config.datasets[0].cache_directory
    in_use = {name.count: fingerprints.read(name.path).in_use for name in cache.latent_files(folder, "wan", video=True)}
    assert in_use == {5: False, 9: True}


def test_kept_orphans_whose_source_is_gone_stay_in_use(tmp_path):
    config = make_dataset(tmp_path, clips=2)
    latents(config)
    (tmp_path / "videos" / "clip_1.mp4").unlink()
    latents(config, keep_cache=True)
    names = cache.latent_files(config.datasets[0].cache_directory, "wan", video=True)
    assert [fingerprints.read(name.path).in_use for name in names] == [True, True]


def test_a_broken_file_is_reported_and_the_others_are_cached(tmp_path):
    """In the reference one file that cannot be decoded ends the run."""
    config = make_dataset(tmp_path)
    (tmp_path / "videos" / "clip_1.mp4").write_text("this is no video")
    heard = Heard()
    report = latents(config, say=heard)
    assert report.done == 2
    assert [failure.path.name for failure in report.failed] == ["clip_1.mp4"]
    assert len(heard.warnings) == 1 and "clip_1.mp4" in heard.warnings[0]


def test_a_file_that_breaks_half_way_keeps_its_first_windows(tmp_path, monkeypatch):
    config = make_dataset(tmp_path, frames=20, frame_extraction="chunk")
    whole = clips.read

    def breaking(windows, *, target_fps):
        for clip in whole(windows, target_fps=target_fps):
            if clip.window.source.stem == "clip_1" and clip.window.start >= 10:
                raise DataError("clip_1.mp4: the stream breaks off.", "Encode it again.")
            yield clip

    monkeypatch.setattr(clips, "read", breaking)
    heard = Heard()
    report = latents(config, say=heard, batch_size=4)
    assert report.done == 10
    (failure,) = report.failed
    assert failure.windows == ((10, 5), (15, 5)) and "breaks off" in failure.reason
    (warning,) = heard.warnings
    assert "2 clips" in warning and "Encode it again" in warning
    assert heard.progress[-1].done == 12


def test_a_file_with_fewer_frames_than_planned_is_reported(tmp_path, monkeypatch):
    config = make_dataset(tmp_path, clips=1, frames=20, frame_extraction="chunk")
    whole = clips.read
    monkeypatch.setattr(
        clips, "read", lambda windows, *, target_fps: iter(list(whole(windows, target_fps=target_fps))[:3])
    )
    report = latents(config)
    assert report.done == 3 and report.failed[0].windows == ((15, 5),)


def test_strict_makes_a_broken_file_fatal(tmp_path):
    config = make_dataset(tmp_path)
    (tmp_path / "videos" / "clip_1.mp4").write_text("this is no video")
    with pytest.raises(DataError, match="clip_1.mp4"):
        latents(config, strict=True)


def test_nothing_cached_is_an_error(tmp_path):
    config = make_dataset(tmp_path, clips=2)
    for path in (tmp_path / "videos").glob("*.mp4"):
        path.write_text("this is no video")
    with pytest.raises(DataError, match="Nothing of .*dataset.toml could be cached: 2 left out"):
        latents(config)


def test_a_file_that_may_not_be_read_is_named_once(tmp_path, monkeypatch):
    config, content_of = make_dataset(tmp_path, clips=2), fingerprints.content_of
    closed = tmp_path / "videos" / "clip_0.mp4"

    def refusing(path):
        if path == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return content_of(path)

    monkeypatch.setattr(fingerprints, "content_of", refusing)
    heard = Heard()
    assert latents(config, say=heard).done == 1
    (warning,) = heard.warnings
    assert warning == f"Left out: {closed}: the file cannot be read (Permission denied). Check its permissions."


def test_nothing_cached_names_the_only_file_once(tmp_path):
    config = make_dataset(tmp_path, clips=1)
    broken = tmp_path / "videos" / "clip_0.mp4"
    broken.write_text("no video")
    with pytest.raises(DataError) as raised:
        latents(config)
    assert raised.value.message.count(str(broken)) == 1


def test_a_source_that_cannot_be_read_now_keeps_its_caches_if_unchanged(tmp_path, monkeypatch):
    config = make_dataset(tmp_path, clips=2)
    latents(config)
    real = clips.plan

    def unreadable(source, **options):
        if source.stem == "clip_1":
            raise DataError(f"{source.path}: input/output error.")
        return real(source, **options)

    monkeypatch.setattr("engine.data.survey.plan", unreadable)
    report = latents(config)
    assert (report.purged, len(report.failed), len(cache_names(config, "clip_1*"))) == (0, 1, 2)
    (tmp_path / "videos" / "clip_1.mp4").write_text("now it is another file")
    assert latents(config).purged == 1


def test_a_stale_cache_that_cannot_be_made_again_is_not_in_use(tmp_path, monkeypatch):
    config = make_dataset(tmp_path, clips=2)
    latents(config)

    def poisoned(clips_BCFHW):
        return [{"latents": torch.full((16, 2, 6, 8), float("nan"))} for _ in clips_BCFHW]

    with pytest.raises(DataError, match="NaN"):
        latents(config, identity="vae-2", encode=poisoned)
    names = cache.latent_files(config.datasets[0].cache_directory, "wan", video=True)
    assert [fingerprints.read(name.path).in_use for name in names] == [False, False]


def test_nan_latents_are_reported_like_a_broken_clip(tmp_path):
    """The reference warns, writes zeros in their place, and trains on them."""
    config = make_dataset(tmp_path)
    count = iter(range(100))

    def poisoned(clips_BCFHW):
        results = encode_clips(clips_BCFHW)
        if next(count) == 1:
            results[0]["latents"] = results[0]["latents"] * float("nan")
        return results

    heard = Heard()
    report = latents(config, say=heard, encode=poisoned)
    assert (report.done, len(report.failed)) == (2, 1)
    assert "NaN" in heard.warnings[0]
    assert len(cache_names(config, "*.safetensors")) == 2


def test_an_encoder_that_refuses_one_clip_of_a_batch_loses_only_that(tmp_path):
    config = make_dataset(tmp_path, clips=4)

    def picky(clips_BCFHW):
        darkest = clips_BCFHW.mean((1, 2, 3, 4)).argmin()
        if len(clips_BCFHW) > 1 or refused.pop("one", None):
            raise DataError(f"clip {darkest} has too few frames.")
        return encode_clips(clips_BCFHW)

    refused = {"one": True}
    report = latents(config, encode=picky, batch_size=4)
    assert (report.done, len(report.failed)) == (3, 1)


def test_images_and_videos_are_cached_in_one_run(tmp_path):
    config = make_dataset(tmp_path, clips=1)
    draw_image(tmp_path / "images" / "a.png", size=(80, 60))
    (tmp_path / "images" / "a.txt").write_text("a picture")
    image = replace(
        config.datasets[0],
        index=1,
        kind="image",
        source_directory=tmp_path / "images",
        cache_directory=tmp_path / "images",
    )
    config = replace(config, datasets=(*config.datasets, image))
    assert latents(config).done == 2
    header = cache.read_header(tmp_path / "images" / "a_0080x0060_wan.safetensors")
    assert header.shapes == {"latents_1x6x8_bfloat16": (16, 1, 6, 8)}
    assert (header.metadata["width"], header.metadata.get("frame_count")) == ("80", None)


def test_a_clip_may_become_several_sections(tmp_path):
    config = make_dataset(tmp_path, clips=1, target_frames=[9])

    def sections(clips_BCFHW):
        return [[{"latents": torch.full((16, 1, 6, 8), float(n))} for n in range(2)] for _ in clips_BCFHW]

    report = latents(config, encode=sections, cut=lambda window: (4, (window.count - 1) // 4))
    assert report.done == 1
    assert cache_names(config, "*.safetensors") == [
        f"clip_0_00000-009-{n:04d}_0064x0048_wan.safetensors" for n in range(2)
    ]
    assert latents(config, encode=sections, cut=lambda window: (4, (window.count - 1) // 4)).skipped == 1
    (config.datasets[0].cache_directory / cache_names(config, "*.safetensors")[1]).unlink()
    assert latents(config, encode=sections, cut=lambda window: (4, (window.count - 1) // 4)).done == 1


def test_controls_reach_the_encoder_only_when_asked_for(tmp_path):
    make_dataset(tmp_path, clips=2)
    for number in range(2):
        draw_item(tmp_path / "controls", f"clip_{number}.mp4", first_number=7)
    config = write_config(tmp_path, control_directory=str(tmp_path / "controls"))
    assert latents(config).done == 2

    def with_controls(clips_BCFHW, *, controls):
        (control_BCFHW,) = controls
        assert control_BCFHW.shape == clips_BCFHW.shape
        return encode_clips(clips_BCFHW)

    assert latents(config, encode=with_controls, use_controls=True, batch_size=2).done == 2


def image_config(tmp_path, **settings):
    """Two images, each with a control of which only the first has an alpha channel."""
    for number in range(2):
        draw_image(tmp_path / "images" / f"{number}.png", number=number).with_suffix(".txt").write_text("x")
        control = draw_image(tmp_path / "controls" / f"{number}.png", number=number)
    with Image.open(tmp_path / "controls" / "0.png") as image:
        image.putalpha(51)
        image.save(tmp_path / "controls" / "0.png")
    lines = [
        "[[datasets]]", f'image_directory = "{tmp_path / "images"}"', f'control_directory = "{control.parent}"',
        f'cache_directory = "{tmp_path / "cache"}"', 'caption_extension = ".txt"', "resolution = [64, 48]",
        *(f"{name} = {value}" for name, value in settings.items()),
    ]  # fmt: skip
    (tmp_path / "images.toml").write_text("\n".join(lines))
    return load_config(tmp_path / "images.toml")


def run(config, encode):
    recipe, rules, _ = given({"identity": "v", "native_fps": 16.0, "use_controls": True})
    return pipeline.cache_latents(config, recipe, rules, encode=encode, say=Heard(), control=Control(), batch_size=2)


def test_the_encoder_is_told_the_dataset_and_the_alpha_of_controls(tmp_path):
    seen = []

    def encode(batch):
        seen.append(batch)
        return encode_clips(batch.frames_BCFHW)

    config = image_config(tmp_path, fp_1f_clean_indices="[0]", fp_1f_target_index=1)
    assert run(config, encode).done == 2
    assert [batch.dataset for batch in seen] == [config.datasets[0]] * 2  # with and without alpha: two batches
    alphas = sorted((batch.alphas_BHW[0] for batch in seen), key=lambda alpha: alpha is None)
    assert alphas[0].shape == (1, 48, 64) and (alphas[0] - 0.2).abs().max() < 1e-6 and alphas[1] is None


def test_other_places_in_time_make_caches_stale(tmp_path):
    """The places are part of one-frame caches; musubi-tuner keeps caches made with others."""
    assert run(image_config(tmp_path, fp_1f_clean_indices="[0]", fp_1f_target_index=1), encode_frames).done == 2
    changed = image_config(tmp_path, fp_1f_clean_indices="[0]", fp_1f_target_index=9)
    report = run(changed, encode_frames)
    assert (report.done, report.skipped) == (2, 0)


def encode_frames(batch):
    return encode_clips(batch.frames_BCFHW)


def test_planning_shows_progress_when_it_takes_long(tmp_path, monkeypatch):
    config = make_dataset(tmp_path)
    monkeypatch.setattr("engine.data.survey.QUIET_S", 0.0)
    heard = Heard()
    latents(config, say=heard)
    assert [event.done for event in heard.progress if event.label == "looking at files"][-1] == 3


def test_no_file_of_the_source_folder_is_touched(tmp_path):
    config = make_dataset(tmp_path)
    before = {path: (path.read_bytes(), os.stat(path).st_mtime_ns) for path in (tmp_path / "videos").iterdir()}
    latents(config)
    texts(config)
    assert {path: (path.read_bytes(), os.stat(path).st_mtime_ns) for path in (tmp_path / "videos").iterdir()} == before


# ---------------------------------------------------------------------------------------------------------- text


def test_equal_captions_are_encoded_once_and_batches_span_datasets(tmp_path):
    configs = [make_dataset(tmp_path / name, clips=3) for name in ("a", "b")]
    datasets = (configs[0].datasets[0], replace(configs[1].datasets[0], index=1))
    config = replace(configs[0], datasets=datasets)
    batches = []

    def noting(captions):
        batches.append(captions)
        return caching.encode_captions(captions)

    report = texts(config, encode=noting, batch_size=2)
    assert report.done == 6
    assert sorted(sum(batches, [])) == ["clip 0", "clip 1", "clip 2"]
    assert [len(batch) for batch in batches] == [2, 1]
    assert texts(config, encode=noting).skipped == 6


def test_a_changed_caption_is_encoded_again(tmp_path):
    """The reference keeps the old one."""
    config = make_dataset(tmp_path)
    texts(config)
    (tmp_path / "videos" / "clip_1.txt").write_text("something else")
    assert texts(config).done == 1
    path = config.datasets[0].cache_directory / "clip_1_wan_te.safetensors"
    assert cache.read_header(path).metadata["caption1"] == "something else"
    assert texts(config, identity="t5-2").done == 3


def test_captions_that_the_encoder_does_not_read_to_their_end_are_told_once_a_dataset(tmp_path):
    configs = [make_dataset(tmp_path / name, clips=4) for name in ("a", "b", "c")]
    datasets = tuple(replace(config.datasets[0], index=index) for index, config in enumerate(configs))
    for name, number, words in (("a", 1, 7), ("a", 2, 9), ("b", 0, 6), ("c", 0, 5)):
        (tmp_path / name / "videos" / f"clip_{number}.txt").write_text("word " * words)
    heard = Heard()
    texts(replace(configs[0], datasets=datasets), count=partial(caching.count_words, limit=5), say=heard)
    assert heard.warnings == [
        f"{datasets[0].table}: 2 captions are longer than the text encoder reads (clip_1.mp4, clip_2.mp4). The first "
        "has 7 tokens, of which only 5 are read. Shorten such captions, or put the important "
        "words first.",
        f"{datasets[1].table}: 1 caption is longer than the text encoder reads (clip_0.mp4). It has "
        "6 tokens, of which only 5 are read. Shorten such captions, or put the important "
        "words first.",
    ]


def test_no_tokens_are_counted_where_no_caption_is_encoded(tmp_path):
    """It would load the text encoder."""
    config = make_dataset(tmp_path)
    texts(config)
    assert texts(config, count=None).skipped == 3
