"""What is trained on, in which batches, and what a batch looks like."""

from __future__ import annotations

import json
import random
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.contract.errors import DataError
from engine.contract.events import Progress
from engine.data import batches, cache, collate
from engine.data.batches import Batch, BatchSampler, TrainItem, load_items, stratified
from engine.data.collate import Loader

from ..clips import draw_item
from .caching import Heard, encode_clips, latents, make_dataset, texts, write_config


def load(config, heard=None) -> list[TrainItem]:
    return load_items(config, architecture="wan", say=Heard() if heard is None else heard)


def cached(folder: Path, **settings):
    config = make_dataset(folder, **settings)
    latents(config)
    texts(config)
    return config


# ----------------------------------------------------------------------------------------------- finding the items


def test_all_current_caches_are_found(tmp_path):
    config = cached(tmp_path, frames=20, frame_extraction="chunk", target_frames=[5, 9], num_repeats=3)
    items = load(config)
    assert len(items) == 3 * 6
    assert {item.key[:3] for item in items} == {(8, 6, 2), (8, 6, 3)}
    assert all(item.repeats == 3 for item in items)
    assert {item.text_path.name for item in items} == {f"clip_{n}_wan_te.safetensors" for n in range(3)}


def test_items_and_batches_know_whether_they_preserve_the_prior(tmp_path):
    for preserving in (False, True):
        items = load(cached(tmp_path / str(preserving), preserve_prior=preserving))
        assert {item.preserves_prior for item in items} == {preserving}
        sampler = BatchSampler(items, batch_sizes=[2], seed=0)
        assert sampler.preserves_prior is preserving
        assert [collate.collate(batch).get("prior", False) for batch in sampler.epoch(0)] == [preserving] * 2


def test_many_caches_are_told_as_they_are_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "QUIET_S", 0.0)
    config, said = cached(tmp_path), []
    load_items(config, architecture="wan", say=said.append)
    last = [event for event in said if isinstance(event, Progress)][-1]
    assert (last.done, last.total, last.unit, last.label) == (3, 3, "caches", "Reading the dataset")


def test_sources_may_be_gone(tmp_path):
    config = cached(tmp_path)
    for path in (tmp_path / "videos").iterdir():
        path.unlink()
    assert len(load(config)) == 3
    (tmp_path / "videos").rmdir()
    assert len(load(config)) == 3


def test_clips_that_came_or_went_since_caching_are_told(tmp_path):
    """The reference trains on the cache folder without a look at the dataset."""
    config = cached(tmp_path)
    draw_item(tmp_path / "videos", "new.mp4", caption="new", first_number=5000)
    (tmp_path / "videos" / "clip_0.mp4").unlink()
    heard = Heard()
    assert len(load(config, heard)) == 3
    came, went = heard.warnings
    assert "Clips without a latent cache are not trained on (1): new.mp4. Run" in came
    assert "are trained on although they are no longer in the dataset (1): clip_0. Run" in went
    latents(config)
    texts(config)
    heard = Heard()
    assert len(load(config, heard)) == 3 and heard.warnings == []


def test_caches_of_the_reference_have_no_fingerprint_and_train(tmp_path):
    config = cached(tmp_path)
    for sidecar in (tmp_path / "cache").glob("*.json"):
        sidecar.unlink()
    heard = Heard()
    assert len(load(config, heard)) == 3 and heard.warnings == []
    (tmp_path / "videos" / "clip_1.txt").write_text("another caption")
    assert len(load(config, heard)) == 3
    assert "clip_1_wan_te.safetensors" in heard.warnings[0]


def test_changed_settings_are_refused_with_the_command_to_run(tmp_path):
    """The reference trains on whatever lies in the cache folder."""
    cached(tmp_path, target_frames=[5])
    config = write_config(tmp_path, target_frames=[9], batch_size=2)
    with pytest.raises(DataError) as raised:
        load(config)
    assert "3 latent caches are out of date" in raised.value.message
    assert "target_frames was [5], is [9]" in raised.value.message
    assert "cache-latents wan --dataset_config" in raised.value.hint


