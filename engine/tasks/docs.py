"""`docs`: write the reference pages of all options, or check that they are up to date."""

from __future__ import annotations

from pathlib import Path

from ..contract import pages
from ..contract.errors import DataError
from ..contract.events import Artifact, Control, Say
from ..contract.job import Job
from ..contract.options import Docs

PAGES = Path(__file__).resolve().parents[2] / "docs" / "options"


def run(job: Job, say: Say, control: Control) -> str:
    """Write what changed; with --check change nothing and fail when something would.

    The pack's own pages are about its own families; a folder that the person names gets those of every family.
    """
    options = job[Docs]
    folder, extra = (Path(options.docs_dir), True) if options.docs_dir else (PAGES, False)
    if options.check:
        old = pages.stale(folder, extra=extra)
        if old:
            raise DataError(
                f"{len(old)} pages in {folder} are not up to date: {', '.join(old)}.",
                hint="Run `python -m engine docs` and commit the result.",
            )
        return f"all pages in {folder} are up to date"
    changed = pages.write(folder, extra=extra)
    for name in changed:
        say(Artifact(kind="page", path=str(folder / name)))
    return f"{len(changed)} pages changed"
