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
    """Write what changed; with --check change nothing and fail when something would."""
    options = job[Docs]
    folder = Path(options.docs_dir) if options.docs_dir else PAGES
    if options.check:
        old = pages.stale(folder)
        if old:
            raise DataError(
                f"{len(old)} pages in {folder} are not up to date: {', '.join(old)}.",
                hint="Run `python -m engine docs` and commit the result.",
            )
        return f"all pages in {folder} are up to date"
    changed = pages.write(folder)
    for name in changed:
        say(Artifact(kind="page", path=str(folder / name)))
    return f"{len(changed)} pages changed"