def test_a_changed_source_is_refused(tmp_path):
    config = cached(tmp_path)
    draw_item(tmp_path / "videos", "clip_2.mp4", caption="clip 2", first_number=5000)
    with pytest.raises(DataError, match="clip_2_.*The first: clip_2.mp4 has changed"):
        load(config)


def test_controls_that_are_gone_are_noticed(tmp_path):
    make_dataset(tmp_path, clips=1)
    draw_item(tmp_path / "controls", "clip_0.mp4", first_number=7)
    config = write_config(tmp_path, control_directory=str(tmp_path / "controls"))
    latents(config, encode=lambda clips_BCFHW, controls: encode_clips(clips_BCFHW), use_controls=True)
    texts(config)
    assert len(load(config)) == 1
    with pytest.raises(DataError, match="number of controls of clip_0.mp4 was 1 when it was cached, and is 0 now"):
        load(write_config(tmp_path))
    latents(write_config(tmp_path))
    assert len(load(config)) == 1  # cached by a command that wants none


def test_a_changed_caption_is_refused(tmp_path):
    config = cached(tmp_path)
    (tmp_path / "videos" / "clip_0.txt").write_text("new words")
    with pytest.raises(DataError, match="1 text cache is out of date.*caption of clip_0.mp4 has changed") as raised:
        load(config)
    assert "cache-text wan" in raised.value.hint


def test_leftovers_of_other_settings_are_not_trained_on(tmp_path):
    cached(tmp_path, target_frames=[5])
    config = write_config(tmp_path, target_frames=[9])
    latents(config, keep_cache=True)
    heard = Heard()
    assert {item.key[2] for item in load(config, heard)} == {3}
    assert any("3 latent caches made with other settings" in message for message in heard.logs)


def test_a_run_cut_short_between_two_models_is_refused(tmp_path):
    config = cached(tmp_path)
    latents(replace(config, datasets=(replace(config.datasets[0]),)), identity="vae-2")
    path = next((tmp_path / "cache").glob("clip_0_0*.fingerprint.json"))
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "model": "vae-1"}))
    with pytest.raises(DataError, match="2 different models"):
        load(config)


@pytest.mark.parametrize("kind", ["latents", "text"])
def test_damaged_caches_are_refused(tmp_path, kind):
    config = cached(tmp_path)
    path = next(
        (tmp_path / "cache").glob("clip_1_0*.safetensors" if kind == "latents" else "clip_1_wan_te*.safetensors")
    )
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(DataError, match="out of date or damaged"):
        load(config)
    latents(config)
    texts(config)
    assert len(load(config)) == 3


def test_latents_without_text_are_left_out_and_named(tmp_path):
    config = cached(tmp_path)
    cache.remove(tmp_path / "cache" / "clip_1_wan_te.safetensors")
    heard = Heard()
    assert len(load(config, heard)) == 2
    (told,) = heard.warnings
    assert told.startswith("1 latent cache is left out for lack of a text cache: clip_1_wan_te.safetensors. Run `")
    assert "cache-text wan" in told


def test_nothing_at_all_names_the_command(tmp_path):
    config = make_dataset(tmp_path)
    with pytest.raises(DataError, match="no latent caches") as raised:
        load(config)
    assert "cache-latents wan" in raised.value.hint
    latents(config)
    with pytest.raises(DataError, match="None of the 3 latent caches has a text cache") as raised:
        load_items(config, architecture="wan", family="wan", say=(heard := Heard()))
    assert "cache-text wan" in raised.value.hint
    assert not any("lack of a text cache" in text for text in heard.warnings)  # the error says it


