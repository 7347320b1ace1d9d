"""Which caches are trained on, and in which batches of which epoch.

Reads the cache folders, not the sources, so that a dataset trains on a machine that has only its caches. Fingerprints
decide what is current: caches of other settings, of a source that has changed, or of two models at once are errors
that name the command to run; caches without a fingerprint (made by musubi-tuner) are taken as they are.

An epoch is a pure function of (seed, epoch): a resume starts at (epoch, position) in the middle of one. Batches hold
items of one dataset and one bucket; the last batch of a bucket may be smaller. With several ranks, rank r takes every
world-th batch from r on: nothing is repeated and nothing dropped, so in the last round the higher ranks may have no
batch (`rounds` counts rounds, `len` this rank's batches), which the loop has to allow for.
"""

from __future__ import annotations

import random
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..contract.errors import DataError
from ..contract.events import Log, Meter, Say, Warning_
from ..contract.packages import RUN
from ..contract.wording import first_few
from ..parts.batching import VARLEN
from . import cache, fingerprints, items
from .config import Dataset, DatasetConfig
from .fingerprints import Content, Fingerprint
from .items import Source

QUIET_S = 1.0


@dataclass(frozen=True, kw_only=True)
class TrainItem:
    """A latent cache with its text cache. Only items of equal `dataset` and `key` go into one batch.

    `key` is latent (width, height, frames), then every tensor's name and shape.
    """

    latent_path: Path
    text_path: Path
    dataset: int
    key: tuple[Any, ...]
    repeats: int = 1
    preserves_prior: bool = False
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict, compare=False)  # of all tensors, plain names


@dataclass(frozen=True)
class Batch:
    """Items to collate; `timesteps` in 0..1, one an item, when they are drawn for a whole epoch at once."""

    items: tuple[TrainItem, ...]
    timesteps: tuple[float, ...] | None = None


# ----------------------------------------------------------------------------------------------- finding the items


@dataclass
class _Findings:
    """What was wrong, collected over all datasets: (file, reason) each."""

    latents: list[tuple[Path, str]] = field(default_factory=list)
    texts: list[tuple[Path, str]] = field(default_factory=list)
    without_text: list[Path] = field(default_factory=list)
    other_caption: list[Path] = field(default_factory=list)
    uncached: list[Path] = field(default_factory=list)  # sources
    of_gone: dict[str, None] = field(default_factory=dict)  # stems of sources, in order
    left_over: int = 0
    latent_makers: set[tuple[str, str]] = field(default_factory=set)
    text_makers: set[tuple[str, str]] = field(default_factory=set)


def load_items(config: DatasetConfig, *, architecture: str, say: Say, family: str = "") -> list[TrainItem]:
    """Everything that there is to train on, in a fixed order. `family` is what the cache commands call it.

    DataError, with the command to run, when there is nothing, or when caches are out of date or damaged.
    """
    findings = _Findings()
    found: list[TrainItem] = []
    seen = 0
    for dataset in config.datasets:
        names = cache.latent_files(dataset.cache_directory, architecture, video=dataset.kind == "video")
        seen += len(names)
        checker = _Checker(dataset, architecture, findings)
        meter = Meter(say, total=len(names), unit="caches", label="Reading the dataset", quiet_s=QUIET_S)
        of_dataset = []
        for name in names:
            item = checker.item(name)
            of_dataset += [] if item is None else [item]
            meter.advance()
        checker.compare(names)
        if not of_dataset:
            say(Warning_(message=f"{dataset.table}: nothing to train on in {dataset.cache_directory}."))
        found.extend(of_dataset)
    commands = _Commands(config.path, family or architecture)
    _refuse_outdated(findings, commands)
    if not found and not seen:
        folders = ", ".join(str(dataset.cache_directory) for dataset in config.datasets)
        raise DataError(f"There are no latent caches (*_{architecture}.safetensors) in {folders}.", commands.latents())
    if not found and findings.without_text:
        raise DataError(f"None of the {seen} latent caches has a text cache.", commands.texts())
    if not found:
        raise DataError(f"All {seen} latent caches were made with other settings.", commands.latents())
    _tell(findings, commands, say)
    buckets = len({(item.dataset, item.key) for item in found})
    say(Log(message=f"Cached items: {len(found)}, in buckets: {buckets}."))
    return found


