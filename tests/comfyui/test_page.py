"""The page in a real browser, with a pack that only plays: panels, tab, dialog, settings, in both renderers."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest

from .browser import Browser
from .page import load, open_page, our_errors, queue
from .server import Server

RENDERERS = pytest.mark.parametrize("nodes2", [False, True], ids=["classic", "nodes 2.0"])
UUID = "3b0bb7a5-5f6e-4a6e-8e0e-6a6a6f1b2c3d"


def workflow(*names: str, steps: int = 60) -> dict[str, Any]:
    """Nodes of the playing pack side by side."""
    nodes = [
        {
            "id": number, "type": f"MusubiTuner_{name}", "pos": [60 + 520 * index, 80], "size": [480, 560], "flags": {},
            "order": index, "mode": 0, "inputs": [], "outputs": [{"name": "result", "type": "STRING", "links": []}],
            "properties": {}, "widgets_values": [steps, 0.0002, f"lora-{time.monotonic_ns()}"],
        }
        for index, (number, name) in enumerate(enumerate(names, 1))
    ]  # fmt: skip
    return {
        "id": UUID, "revision": 0, "last_node_id": len(nodes), "last_link_id": 0, "nodes": nodes, "links": [],
        "groups": [], "config": {}, "extra": {}, "version": 0.4,
    }  # fmt: skip


def shown(browser: Browser, selector: str) -> str:
    return str(browser.run(f"document.querySelector({json.dumps(selector)})?.textContent ?? ''"))


def opened(browser: Browser, server: Server, *, nodes2: bool = False, locale: str = "en") -> None:
    open_page(browser, server.url, {"Comfy.VueNodes.Enabled": nodes2, "Comfy.Locale": locale})


def scene(server: Server, **asked: Any) -> None:
    server.post("/fake/scene", {"workflow": {"id": UUID}, **asked})


@RENDERERS
def test_a_training_is_followed_on_its_node(playing: Server, browser: Browser, nodes2: bool):
    opened(browser, playing, nodes2=nodes2)
    load(browser, workflow("Wan21LoRATrainer", steps=120))
    browser.wait_for("document.querySelector('.musubi-idle p')?.textContent", what="the panel before a run")
    queue(browser)
    browser.wait_for("/[2-9]\\d \\/ 120/.test(document.querySelector('.musubi-facts').textContent)", what="progress")
    facts = shown(browser, ".musubi-facts")
    assert "steps/s" in facts and "left" in facts, facts
    assert [shown(browser, f".musubi-body > .musubi-bar > :nth-child({place})") for place in (1, 2, 3, 4)] == [
        "Stop and save", "Save now", "Sample now", "Cancel",
    ]  # fmt: skip
    colours = browser.run(
        "(c => new Set(new Uint32Array(c.getContext('2d').getImageData(0, 0, c.width, c.height).data.buffer)).size)"
        "(document.querySelector('.musubi-canvas'))"
    )
    assert colours > 20, "the curve is drawn"
    browser.wait_for("document.querySelector('.musubi-badge.done')", seconds=30, what="the end")
    assert our_errors(browser) == []


def test_the_memory_plan_is_on_the_node(playing: Server, browser: Browser):
    opened(browser, playing)
    load(browser, workflow("Wan21LoRATrainer"))
    scene(playing, scene="train", node="1", steps=20, pace_s=0.01)
    browser.wait_for("document.querySelector('.musubi-plan[data-fits=true]:not([hidden])')", what="the plan")
    words = shown(browser, ".musubi-plan > summary")
    options = "blocks to swap 12 · gradient checkpointing · no use pinned memory for block swap"
    assert "11.3 GiB of 22.3 GiB" in words and options in words, words
    browser.wait_for("document.querySelector('.musubi-badge.done')", what="the end")
    opened(browser, playing)
    browser.click(".musubi-plan > summary")
    browser.wait_for("document.querySelector('.musubi-plan[open]')", what="its table, after a reload")
    rows = shown(browser, ".musubi-plan table")
    assert "DiT weights" in rows and "scratch file on disk7.1 GiB/home/me/.local/share/musubi/scratch" in rows, rows
    scene(playing, scene="tight", node="1", steps=20, pace_s=0.01)
    browser.wait_for("document.querySelector('.musubi-plan[data-fits=false]')", what="a plan that does not fit")
    assert "does not fit" in shown(browser, ".musubi-plan > summary")
    assert our_errors(browser) == []


@RENDERERS
def test_the_panel_never_makes_its_node_grow(playing: Server, browser: Browser, nodes2: bool):
    opened(browser, playing, nodes2=nodes2)
    load(browser, workflow("VAELatentCache", steps=150))
    time.sleep(0.5)
    before = browser.run("app.graph.nodes[0].size[1]")
    queue(browser)
    browser.wait_for("document.querySelector('.musubi-badge.done')", seconds=30, what="the end")
    browser.wait_for("document.querySelectorAll('.musubi-line').length > 100", what="the log, which arrives after that")
    time.sleep(1.5)
    assert browser.run("app.graph.nodes[0].size[1]") == before


def test_everything_is_there_again_after_a_reload_and_in_a_second_browser(playing: Server, browser: Browser):
    opened(browser, playing)
    load(browser, workflow("Wan21LoRATrainer", steps=9000))  # it is stopped at the end, however long that takes
    queue(browser)
    browser.wait_for("/[3-9]\\d \\/ 9000/.test(document.querySelector('.musubi-facts').textContent)", what="progress")
    opened(browser, playing)
    browser.wait_for("document.querySelector('.musubi-badge.running')", what="the running run after a reload")
    with Browser() as second:
        opened(second, playing)
        load(second, workflow("Wan21LoRATrainer", steps=9000))
        second.wait_for("document.querySelector('.musubi-badge.running')", what="the run in a second browser")
        steps = "Number(document.querySelector('.musubi-facts').textContent.match(/(\\d+) \\/ 9000/)?.[1] ?? 0)"
        first = second.run(steps)
        second.wait_for(f"{steps} > {first + 10}", what="the run to go on")
    browser.click(".musubi-body > .musubi-bar > .primary")
    browser.wait_for("document.querySelector('.musubi-badge.stopped')", what="Stop and save")
    assert our_errors(browser) == []


def test_a_failure_says_what_to_do(playing: Server, browser: Browser):
    opened(browser, playing)
    load(browser, workflow("Wan21LoRATrainer"))
    scene(playing, scene="fail", node="1", steps=20, pace_s=0.01)
    browser.wait_for("document.querySelector('.musubi-problem.error')", what="the error")
    words = shown(browser, ".musubi-problem")
    assert "Out of memory" in words and "24564 MiB" in words and "blocks_to_swap" in words


def test_a_loss_that_is_no_number_is_said(playing: Server, browser: Browser):
    opened(browser, playing)
    load(browser, workflow("Wan21LoRATrainer"))
    scene(playing, scene="diverge", node="1", steps=20, pace_s=0.01)
    browser.wait_for("document.querySelector('.musubi-problem.warning')", what="the warning")
    assert "since step 11" in shown(browser, ".musubi-problem")


def test_zooming_dragging_and_keys_on_the_curve(playing: Server, browser: Browser):
    opened(browser, playing)
    load(browser, workflow("Wan21LoRATrainer"))
    scene(playing, scene="train", node="1", steps=100, pace_s=0.001)
    browser.wait_for("document.querySelector('.musubi-badge.done')", what="the end")
    picture = "document.querySelector('.musubi-canvas').toDataURL()"
    scale = "app.canvas.ds.scale"
    x, y = browser.centre(".musubi-canvas")
    whole, zoom = browser.run(picture), browser.run(scale)
    browser.mouse("mouseWheel", x, y, wheel=-200)
    time.sleep(0.3)
    assert browser.run(scale) != zoom, "without focus the wheel belongs to ComfyUI's canvas"
    browser.run(f"app.canvas.ds.scale = {zoom}; app.canvas.setDirty(true, true)")
    time.sleep(0.5)
    x, y = browser.centre(".musubi-canvas")
    for kind, to in (("mousePressed", x - 80), ("mouseMoved", x + 40), ("mouseReleased", x + 40)):
        browser.mouse(kind, to, y, buttons=1, clicks=1)
    browser.mouse("mouseMoved", 5, 5)
    dragged = browser.run(picture)
    assert dragged != whole
    browser.run("document.querySelector('.musubi-canvas').focus()")
    browser.mouse("mouseWheel", x, y, wheel=-200)
    browser.mouse("mouseMoved", 5, 5)
    assert browser.run(picture) != dragged
    browser.press("Escape")
    time.sleep(0.2)
    assert our_errors(browser) == []


def test_the_log_is_searched(playing: Server, browser: Browser):
    opened(browser, playing)
    load(browser, workflow("VAELatentCache"))
    scene(playing, scene="cache-latents", node="1", steps=30, pace_s=0.01)
    browser.wait_for("document.querySelectorAll('.musubi-line').length > 25", what="the log")
    browser.click(".musubi-log input")
    browser.type("CLIP_0007")
    browser.wait_for("document.querySelectorAll('.musubi-line').length === 1", what="one line")
    assert shown(browser, ".musubi-line mark") == "clip_0007"


def test_the_jobs_tab_lists_opens_loads_and_removes(playing: Server, browser: Browser):
    opened(browser, playing)
    load(browser, workflow("Wan21LoRATrainer", "VAELatentCache", steps=5))
    queue(browser)
    browser.wait_for("document.querySelectorAll('.musubi-badge.done').length >= 2", what="both runs")
    browser.click(".musubi-jobs-tab-button")
    browser.wait_for("document.querySelectorAll('.musubi-card').length >= 2", what="the cards")
    browser.run("app.graph.clear()")
    browser.click(".musubi-card .musubi-open")
    browser.wait_for("document.querySelector('.musubi-detail .musubi-panel')", what="the run")
    before = len(playing.runs())
    browser.run("document.querySelector('.musubi-detail > .musubi-bar > .musubi-button').click()")
    browser.wait_for("app.graph.nodes.length === 2", what="its workflow")
    browser.click(".musubi-detail .danger")
    browser.wait_for("document.querySelector('.musubi-cards')", what="the list again")
    assert len(playing.runs()) == before - 1
    assert our_errors(browser) == []


def test_the_setup_dialog_makes_the_environment(playing: Server, browser: Browser):
    scene(playing, environment={"state": "missing", "message": "", "hint": "", "home": "/data/musubi"})
    opened(browser, playing)
    load(browser, workflow("Wan21Generator"))
    browser.wait_for("document.querySelector('.musubi-idle .primary')", what="the button on the node")
    browser.click(".musubi-idle .primary")
    browser.wait_for("document.querySelector('.musubi-dialog[open]')", what="the dialog")
    browser.click(".musubi-dialog .primary")
    browser.wait_for(
        "parseFloat(document.querySelector('.musubi-dialog .musubi-fill').style.width) > 20", what="progress"
    )
    browser.press("Escape")
    browser.wait_for("!document.querySelector('.musubi-dialog')", what="the dialog to close")
    browser.run("app.extensionManager.command.execute('MusubiTuner.Setup')")
    browser.wait_for("document.querySelector('.musubi-dialog[data-state=ready]')", what="the end of the making")
    assert "wheel" in shown(browser, ".musubi-dialog .musubi-lines") or "torch" in shown(browser, ".musubi-dialog pre")
    assert our_errors(browser) == []


def test_a_broken_environment_says_why(playing: Server, browser: Browser):
    broken = {"state": "broken", "message": "torch was changed", "hint": "Press Check and repair."}
    scene(playing, environment=broken)
    opened(browser, playing)
    browser.run("app.extensionManager.command.execute('MusubiTuner.Setup')")
    browser.wait_for("document.querySelector('.musubi-dialog .musubi-problem.error')", what="the problem")
    assert "torch was changed" in shown(browser, ".musubi-dialog .musubi-problem")
    scene(playing, environment={"state": "ready"})
    browser.wait_for("document.querySelector('.musubi-dialog[data-state=ready]')", what="the change")


@pytest.mark.parametrize(
    "state, detail, button", [("ready", "outdated", "Bring it up to date"), ("missing", "incomplete", "Go on")]
)
def test_an_old_or_half_made_environment_is_no_problem_but_a_button(
    playing: Server, browser: Browser, state: str, detail: str, button: str
):
    scene(playing, environment={"state": state, "detail": detail, "message": "", "hint": ""})
    opened(browser, playing)
    browser.run("app.extensionManager.command.execute('MusubiTuner.Setup')")
    browser.wait_for(f"document.querySelector('.musubi-dialog[data-state={detail}]')", what="the dialog")
    assert shown(browser, ".musubi-dialog .primary") == button
    assert browser.run("document.querySelector('.musubi-dialog .musubi-problem').hidden")
    browser.click(".musubi-dialog .primary")
    browser.wait_for("document.querySelector('.musubi-dialog[data-state=making]')", what="the making")
    browser.wait_for("document.querySelector('.musubi-dialog[data-state=ready]')", what="its end")


def test_a_wrong_setting_is_refused_below_its_field(playing: Server, browser: Browser):
    opened(browser, playing)
    browser.run("app.extensionManager.command.execute('MusubiTuner.Setup')")
    browser.wait_for(
        "document.querySelector('.musubi-dialog [data-setting=home] input:not(:disabled)')", what="the field"
    )
    browser.run(
        "(input => { input.value = 'not absolute'; input.dispatchEvent(new Event('change')) })"
        "(document.querySelector('.musubi-dialog [data-setting=home] input'))"
    )
    browser.wait_for("!document.querySelector('[data-setting=home] .musubi-problem').hidden", what="the refusal")
    assert "not an absolute path" in shown(browser, "[data-setting=home] .musubi-problem")


@RENDERERS
def test_the_page_speaks_japanese(playing: Server, browser: Browser, nodes2: bool):
    scene(playing, environment={"state": "ready"})
    opened(browser, playing, nodes2=nodes2, locale="ja")
    load(browser, workflow("Wan21LoRATrainer", steps=8))
    before = len(playing.runs())  # the node shows an earlier one until this one begins
    queue(browser)
    playing.until(lambda: len(playing.runs()) > before and playing.runs()[0]["state"] == "done", 30, "the run's end")
    browser.wait_for("document.querySelector('.musubi-badge.done')", what="the end")
    assert shown(browser, ".musubi-badge.done") == "完了"
    assert "学習" in shown(browser, ".musubi-title")
    assert [shown(browser, f".musubi-tab:nth-child({place})") for place in (1, 2, 3, 4)] == [
        "グラフ", "サンプル", "ファイル", "ログ",
    ]  # fmt: skip
    opened(browser, playing, locale="en")


def test_the_memory_plan_is_japanese_on_a_japanese_page(playing: Server, browser: Browser):
    opened(browser, playing, locale="ja")
    load(browser, workflow("Wan21LoRATrainer"))
    scene(playing, scene="train", node="1", steps=20, pace_s=0.01)
    browser.wait_for("document.querySelector('.musubi-plan[data-fits=true]:not([hidden])')", what="the plan")
    words = shown(browser, ".musubi-plan > summary")
    assert "スワップするブロック数 12 · 勾配チェックポイント · ピンメモリーなし" in words, words
    browser.click(".musubi-plan > summary")
    rows = shown(browser, ".musubi-plan table").replace("/home/me/.local/share/musubi/scratch", "")
    assert "学習ステップ11.3 GiBDiT の重み" in rows and "ディスク上の一時ファイル7.1 GiB" in rows, rows
    assert set(re.findall("[A-Za-z][A-Za-z0-9-]+", rows)) <= {
        "GiB",
        "DiT",
        "VAE",
        "GiBDiT",
        "GiBVAE",
        "T5",
        "UMT5-XXL",
        "GiBT5",
    }
    browser.wait_for("document.querySelector('.musubi-badge.done')", what="the end")
    scene(playing, scene="fail", node="1", steps=20, pace_s=0.01)
    browser.wait_for("document.querySelector('.musubi-problem.error')", what="the error")
    assert "メモリ不足" in shown(browser, ".musubi-problem")
    assert our_errors(browser) == []
    opened(browser, playing, locale="en")


def test_every_button_has_a_name_and_every_tab_a_key(playing: Server, browser: Browser):
    opened(browser, playing)
    load(browser, workflow("Wan21LoRATrainer", "Wan21Generator", "VAELatentCache", steps=5))
    queue(browser)
    browser.wait_for("document.querySelectorAll('.musubi-badge.done').length >= 3", what="all runs")
    nameless = browser.run(
        "[...document.querySelectorAll('.musubi button, .musubi input, .musubi canvas')]"
        ".filter(e => !e.textContent.trim() && !e.getAttribute('aria-label') && e.tagName !== 'CANVAS').length"
    )
    assert nameless == 0
    browser.run("document.querySelector('.musubi-tab[aria-selected=true]').focus()")
    browser.press("ArrowRight")
    assert browser.run("document.activeElement.dataset.tab") == "samples"