def test_the_bucket_is_that_of_the_tensors_not_of_the_file_name(tmp_path):
    """The reference chooses a video's bucket by other rules in caching than in training, so keys and tensors differ."""
    config = cached(tmp_path, size=(48, 64), resolution=[64, 64])
    for path in (tmp_path / "cache").glob("*_0064x0064_wan.safetensors"):
        path.rename(path.with_name(path.name.replace("0064x0064", "0048x0080")))
    for path in (tmp_path / "cache").glob("*.json"):
        path.unlink()
    assert {item.key[:3] for item in load(config)} == {(8, 8, 2)}


def test_items_with_and_without_controls_come_in_batches_of_their_own(tmp_path):
    """The reference sorts bucket keys of different lengths and kinds, which fails where only some have a control."""
    config = cached(tmp_path)
    for number, controls in enumerate([(), ("latents_control",), ("latents_control", "latents_image")]):
        tensors = {name: torch.zeros(16, 2, 6, 8) for name in ("latents", *controls)}
        path = tmp_path / "cache" / f"clip_{number}_00000-005_0064x0048_wan.safetensors"
        cache.write_latents(path, tensors, architecture="wan", width=64, height=48, frame_count=5)
    for path in (tmp_path / "cache").glob("*_wan.fingerprint.json"):
        path.unlink()
    found = BatchSampler(load(config), batch_sizes=[3], seed=1).epoch(0)
    assert sorted(len(batch.items) for batch in found) == [1, 1, 1]


def test_a_latent_cache_without_latents_is_damaged(tmp_path):
    config = cached(tmp_path)
    path = tmp_path / "cache" / "clip_0_00000-005_0064x0048_wan.safetensors"
    cache.write_latents(path, {"clip": torch.zeros(2)}, architecture="wan", width=1, height=1, frame_count=5)
    with pytest.raises(DataError, match="holds no latents"):
        load(config)


# ------------------------------------------------------------------------------------------------- forming batches


def item(name: str, *, key=(8, 6, 2), dataset=0, repeats=1) -> TrainItem:
    return TrainItem(latent_path=Path(name), text_path=Path(f"{name}_te"), dataset=dataset, key=key, repeats=repeats)


def many(count: int) -> list[TrainItem]:
    return [item(f"{n}", key=(8, 6, 2 + n % 3), dataset=n % 2, repeats=1 + n % 2) for n in range(count)]


def names(found: list[Batch]) -> list[tuple[str, ...]]:
    return [tuple(one.latent_path.name for one in batch.items) for batch in found]


@given(count=st.integers(1, 40), size=st.integers(1, 5), world=st.integers(1, 4), epoch=st.integers(0, 3))
def test_every_epoch_holds_every_item_once_over_all_ranks(count, size, world, epoch):
    items = many(count)
    samplers = [BatchSampler(items, batch_sizes=[size, 2], seed=7, rank=rank, world=world) for rank in range(world)]
    per_rank = [sampler.epoch(epoch) for sampler in samplers]
    seen = Counter(one for found in per_rank for batch in found for one in batch.items)
    assert seen == Counter({one: one.repeats for one in items})
    assert {sum(map(len, per_rank))} == {len(sampler) for sampler in samplers}
    assert max(map(len, per_rank)) - min(map(len, per_rank)) <= 1
    assert samplers[0].num_items == sum(seen.values())
    row = samplers[0].together(epoch)
    assert (
        row
        == samplers[-1].together(epoch)
        == [found[n] for n in range(len(row)) for found in per_rank if n < len(found)]
    )
    for batch in (batch for found in per_rank for batch in found):
        assert len({(one.dataset, one.key) for one in batch.items}) == 1
        assert 1 <= len(batch.items) <= [size, 2][batch.items[0].dataset]