class _Checker:
    """Looks at the caches of one dataset; each source is looked at once."""

    def __init__(self, dataset: Dataset, architecture: str, findings: _Findings):
        self._dataset, self._architecture, self._findings = dataset, architecture, findings
        sources, _ = items.survey(dataset)  # its problems do not matter here: sources may be gone
        self._sources: dict[str, Source] = {source.stem: source for source in sources}
        self._contents: dict[Path, Content | None] = {}

    def compare(self, names: Iterable[cache.LatentName]) -> None:
        """Note the sources that have no latent cache, where others have one."""
        stems = {name.stem for name in names}
        if stems:
            self._findings.uncached += [source.path for stem, source in self._sources.items() if stem not in stems]

    def item(self, name: cache.LatentName) -> TrainItem | None:
        """The cache as something to train on; None, with a finding, when it is not."""
        source = self._sources.get(name.stem)
        try:
            shapes = cache.read_header(name.path).shapes
            latents = next(shape for key, shape in shapes.items() if cache.plain_name(key) == "latents")
            found = fingerprints.read(name.path)
        except StopIteration:
            self._findings.latents.append((name.path, "it holds no latents"))
            return None
        except (DataError, fingerprints.Unreadable) as error:
            self._findings.latents.append((name.path, _reason(error)))
            return None
        if found is not None:
            if not found.in_use:
                self._findings.left_over += 1
                return None
            reason = self._outdated(found, source)
            if reason:
                self._findings.latents.append((name.path, reason))
                return None
            self._findings.latent_makers.add(_maker(found))
        text_path = name.text_path(self._architecture)
        text_shapes = self._text(text_path, source)
        if text_shapes is None:
            return None
        if source is None and self._sources:  # without any source this machine has the caches alone
            self._findings.of_gone[name.stem] = None
        _, latent_frames, height, width = (1, 1, 1, 1, *latents)[-4:]
        stacked = {**shapes, **{key: shape for key, shape in text_shapes.items() if not key.startswith("varlen_")}}
        return TrainItem(
            latent_path=name.path,
            text_path=text_path,
            dataset=self._dataset.index,
            key=(width, height, latent_frames, *sorted(stacked.items())),
            repeats=self._dataset.num_repeats,
            preserves_prior=self._dataset.preserve_prior,
            shapes=_plain({**shapes, **text_shapes}),
        )

    def _outdated(self, found: Fingerprint, source: Source | None) -> str:
        if not fingerprints.in_plan(found, self._dataset):
            return f"the dataset's settings have changed ({_difference(found, self._dataset)})"
        if source is not None:
            files = (source.path, *source.controls)
            if 1 < len(found.source) != len(files):  # without any, controls were not asked for, or there were none
                now, then = len(source.controls), len(found.source) - 1
                return f"the number of controls of {source.path.name} was {then} when it was cached, and is {now} now"
            for path, known in zip(files, found.source, strict=False):
                now = self._content(path, known)
                if now is not None and now.sample != known.sample:
                    return f"{path.name} has changed"
        return ""

    def _content(self, path: Path, known: Content) -> Content | None:
        if path not in self._contents:
            try:
                self._contents[path] = fingerprints.content_of(path, known=known)
            except OSError:
                self._contents[path] = None  # gone or unreadable: the cache stands for it
        return self._contents[path]

    def _text(self, path: Path, source: Source | None) -> dict[str, tuple[int, ...]] | None:
        if not path.exists():
            self._findings.without_text.append(path)
            return None
        try:
            header = cache.read_header(path)
            found = fingerprints.read(path)
        except (DataError, fingerprints.Unreadable) as error:
            self._findings.texts.append((path, _reason(error)))
            return None
        if found is not None:
            self._findings.text_makers.add(_maker(found))
            if source is not None and found.caption != fingerprints.caption_digest(source.caption):
                self._findings.texts.append((path, f"the caption of {source.path.name} has changed"))
                return None
        elif source is not None and header.metadata.get("caption1", source.caption) != source.caption:
            self._findings.other_caption.append(path)
        return header.shapes


