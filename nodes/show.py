"""What a run shows: ComfyUI's own progress bar on the node, and our messages to every open page, whose panel says more.

Called a few times a second by whoever waits for the run, so that a chatty engine costs nothing. The three messages are
`musubi.run` (a summary), `musubi.event` (one of the engine's events) and `musubi.environment`.
"""

from __future__ import annotations

from typing import Any

from . import host
from .runs import Run

RUN, EVENT, ENVIRONMENT = "musubi.run", "musubi.event", "musubi.environment"


def tell(run: Run) -> None:
    """Send what is new."""
    summary, events = run.news()
    for event in events:
        host.send(EVENT, event)
    if summary is None:
        return
    host.send(RUN, summary)
    if run.node and run.state in ("running", "stopping"):
        progress = run.progress
        if progress is not None and progress.total:
            host.show_progress(run.node, min(progress.done, progress.total), progress.total)


def environment(state: dict[str, Any]) -> None:
    """Tell every page how the environment is, or how its making goes."""
    host.send(ENVIRONMENT, state)
