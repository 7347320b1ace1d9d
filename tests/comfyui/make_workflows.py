"""Writes `workflows/` anew: ComfyUI's own page builds each graph and serialises it, runs it, and is photographed.

    python -m tests.comfyui.make_workflows http://127.0.0.1:8188 [part of a name …]

Needs a running ComfyUI with this pack, the engine and the demo models. Without a run (`--no-run`) only the files are
written and the pictures stay.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
import urllib.request
from pathlib import Path
from typing import Any

from .browser import Browser
from .graphs import Graph, Part, graphs
from .page import load, look_at, open_page, queue

FOLDER = Path(__file__).resolve().parents[2] / "workflows"
WIDTH, NOTE_HEIGHT = 460, 620
RUN_S = 1200.0
BUILD = """(graph) => {
  app.graph.clear()
  const made = {}
  const filled = {}
  for (const { key, type, column, values, height, title } of graph.parts) {
    const node = LiteGraph.createNode(type)
    if (!node) throw new Error(`There is no node ${type}.`)
    app.graph.add(node)
    if (title) node.title = title
    for (const [name, value] of Object.entries(values)) {
      const widget = node.widgets.find((one) => one.name === name)
      if (!widget) throw new Error(`${type} has no widget ${name}: ${node.widgets.map((one) => one.name)}`)
      widget.value = value
      widget.callback?.(value)
    }
    node.setSize([graph.width, Math.max(height, node.computeSize()[1])])
    node.pos = [column * (graph.width + 70), filled[column] ?? 0]
    filled[column] = node.pos[1] + node.size[1] * 1.3 + 70 // the newer renderer's nodes are higher
    made[key] = node
  }
  for (const [from, output, to, input] of graph.links) {
    const out = made[from].outputs.findIndex((slot) => [slot.name, slot.label, slot.localized_name].includes(output))
    const into = made[to].inputs.findIndex((slot) => slot.name === input)
    if (out < 0 || into < 0) throw new Error(`No link ${from}.${output} to ${to}.${input}`)
    if (!made[from].connect(out, made[to], into)) throw new Error(`${from}.${output} does not fit ${to}.${input}`)
  }
  const saved = app.graph.serialize()
  saved.id = graph.id
  return saved
}"""


def built(browser: Browser, graph: Graph) -> dict[str, Any]:
    """The workflow's JSON, as the page would save it."""
    words = {browser.run("LiteGraph.createNode('MarkdownNote').widgets[0].name"): graph.note}
    note = Part("note", "MarkdownNote", 0, words, NOTE_HEIGHT, "Read me")
    whole = dataclasses.replace(graph, parts=(note, *graph.parts))
    data = {**dataclasses.asdict(whole), "id": graph.id, "width": WIDTH}
    saved: dict[str, Any] = browser.run(f"({BUILD})({json.dumps(data)})")
    saved["extra"] = {}
    for node in saved["nodes"]:
        node.pop("showAdvanced", None)
        if node["type"] == "MarkdownNote":
            node.update(color="#233", bgcolor="#355")
    return saved


def answer(url: str, path: str) -> Any:
    with urllib.request.urlopen(url + path) as reply:
        return json.load(reply)


def wait_for_end(url: str, name: str) -> None:
    """Until the queue is empty; what ran last has to have succeeded."""
    end = time.monotonic() + RUN_S
    while any(answer(url, "/queue").values()):
        if time.monotonic() > end:
            raise SystemExit(f"{name} did not end within {RUN_S:.0f} s.")
        time.sleep(0.5)
    (last,) = answer(url, "/history?max_items=1").values()
    if last["status"]["status_str"] != "success":
        raise SystemExit(f"{name} failed: {json.dumps(last['status'])[-1500:]}")


def picture(browser: Browser, url: str, graph: Graph, workflow: dict[str, Any], target: Path) -> None:
    """Run the workflow to its end and take its picture. Meanwhile the page is closed: drawing takes a core."""
    types = {part.key: part.type for part in graph.parts} | {"note": "MarkdownNote"}
    load(browser, workflow)
    queue(browser)
    browser.open("about:blank")
    wait_for_end(url, graph.name)
    open_page(browser, url)
    load(browser, workflow)
    browser.run("app.extensionManager.focusMode = true; null")
    look_at(browser, [types[key] for key in graph.photographed])
    time.sleep(8.0)  # messages in the corner fade
    browser.picture(target, quality=85, scale=0.5)
    browser.run("app.extensionManager.focusMode = false; null")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("names", nargs="*", help="only those whose name contains one of these")
    parser.add_argument("--no-run", action="store_true", help="write the files only")
    given = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    with Browser(width=1600, height=1000) as browser:
        for graph in graphs():
            if given.names and not any(name.lower() in graph.name.lower() for name in given.names):
                continue
            # A new page each time: a node may inherit the values of one that had its number in the graph before.
            open_page(browser, given.url, {"Comfy.VueNodes.Enabled": False, "Comfy.Locale": "en"})
            workflow = built(browser, graph)
            file = FOLDER / f"{graph.name}.json"
            file.write_text(json.dumps(workflow, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
            print(file.name, len(workflow["nodes"]), "nodes")
            if not given.no_run:
                picture(browser, given.url, graph, workflow, file.with_suffix(".jpg"))


if __name__ == "__main__":
    main()
