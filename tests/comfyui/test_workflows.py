"""Every shipped workflow loads without a missing node or value, in both renderers, and runs to its end."""

from __future__ import annotations

import json
import re
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from .browser import Browser
from .page import load, open_page, our_errors, press_run, queue
from .server import Server

FOLDER = Path(__file__).resolve().parents[2] / "workflows"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
RUN_S = 1800.0


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return found


def test_there_is_one_for_every_family_and_tool():
    for family in ("Wan 2.1", "HunyuanVideo", "FramePack"):
        assert f"{family} - train a LoRA from a folder" in NAMES
        assert f"{family} - generate with a LoRA" in NAMES
    assert sum(name.startswith("LoRA - ") for name in NAMES) == 3


@pytest.mark.parametrize("name", NAMES)
def test_ids_thumbnails_and_notes(name: str):
    workflow = read(name)
    uuid.UUID(workflow["id"])
    assert (FOLDER / f"{name}.jpg").is_file()
    note = next(node for node in workflow["nodes"] if node["type"] == "MarkdownNote")["widgets_values"][0]
    assert "To begin" in note and "はじめに" in note
    assert not re.search(r"/(home|root|work|tmp|Users)/", json.dumps(workflow))
    values = [node.get("widgets_values") for node in workflow["nodes"] if node["type"] != "MarkdownNote"]
    for letter in re.findall(r"--\w+", note):
        assert letter in json.dumps(values), f"the note speaks of {letter}, which this workflow has not"


def test_the_template_browser_offers_all_of_them(comfyui: Server):
    offered = comfyui.get("/api/workflow_templates")
    assert sorted(next(iter(offered.values()))) == NAMES


@pytest.mark.parametrize("nodes2", [False, True], ids=["classic", "nodes 2.0"])
def test_all_load(comfyui: Server, browser: Browser, nodes2: bool):
    open_page(browser, comfyui.url, {"Comfy.VueNodes.Enabled": nodes2})
    for name in NAMES:
        workflow = read(name)
        load(browser, workflow, name)
        shown = json.loads(browser.run("JSON.stringify(app.graph.serialize().nodes)"))
        kept = {node["id"]: node.get("widgets_values_named") or {} for node in shown}
        for node in workflow["nodes"]:
            saved = node.get("widgets_values_named") or {}
            assert {key: kept[node["id"]].get(key) for key in saved} == saved, f"{name}: {node['type']}"
    assert our_errors(browser) == []


@pytest.mark.parametrize("nodes2", [False, True], ids=["classic", "nodes 2.0"])
def test_what_cannot_run_is_said_before_it_is_queued(comfyui: Server, browser: Browser, nodes2: bool):
    open_page(browser, comfyui.url, {"Comfy.VueNodes.Enabled": nodes2})
    workflow = read("Wan 2.1 - generate with a LoRA")
    node = next(node for node in workflow["nodes"] if node["type"].endswith("Generator"))
    node["widgets_values"][list(node["widgets_values_named"]).index("video_length")] = 18
    load(browser, workflow)
    refused = press_run(browser)
    assert list(refused) == [str(node["id"])]
    assert "video_length: 18 is not 4n+1: use 17 or 21." in refused[str(node["id"])]["errors"][0]["details"]
    browser.wait_for("document.body.textContent.includes('use 17 or 21')", what="the words in the corner")


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_on_the_demo_models(comfyui: Server, browser: Browser, name: str):
    open_page(browser, comfyui.url, {"Comfy.VueNodes.Enabled": False})
    load(browser, read(name), name)
    known = set(comfyui.get("/history"))
    queue(browser)
    comfyui.until(lambda: set(comfyui.get("/history")) - known, RUN_S, "the end of the workflow")
    prompt = (set(comfyui.get("/history")) - known).pop()
    entry = comfyui.get(f"/history/{prompt}")[prompt]
    assert entry["status"]["status_str"] == "success", json.dumps(entry["status"]["messages"])[-3000:]
    begun = time.monotonic()
    again = len(comfyui.runs())
    browser.run("app.queuePrompt(0).then(() => null)")
    time.sleep(3.0)
    assert len(comfyui.runs()) == again, "an unchanged graph starts no engine"
    print(f"{name}: looked at again in {time.monotonic() - begun:.1f} s")
