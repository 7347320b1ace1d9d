"""Several who cache one dataset: threads stand for the processes, a store in memory for the one they meet in."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import HashStore

from engine.contract.errors import DataError, ProcessLost, Stopped
from engine.contract.events import Control, Progress
from engine.data import cache, company, fingerprints
from engine.data.company import Company, meet
from engine.data.config import DatasetConfig
from engine.data.pipeline import WINDOWS_OF_A_PIECE, cache_latents
from engine.data.report import CacheReport
from engine.data.survey import Recipe, Rules
from engine.data.text_pipeline import cache_text

from .caching import (
    Heard,
    cache_names,
    count_words,
    encode_captions,
    encode_clips,
    given,
    in_time,
    latents,
    make_dataset,
    texts,
)

WAIT_S = 10.0
Encode = Callable[[int, Any], object]
"""Called with the number of the process and what it shall encode."""


class Together:
    """Two (or more) processes that do the same command. `encoded` says which of them has encoded what.

    `wait`: for each other before the first is encoded; else one may be done before the others have begun.
    """

    def __init__(
        self,
        config: DatasetConfig,
        *,
        count: int = 2,
        encode: Encode | None = None,
        wait: bool = True,
        **options: Any,
    ):
        self.config, self.count, self.options = config, count, options
        self.heard, self.control = Heard(), Control()
        self.encoded: list[tuple[int, Any]] = []
        self.failures: dict[int, BaseException] = {}
        self._encode = encode or (lambda number, given: None)
        self._lock, self._all_at_work = threading.Lock(), threading.Barrier(count)
        self._begun: set[int] = set() if wait else set(range(count))

    def latents(self) -> CacheReport:
        def one(number: int, some: Company) -> CacheReport:
            def encode(batch):
                names = [float(clip.sum()) for clip in batch.frames_BCFHW]
                return self._counted(number, names, lambda: encode_clips(batch.frames_BCFHW))

            recipe, rules, options = self._common(number, some, "vae-1", native_fps=16.0)
            return cache_latents(self.config, recipe, rules, encode=encode, **options)

        return self._run(one)

    def texts(self) -> CacheReport:
        def one(number: int, some: Company) -> CacheReport:
            def encode(captions):
                return self._counted(number, captions, lambda: encode_captions(captions))

            recipe, rules, options = self._common(number, some, "t5-1")
            return cache_text(self.config, recipe, rules, encode=encode, count=count_words, **options)

        return self._run(one)

    def _common(self, number: int, some: Company, identity: str, **more: Any) -> tuple[Recipe, Rules, dict[str, Any]]:
        control, say = Control() if number else self.control, self._others_are_silent(number)
        return given({"identity": identity, "company": some, "control": control, "say": say, **more, **self.options})

    def _others_are_silent(self, number: int):
        return (lambda event: None) if number else self.heard

    def _counted(self, number: int, names: list[Any], encode: Callable[[], Any]) -> Any:
        if number not in self._begun:
            self._begun.add(number)
            self._all_at_work.wait(WAIT_S)
        self._encode(number, names)
        with self._lock:
            self.encoded += [(number, name) for name in names]
        return encode()

    def _run(self, one: Callable[[int, Company], CacheReport]) -> CacheReport:
        store = HashStore()

        def process(number: int) -> CacheReport | None:
            try:
                with Company(store, number=number, count=self.count) as some:
                    return one(number, some)
            except BaseException as failure:
                self.failures[number] = failure
                self._all_at_work.abort()
                return None

        def all_of_them() -> CacheReport:
            others = [threading.Thread(target=process, args=(number,)) for number in range(1, self.count)]
            for thread in others:
                thread.start()
            report = process(0)
            for thread in others:
                thread.join(WAIT_S)
                assert not thread.is_alive()
            if 0 in self.failures:
                raise self.failures[0]
            assert report is not None
            return report

        return in_time(all_of_them)

    @property
    def at_work(self) -> set[int]:
        return {number for number, _ in self.encoded}


def contents(config: DatasetConfig) -> dict[str, bytes]:
    folder = config.datasets[0].cache_directory
    return {name: (folder / name).read_bytes() for name in cache_names(config)}


def both(config: DatasetConfig, **options: Any) -> list[Together]:
    """Latents and texts made together."""
    made = [Together(config, workers=1, **options), Together(config, batch_size=1, **options)]
    made[0].latents()
    made[1].texts()
    return made


def test_the_files_are_those_of_one_process_byte_for_byte_and_nothing_is_encoded_twice(tmp_path: Path) -> None:
    config = make_dataset(tmp_path / "a", clips=6, frames=20, frame_extraction="chunk")
    latents(config)
    texts(config)
    alone = contents(config)
    for path in config.datasets[0].cache_directory.iterdir():
        path.unlink()
    for some, count in zip(both(config, count=3), (24, 6), strict=True):
        assert some.at_work == {0, 1, 2} and len(some.encoded) == len({name for _, name in some.encoded}) == count
        last = [event for event in some.heard if isinstance(event, Progress)][-1]
        assert (last.done, last.total) == (count, count), "one bar for the whole"
    assert contents(config) == alone


def test_what_is_fresh_is_skipped_by_all_and_orphans_are_removed_once_all_is_done(tmp_path: Path) -> None:
    config = make_dataset(tmp_path, clips=4, frames=20, frame_extraction="chunk")
    latents(config)
    texts(config)
    assert (latents(config).skipped, texts(config).skipped) == (16, 4)
    (tmp_path / "videos" / "clip_0.mp4").rename(tmp_path / "clip_0.mp4")
    for name in ("clip_1_00000-005_0064x0048_wan", "clip_2_00005-005_0064x0048_wan", "clip_3_wan_te"):
        (tmp_path / "cache" / f"{name}.safetensors").unlink()
    some = Together(config, workers=1, wait=False)
    report = some.latents()
    assert (report.done, report.skipped, report.purged) == (2, 10, 4) and len(some.encoded) == 2


def test_with_nothing_to_do_all_end_at_once(tmp_path: Path) -> None:
    config = make_dataset(tmp_path, clips=1)
    latents(config)
    some = Together(config)
    assert some.latents().skipped == 1 and not some.encoded and not some.failures


def test_one_long_video_is_work_for_several(tmp_path: Path) -> None:
    config = make_dataset(tmp_path, clips=1, frames=5 * 3 * WINDOWS_OF_A_PIECE, frame_extraction="chunk")
    some = Together(config, workers=1)
    assert some.latents().done == 3 * WINDOWS_OF_A_PIECE and some.at_work == {0, 1}


def test_what_another_leaves_out_is_told_counted_and_not_trained_on(tmp_path: Path) -> None:
    """A stale cache that could not be made again is retired by number 0, whoever failed to make it."""
    config = make_dataset(tmp_path, clips=4)
    latents(config, identity="older-vae")

    def refuse(number: int, names: list[Any]) -> None:
        if number == 1:
            raise DataError("a clip that cannot be encoded")

    some = Together(config, workers=1, encode=refuse)
    report = some.latents()
    assert report.failed and report.done + len(report.failed) == 4 and some.at_work == {0}
    assert len(some.heard.warnings) == len(report.failed) and "cannot be encoded" in some.heard.warnings[0]
    for failure in report.failed:
        left = cache.latent_files(tmp_path / "cache", "wan", video=True)
        (path,) = (name.path for name in left if name.stem == failure.path.stem)
        found = fingerprints.read(path)
        assert found is not None and not found.in_use


def test_a_caption_that_another_leaves_out_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_dataset(tmp_path, clips=3)
    write = cache.write_text

    def refuse(path, *arguments, **facts):
        if path.name.startswith("clip_1"):
            raise DataError(f"{path.name} holds NaN.")
        write(path, *arguments, **facts)

    monkeypatch.setattr(cache, "write_text", refuse)
    some = Together(config, batch_size=1)
    report = some.texts()
    assert [failure.path.stem for failure in report.failed] == ["clip_1"] and report.done == 2
    assert "holds NaN" in some.heard.warnings[0]


def test_strict_ends_all_with_the_first_file_that_another_cannot_encode(tmp_path: Path) -> None:
    config = make_dataset(tmp_path, clips=6)

    def refuse(number: int, names: list[Any]) -> None:
        if number == 1:
            raise DataError("a clip that cannot be encoded")

    some = Together(config, workers=1, strict=True, encode=refuse)
    with pytest.raises(DataError, match="cannot be encoded"):
        some.latents()
    assert set(some.failures) == {0}  # the other was told to end


@pytest.mark.parametrize("what", ["latents", "texts"])
def test_a_failure_of_one_ends_all_and_is_told_by_number_0(tmp_path: Path, what: str) -> None:
    config = make_dataset(tmp_path, clips=8)

    def fail(number: int, names: list[Any]) -> None:
        if number == 1:
            raise KeyError("seven")

    options = {"workers": 1} if what == "latents" else {"batch_size": 1}
    some = Together(config, encode=fail, **options)
    with pytest.raises(ProcessLost, match="KeyError: 'seven'"):
        getattr(some, what)()
    assert isinstance(some.failures[1], KeyError)


def test_a_failure_of_number_0_ends_the_others(tmp_path: Path) -> None:
    config = make_dataset(tmp_path, clips=8)

    def fail(number: int, names: list[Any]) -> None:
        if number == 0:
            raise KeyError("seven")

    some = Together(config, workers=1, encode=fail)
    with pytest.raises(KeyError):
        some.latents()
    assert set(some.failures) == {0}


@pytest.mark.parametrize("what", ["latents", "texts"])
def test_a_stop_ends_all_and_saves_what_all_have_encoded(tmp_path: Path, what: str) -> None:
    config = make_dataset(tmp_path, clips=16)
    (tmp_path / "cache").mkdir()
    stray = tmp_path / "cache" / ("gone_00000-005_0064x0048_wan.safetensors")
    stray.touch()

    def stop(number: int, names: list[Any]) -> None:
        some.control.request_stop()
        threading.Event().wait(2 * company.POLL_S if number else 0)

    options = {"workers": 1} if what == "latents" else {"batch_size": 1}
    some = Together(config, encode=stop, **options)
    with pytest.raises(Stopped, match=r"Stopped with \d+ of 16"):
        getattr(some, what)()
    assert some.at_work == {0, 1} and set(some.failures) == {0}
    pattern = "*_te.safetensors" if what == "texts" else "clip*_wan.safetensors"
    assert len(cache_names(config, pattern)) == len(some.encoded) < 16 and stray.exists()


def test_a_stop_before_anything_is_shared_out_ends_all(tmp_path: Path) -> None:
    some = Together(make_dataset(tmp_path))
    some.control.request_stop()
    with pytest.raises(Stopped):
        some.latents()
    assert set(some.failures) == {0} and not some.encoded


def test_a_clip_that_is_gone_when_another_looks_is_one_clear_error(tmp_path: Path, monkeypatch) -> None:
    failed = threading.Event()
    some = Together(
        make_dataset(tmp_path, clips=8),
        encode=lambda number, names: failed.wait(WAIT_S),
        wait=False,
        workers=1,
    )
    share_out, leave = Company.share_out, Company.__exit__

    def late(self: Company, pieces, *, describe):
        return share_out(self, pieces, describe=lambda piece: {**describe(piece), "source": (0, "gone.mp4")})

    def leaving(self: Company, *how: Any) -> None:
        leave(self, *how)
        failed.set()

    monkeypatch.setattr(Company, "share_out", late)
    monkeypatch.setattr(Company, "__exit__", leaving)
    with pytest.raises(ProcessLost, match=r"gone\.mp4 has disappeared from the dataset"):
        some.latents()
    assert isinstance(some.failures[1], DataError)


def test_whoever_finds_the_store_gone_knows_why(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        def check(self, keys: list[str]) -> bool:
            raise RuntimeError("Connection reset by peer\nmore")

    lonely = Company(Gone(), number=1, count=2)  # type: ignore[arg-type]
    with pytest.raises(ProcessLost, match="lost contact: Connection reset by peer$"):
        list(lonely.pieces(object()))  # type: ignore[arg-type]


def test_one_process_meets_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clusters number their machines by RANK and WORLD_SIZE; a launcher also says LOCAL_RANK."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert meet().count == 1
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with meet() as alone:
        assert alone.leads and alone.count == 1
        assert list(alone.share_out("abc", describe=str)) == ["a", "b", "c"]
