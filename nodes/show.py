"""What a run shows: ComfyUI's own progress bar on the node, and our messages to every open page for its panel.

Called a few times a second by the code that waits for the run, so that a chatty engine costs nothing. The messages are
`musubi.run` (a summary), `musubi.event` (one of the engine's events), `musubi.environment`, and `musubi.refused` (why a
node cannot run, to the page that queued it).
"""

from __future__ import annotations

from typing import Any

from . import host
from .runs import Run

RUN, EVENT, ENVIRONMENT, REFUSED = "musubi.run", "musubi.event", "musubi.environment", "musubi.refused"


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
    """Send every page the state of the environment, or the progress of setting it up."""
    host.send(ENVIRONMENT, state)


def refused(node: str, message: str, *, page: str) -> None:
    """Tell a page why a node of the graph that it queued cannot run."""
    host.send(REFUSED, {"node": node, "message": message}, page=page)