def test_an_epoch_depends_on_seed_and_epoch_alone():
    items = many(30)
    sampler = BatchSampler(items, batch_sizes=[2, 2], seed=1, num_timestep_buckets=5)
    shuffled = random.Random(3).sample(items, len(items))
    again = BatchSampler(shuffled, batch_sizes=[2, 2], seed=1, num_timestep_buckets=5)
    assert sampler.epoch(4) == again.epoch(4)
    assert names(sampler.epoch(4)) != names(sampler.epoch(5))
    other = BatchSampler(items, batch_sizes=[2, 2], seed=2)
    assert names(other.epoch(1)) != names(sampler.epoch(2))  # the reference adds seed and epoch, so these are equal


def test_an_epoch_goes_on_in_the_middle():
    """The reference starts a resumed run with the first batch of the first epoch."""
    sampler = BatchSampler(many(30), batch_sizes=[2, 2], seed=1, num_timestep_buckets=5)
    assert sampler.epoch(3)[4:] == sampler.epoch(3, position=4)


def test_a_place_in_an_epoch_is_the_same_for_any_number_of_ranks():
    """Eight batches are done, by one rank or by two: the second of two goes on with the tenth."""
    ranks = [BatchSampler(many(30), batch_sizes=[2, 2], seed=1, rank=rank, world=2) for rank in (0, 1)]
    row = ranks[0].together(3)
    assert ranks[1].epoch(3, position=8) == ranks[1].epoch(3)[4:] == row[9::2]
    assert ranks[0].epoch(3, position=8) == row[8::2]


def test_partial_batches_are_kept():
    sampler = BatchSampler([item(f"{n}") for n in range(7)], batch_sizes=[3], seed=1)
    assert sorted(len(batch.items) for batch in sampler.epoch(0)) == [1, 3, 3]
    assert len(sampler) == 3


@given(count=st.integers(0, 50), strata=st.integers(1, 12), seed=st.integers(0, 9))
def test_timesteps_are_drawn_evenly(count, strata, seed):
    values = stratified(count, strata, random.Random(seed))
    counts = [sum(part <= value * strata < part + 1 for value in values) for part in range(strata)]
    assert len(values) == sum(counts) == count
    assert max(counts) - min(counts) <= 1


def test_the_timestep_pool_spans_all_ranks_and_changes_each_epoch():
    ranks = [
        BatchSampler(many(40), batch_sizes=[3, 2], seed=1, num_timestep_buckets=10, rank=r, world=2) for r in (0, 1)
    ]
    pool = [value for rank in ranks for batch in rank.epoch(0) for value in batch.timesteps]
    assert len(pool) == ranks[0].num_items
    assert min(Counter(int(value * 10) for value in pool).values()) >= len(pool) // 10
    assert all(len(batch.timesteps) == len(batch.items) for rank in ranks for batch in rank.epoch(0))
    assert pool != [value for rank in ranks for batch in rank.epoch(1) for value in batch.timesteps]
    for off in (None, 0, 1):
        assert BatchSampler(many(4), batch_sizes=[1, 1], seed=1, num_timestep_buckets=off).epoch(0)[0].timesteps is None


# --------------------------------------------------------------------------------------------------------- tensors


def test_a_batch_has_plain_names_and_lists_for_varlen(tmp_path):
    items = []
    for number in range(2):
        path = tmp_path / f"c{number}_00000-005_0064x0048_wan.safetensors"
        tensors = {
            "latents": torch.full((16, 2, 6, 8), number).bfloat16(),
            "latents_image": torch.full((20, 2, 6, 8), number).bfloat16(),
            "clip_bfloat16": torch.zeros(257, 8).half(),
            "f_indices": torch.arange(2, dtype=torch.int32),
        }
        cache.write_latents(path, tensors, architecture="wan", width=64, height=48, frame_count=5)
        text = tmp_path / f"c{number}_wan_te.safetensors"
        tensors = {"varlen_t5": torch.full((3 + number, 4), number).bfloat16(), "llm_mask": torch.ones(6)}
        cache.write_text(text, tensors, architecture="wan", caption="x")
        items.append(replace(item("x"), latent_path=path, text_path=text))
    batch = collate.collate(Batch(tuple(items), (0.25, 0.75)))
    assert set(batch) == {"latents", "latents_image", "clip", "f_indices", "t5", "llm_mask", "timesteps"}
    assert batch["latents"].shape == (2, 16, 2, 6, 8) and batch["latents"].dtype == torch.bfloat16
    assert batch["latents"][:, 0, 0, 0, 0].tolist() == [0, 1]
    assert batch["clip"].dtype == torch.float16 and batch["llm_mask"].shape == (2, 6)
    assert [tuple(value.shape) for value in batch["t5"]] == [(3, 4), (4, 4)]
    assert batch["timesteps"].tolist() == [0.25, 0.75]
    assert "timesteps" not in collate.collate(Batch(tuple(items)))
    assert "image" not in collate.collate(Batch(tuple(items[:1])))


