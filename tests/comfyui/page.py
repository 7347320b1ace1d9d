"""ComfyUI's page as a person uses it: open it, load a workflow, press Run, look. Knows the front end, not our pack."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from .browser import Browser

NOT_OURS = (
    "user.css", "userdata", "graph accessed before initialization", "huggingface.co", "Content Security Policy",
    "comfy.org", "favicon",
)  # fmt: skip
"""What a bare front end of its own says on its console as errors."""
READY = "window.app?.extensionManager && app.graph && app.isGraphReady !== false && app.vueAppReady !== false"
QUIET = {
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.TutorialCompleted": True,
    "LiteGraph.Canvas.MinFontSizeForLOD": 0,
    "Comfy.Workflow.ShowMissingModelsWarning": False,
}


def open_page(browser: Browser, url: str, settings: Mapping[str, Any] | None = None) -> None:
    """Open ComfyUI and wait until it can be used; settings are kept by the server, so the page is opened again."""
    _open(browser, url)
    changed = {**QUIET, **(settings or {})}
    browser.run(
        f"Promise.all(Object.entries({json.dumps(changed)}).map(([id, value]) => "
        "app.extensionManager.setting.set(id, value))).then(() => null)"
    )
    _open(browser, url)


def _open(browser: Browser, url: str) -> None:
    browser.open(url)
    browser.wait_for(READY, seconds=90, what="ComfyUI's page")
    browser.wait_for("document.querySelector('.musubi-jobs-tab-button')", what="our tab in the sidebar")
    time.sleep(1.0)  # the front end restores its last workflow after that


def our_errors(browser: Browser) -> list[str]:
    """Errors on the console that are not the front end's own."""
    return [line for line in browser.errors if not any(part in line for part in NOT_OURS)]


def load(browser: Browser, workflow: Mapping[str, Any], name: str = "test") -> None:
    """Show a workflow, as opening its file does."""
    browser.run(f"app.loadGraphData({json.dumps(workflow)}, true, true, {json.dumps(name)}).then(() => null)")
    browser.wait_for(f"app.graph.nodes.length === {len(workflow['nodes'])}", what="the workflow's nodes")


def queue(browser: Browser) -> None:
    """Press Run. AssertionError when ComfyUI refuses the graph, or a part of it."""
    refused = press_run(browser)
    assert not refused, refused


def press_run(browser: Browser) -> dict[str, Any]:
    """What ComfyUI refuses, by node; nothing when it has been queued whole."""
    found = browser.run("app.queuePrompt(0).then(() => JSON.stringify(app.lastNodeErrors ?? {}))")
    errors: dict[str, Any] = json.loads(found)
    return errors


def fit(browser: Browser) -> None:
    """Show the whole graph."""
    browser.run("app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    time.sleep(1.0)


def look_at(browser: Browser, types: Sequence[str], *, left: float = 20.0, top: float = 20.0) -> None:
    """Move the canvas so that the nodes of these classes fill the window, but for some pixels at two of its sides."""
    browser.run(
        f"""((types, edges) => {{
          const nodes = app.graph.nodes.filter((node) => types.includes(node.type))
          const ends = (axis) => nodes.map((node) => node.pos[axis] + node.size[axis])
          const [left, top] = [0, 1].map((axis) => Math.min(...nodes.map((node) => node.pos[axis])))
          const [right, bottom] = [0, 1].map((axis) => Math.max(...ends(axis)))
          const [wide, high] = [right - left + 40, bottom - top + 80]
          const {{ ds, canvas }} = app.canvas
          const [freeWide, freeHigh] = [canvas.clientWidth - edges[0], canvas.clientHeight - edges[1]]
          ds.scale = Math.min(freeWide / wide, freeHigh / high)
          ds.offset[0] = -left + 20 + (edges[0] + (freeWide - wide * ds.scale) / 2) / ds.scale
          ds.offset[1] = -top + 60 + (edges[1] + (freeHigh - high * ds.scale) / 2) / ds.scale
          app.canvas.setDirty(true, true)
        }})({json.dumps(list(types))}, {json.dumps([left, top])})"""
    )
    time.sleep(1.5)


def choose_theme(browser: Browser, theme: str) -> None:
    browser.run(f"app.extensionManager.setting.set('Comfy.ColorPalette', {json.dumps(theme)}).then?.(() => null)")
