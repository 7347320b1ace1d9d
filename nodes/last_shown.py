"""Which files a node has shown last, for a page that is opened later: ComfyUI tells only the pages that are open.

Kept where no web page may write, and asked for by the page at each graph that it opens. Which of the files are gone is
told, so that the page can say so in their place. Knows no run: what has one is found again by it.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..engine.contract.errors import DiskError
from ..engine.contract.files import write_text
from . import host, paths
from .spec import Call

FILE = "last_shown.json"
MOST = 200
_lock = threading.Lock()


def keep(call: Call, output: Mapping[str, Any]) -> None:
    """Remember what the page is told of this execution (`output["images"]` names its files).

    A graph that was queued without its workflow is nobody's. A disk that takes it not does not end the node: its file
    is there.
    """
    if not call.workflow_id:
        return
    entry = {"workflow": call.workflow_id, "node": call.node_id, "class": call.node.id, "output": dict(output)}
    with _lock, contextlib.suppress(DiskError):
        others = [known for known in _read() if _place(known) != _place(entry)]
        text = json.dumps([entry, *others][:MOST], ensure_ascii=False, indent=1)
        write_text(paths.private() / FILE, text + "\n", durable=False)


def of_workflow(workflow: str) -> list[dict[str, Any]]:
    """What the nodes of a workflow showed last: `{node, class, output, gone}`, the latter names of files."""
    with _lock:
        known = _read()
    return [{**entry, "gone": _gone(entry["output"])} for entry in known if entry["workflow"] == workflow]


def _place(entry: Mapping[str, Any]) -> tuple[str, str]:
    return entry["workflow"], entry["node"]


def _read() -> list[dict[str, Any]]:
    try:
        found = json.loads((paths.private() / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return found if isinstance(found, list) else []


def _gone(output: Mapping[str, Any]) -> list[str]:
    folder = Path(host.folder_paths().get_output_directory())
    names = [f"{shown['subfolder']}/{shown['filename']}".removeprefix("/") for shown in output["images"]]
    return [name for name in names if not (folder / name).is_file()]
