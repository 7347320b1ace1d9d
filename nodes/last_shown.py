"""Which files a node has shown last, for a page that is opened later: ComfyUI tells only the pages that are open.

Kept where no web page may write, and asked for by the page at each graph that it opens. A file that is gone is not
named. Knows no run: what has one is found again by it.
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
    """What the nodes of a workflow showed last: `{node, class, output}`, where all its files are there still."""
    with _lock:
        known = _read()
    return [entry for entry in known if entry["workflow"] == workflow and _is_there(entry["output"])]


def _place(entry: Mapping[str, Any]) -> tuple[str, str]:
    return entry["workflow"], entry["node"]


def _read() -> list[dict[str, Any]]:
    try:
        found = json.loads((paths.private() / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return found if isinstance(found, list) else []


def _is_there(output: Mapping[str, Any]) -> bool:
    folder = Path(host.folder_paths().get_output_directory())
    return all((folder / shown["subfolder"] / shown["filename"]).is_file() for shown in output["images"])
