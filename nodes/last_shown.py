"""Which files a node showed last, for a page that is opened later: ComfyUI informs only the pages that are open.

Kept where no web page may write; the page asks for it for each graph that it opens. Missing files are named, so that
the page can say so in their place. Knows no run: nodes that have one are restored from it.
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
    """Remember the UI output of this execution (`output["images"]` names its files).

    Nothing is kept for a graph that was queued without its workflow. A disk error does not end the node, whose file is
    written already.
    """
    if not call.workflow_id:
        return
    entry = {"workflow": call.workflow_id, "node": call.node_id, "class": call.node.id, "output": dict(output)}
    with _lock, contextlib.suppress(DiskError):
        others = [known for known in _read() if _place(known) != _place(entry)]
        text = json.dumps([entry, *others][:MOST], ensure_ascii=False, indent=1)
        write_text(paths.private() / FILE, text + "\n", durable=False)


def of_workflow(workflow: str) -> list[dict[str, Any]]:
    """What the nodes of a workflow showed last: `{node, class, output, gone}`; `gone`: names of missing files."""
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