def _plain(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Shapes by the names that a batch has."""
    return {cache.plain_name(key).removeprefix(VARLEN): shape for key, shape in shapes.items()}


def _reason(error: Exception) -> str:
    return f"its fingerprint cannot be read ({error})" if isinstance(error, fingerprints.Unreadable) else str(error)


def _maker(found: Fingerprint) -> tuple[str, str]:
    return found.model, repr(fingerprints.plain(found.settings.get("family", {})))


def _difference(found: Fingerprint, dataset: Dataset) -> str:
    now, then = fingerprints.plan_settings(dataset), fingerprints.plain(found.plan)
    keys = [key for key in sorted({*now, *then}) if now.get(key) != then.get(key)]
    return first_few(f"{key} was {then.get(key)}, is {now.get(key)}" for key in keys)


@dataclass(frozen=True)
class _Commands:
    """The commands that put caches right, as hints."""

    config_path: Path
    family: str

    def latents(self) -> str:
        return self._run("cache-latents")

    def texts(self) -> str:
        return self._run("cache-text")

    def _run(self, verb: str) -> str:
        return f"Run `{RUN} {verb} {self.family} --dataset_config {shlex.quote(str(self.config_path))} …`."


def _refuse_outdated(findings: _Findings, commands: _Commands) -> None:
    for bad, makers, what, command in (
        (findings.latents, findings.latent_makers, "latent", commands.latents()),
        (findings.texts, findings.text_makers, "text", commands.texts()),
    ):
        # One text cache serves all windows of its source: name it once.
        bad = list(dict(bad).items())
        if bad:
            names = first_few(path.name for path, _ in bad)
            verb = "cache is" if len(bad) == 1 else "caches are"
            message = f"{len(bad)} {what} {verb} out of date or damaged ({names}). The first: {bad[0][1].rstrip('.')}."
            raise DataError(message, f"{command} It redoes only what has changed.")
        if len(makers) > 1:
            message = (
                f"The {what} caches were made with {len(makers)} different models or settings: a run was cut short."
            )
            raise DataError(message, f"{command} It finishes that run.")


def _tell(findings: _Findings, commands: _Commands, say: Say) -> None:
    missing = list(dict.fromkeys(findings.without_text))
    if missing:
        names = first_few(missing)
        count = len(findings.without_text)
        many = "1 latent cache is" if count == 1 else f"{count} latent caches are"
        text = f"{many} left out for lack of a text cache: {names}. {commands.texts()}"
        say(Warning_(message=text))
    if findings.other_caption:
        names = first_few(findings.other_caption)
        say(
            Warning_(message=f"Text caches made by another tool are from other captions than the current ones: {names}")
        )
    if findings.uncached:
        names = f"({len(findings.uncached)}): {first_few(findings.uncached)}"
        say(Warning_(message=f"Clips without a latent cache are not trained on {names}. {commands.latents()}"))
    if findings.of_gone:
        names = f"({len(findings.of_gone)}): {first_few(findings.of_gone)}"
        text = f"Cached clips are trained on although they are no longer in the dataset {names}."
        say(Warning_(message=f"{text} {commands.latents()}"))
    if findings.left_over:
        say(Log(message=f"{findings.left_over} latent caches made with other settings are left out."))


# ------------------------------------------------------------------------------------------------- forming batches


class BatchSampler:
    """The batches of any epoch for one rank.

    `batch_sizes` by dataset index. With `num_timestep_buckets` over 1, each epoch's timesteps are drawn evenly from
    that many equal parts of 0..1, over all ranks together.
    """

    def __init__(
        self,
        train_items: Iterable[TrainItem],
        *,
        batch_sizes: Sequence[int],
        seed: int,
        num_timestep_buckets: int | None = None,
        rank: int = 0,
        world: int = 1,
    ):
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} of {world}")
        self._buckets: dict[tuple[int, tuple[Any, ...]], list[TrainItem]] = defaultdict(list)
        for item in sorted(train_items, key=lambda item: (item.dataset, item.key, str(item.latent_path))):
            self._buckets[item.dataset, item.key].extend([item] * item.repeats)
        self._batch_sizes = batch_sizes
        self._seed, self._rank, self._world = seed, rank, world
        self._strata = num_timestep_buckets or 0
        self.num_items = sum(map(len, self._buckets.values()))  # repeats counted, all ranks

    def __len__(self) -> int:
        """Batches in an epoch, of all ranks together."""
        return sum(-(-len(bucket) // self._batch_sizes[key[0]]) for key, bucket in self._buckets.items())

    @property
    def preserves_prior(self) -> bool:
        """Whether some of the items do."""
        return any(bucket[0].preserves_prior for bucket in self._buckets.values())

    @property
    def largest_size(self) -> tuple[int, int]:
        """Latent width and height of the largest clips; of equally large shapes the more frequent."""
        counts: Counter[tuple[int, int]] = Counter()
        for (_, (width, height, *_)), bucket in self._buckets.items():
            counts[width, height] += len(bucket)
        return max(counts, key=lambda size: (size[0] * size[1], counts[size]))

    def epoch(self, epoch: int, *, position: int = 0) -> list[Batch]:
        """This rank's batches of an epoch (counted from 0): of all that are left after `position`, every `world`-th."""
        return self.together(epoch)[position + self._rank :: self._world]

    def together(self, epoch: int) -> list[Batch]:
        """The batches of all ranks, in order."""
        # A text seed: seed 1, epoch 2 must not be seed 2, epoch 1.
        rng = random.Random(f"batches {self._seed} {epoch}")
        groups: list[tuple[TrainItem, ...]] = []
        for (dataset, _), bucket in self._buckets.items():
            size = self._batch_sizes[dataset]
            shuffled = rng.sample(bucket, len(bucket))
            groups.extend(tuple(shuffled[start : start + size]) for start in range(0, len(shuffled), size))
        rng.shuffle(groups)
        if self._strata <= 1:
            return [Batch(group) for group in groups]
        timesteps = iter(stratified(sum(map(len, groups)), self._strata, rng))
        return [Batch(group, tuple(next(timesteps) for _ in group)) for group in groups]


def stratified(count: int, strata: int, rng: random.Random) -> list[float]:
    """`count` values in 0..1: as many from each of `strata` equal parts, or one more, in random order."""
    parts = list(range(strata)) * (count // strata) + rng.sample(range(strata), count % strata)
    values = [(part + rng.random()) / strata for part in parts]
    rng.shuffle(values)
    return values