def test_items_that_do_not_fit_together_are_named(tmp_path):
    items = []
    for number, tensors in enumerate([{"latents": torch.zeros(16, 2, 6, 8)}, {"latents": torch.zeros(16, 3, 6, 8)}]):
        path = tmp_path / f"c{number}.safetensors"
        cache.write_latents(path, tensors, architecture="wan", width=1, height=1, frame_count=5)
        items.append(replace(item("x"), latent_path=path, text_path=path))
    with pytest.raises(DataError, match="c0.safetensors, c1.safetensors"):
        collate.collate(Batch(tuple(items)))


def test_the_loader_gives_batches_in_order_and_reads_little_ahead(tmp_path, monkeypatch):
    config = cached(tmp_path, frames=20, frame_extraction="chunk")
    sampler = BatchSampler(load(config), batch_sizes=[1], seed=1)
    whole, read = collate.collate, []

    def noting(batch, **options):
        read.append(batch)
        return {**whole(batch, **options), "name": batch.items[0].latent_path.name}

    monkeypatch.setattr(collate, "collate", noting)
    loader = Loader(sampler, workers=2, prefetch=3)
    stream = loader.epoch(0)
    first = next(stream)
    assert len(read) <= 4
    found = [first["name"]] + [batch["name"] for batch in stream]
    assert found == [batch.items[0].latent_path.name for batch in sampler.epoch(0)]
    assert [batch["name"] for batch in loader.epoch(0, position=5)] == found[5:]
    assert len(loader) == 12


def test_an_abandoned_loader_leaves_no_threads(tmp_path):
    config = cached(tmp_path)
    before = set(threading.enumerate())
    stream = Loader(BatchSampler(load(config), batch_sizes=[1], seed=1)).epoch(0)
    next(stream)
    stream.close()
    assert set(threading.enumerate()) == before


def test_a_cache_that_breaks_during_training_is_named(tmp_path):
    config = cached(tmp_path, clips=1)
    sampler = BatchSampler(load(config), batch_sizes=[1], seed=1)
    path = tmp_path / "cache" / "clip_0_wan_te.safetensors"
    path.write_bytes(b"gone")
    with pytest.raises(DataError, match="clip_0_wan_te.safetensors is damaged"):
        list(Loader(sampler).epoch(0))
    path.unlink()
    with pytest.raises(DataError, match="clip_0_wan_te.safetensors"):
        list(Loader(sampler).epoch(0))


def test_the_largest_size_counts_area_first_and_then_how_often_it_occurs():
    def item(name: str, width: int, height: int, repeats: int = 1) -> TrainItem:
        key = (width, height, 1)
        return TrainItem(latent_path=Path(name), text_path=Path(name), dataset=0, key=key, repeats=repeats)

    items = [item("a", 4, 6), item("b", 6, 4, repeats=2), item("c", 2, 3, repeats=9)]
    assert BatchSampler(items, batch_sizes=[1], seed=0).largest_size == (6, 4)
    assert BatchSampler([*items, item("d", 5, 5)], batch_sizes=[1], seed=0).largest_size == (5, 5)
