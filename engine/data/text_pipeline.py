"""Caching: captions -> text caches. Whatever pipeline.py says of clips holds here too.

Equal captions are encoded once. Captions need no decoding, so there is one stage less.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..contract.errors import DataError
from ..contract.events import Control, Say
from ..contract.files import clean_leftovers
from . import advice, cache, fingerprints
from .company import Company, Message
from .config import DatasetConfig
from .fingerprints import Fingerprint
from .items import Source
from .report import CacheReport, Errand, Ledger, announce, check_count, one_at_a_time, reason_of, usable
from .stages import Run, Writer
from .survey import Recipe, Rules, all_sources, tidy_texts

Sample = Mapping[str, Tensor]
EncodeTexts = Callable[[list[str]], Sequence[Sample]]


def cache_text(
    config: DatasetConfig,
    recipe: Recipe,
    rules: Rules,
    *,
    encode: EncodeTexts,
    count: advice.CountTokens,
    say: Say,
    control: Control,
    batch_size: int = 16,
    company: Company | None = None,
) -> CacheReport:
    """Cache the encoded caption of every source. Equal captions are encoded once; batches span all datasets.

    `encode(captions)` returns for each caption its tensors under plain names ("varlen_t5"), `count(captions)` how many
    of its tokens they are made of. Errors are those of cache_latents.
    """
    company = company or Company()
    run = Run(lambda: control.stop_requested)
    ledger = Ledger(one_at_a_time(say), run, rules.strict)
    owners = {cache.text_path(source, recipe.architecture): source for source in all_sources(config, ledger.say)}
    prints = {path: _fingerprint(source.caption, recipe) for path, source in owners.items()}
    helping = None if company.leads else Errand(run, company.tell)
    texts = Texts(owners, prints, helping or ledger, encode=encode, architecture=recipe.architecture_full)
    if helping:
        with company.obeying(run):
            texts.encode([Path(path) for path in piece] for piece in company.pieces(run))
        return CacheReport(done=0, skipped=0)
    states = {path: fingerprints.state(path, prints[path]) for path in owners}
    wanted = [path for path in owners if rules.wants(states[path])]
    announce(ledger.say, list(states.values()), len(wanted), unit="captions")
    for folder in {path.parent for path in wanted}:
        clean_leftovers(folder)
    with company.listening(lambda message: _hear(message, ledger, owners), run):
        if wanted:
            ledger.start(len(wanted), unit="captions", label="caching text")
        batches = texts.batches(wanted, size=batch_size)
        work = company.share_out(batches, describe=lambda batch: list(map(str, batch)))
        if wanted and not run.over:
            advice.on_cut_captions([owners[path] for path in wanted], count, ledger.say)
        texts.encode(work)
    ledger.conclude(len(wanted), unit="captions", stop_requested=control.stop_requested)
    purged = tidy_texts(config.datasets, set(owners), recipe.architecture, keep=rules.keep_cache)
    skipped = len(owners) - len(wanted)
    report = CacheReport(done=ledger.done, skipped=skipped, failed=tuple(ledger.failed), purged=purged)
    return usable(report, config)


def _fingerprint(caption: str, recipe: Recipe) -> Fingerprint:
    digest = fingerprints.caption_digest(caption)
    return Fingerprint(settings={"family": dict(recipe.settings)}, model=recipe.identity, caption=digest)


def _hear(message: Message, ledger: Ledger, owners: Mapping[Path, Source]) -> None:
    """Note what another process tells of its captions."""
    if "left_out" in message:
        (source,) = (source for source in owners.values() if [*source.key] == message["left_out"])
        ledger.fail(source, message["reason"])
    else:
        ledger.finish()


class Texts:
    """The caches by their paths, each with the source that owns it and the fingerprint that it gets."""

    def __init__(
        self,
        owners: Mapping[Path, Source],
        prints: Mapping[Path, Fingerprint],
        ledger: Ledger | Errand,
        *,
        encode: EncodeTexts,
        architecture: str,
    ):
        self._owners, self._prints, self._ledger = owners, prints, ledger
        self._encode, self._architecture = encode, architecture

    def batches(self, paths: Sequence[Path], *, size: int) -> list[list[Path]]:
        """The caches of `size` different captions at a time, alike lengths together: less padding in a batch."""
        by_caption = self._by_caption(paths)
        captions = sorted(by_caption, key=len)
        groups = [captions[first : first + size] for first in range(0, len(captions), size)]
        return [[path for caption in group for path in by_caption[caption]] for group in groups]

    def encode(self, work: Iterator[Sequence[Path]]) -> None:
        """Encode and write batches until none is left or the run is over."""
        run = self._ledger.run
        writer = Writer(self._write, run=run)
        try:
            for batch in work:
                if run.over:
                    break
                by_caption = self._by_caption(batch)
                with torch.no_grad():
                    results = self._encode(list(by_caption))
                check_count(results, len(by_caption))
                for paths, result in zip(by_caption.values(), results, strict=True):
                    for path in paths:
                        writer.put((path, result))
        finally:
            writer.close()

    def _by_caption(self, paths: Sequence[Path]) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = {}
        for path in paths:
            if path not in self._owners:
                raise DataError(
                    f"{path.name}: its clip has disappeared from the dataset since the start.", "Start again."
                )
            found.setdefault(self._owners[path].caption, []).append(path)
        return found

    def _write(self, item: tuple[Path, Sample]) -> None:
        path, sample = item
        owner = self._owners[path]
        try:
            cache.write_text(path, sample, architecture=self._architecture, caption=owner.caption)
            fingerprints.write(path, self._prints[path])
        except DataError as error:
            self._ledger.fail(owner, reason_of(error))
        else:
            self._ledger.finish()
