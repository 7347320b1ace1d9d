"""Takes the pictures in `docs/pictures/`: a training half way, an error, the setup dialog, the jobs tab, and more.

    python -m tests.comfyui.make_pictures http://127.0.0.1:8188

Needs a running ComfyUI with this pack, the engine and the demo models: the pictures show real runs, on small models.
"""

from __future__ import annotations

import argparse
import json
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .browser import Browser
from .page import load, look_at, open_page, queue
from .test_workflows import FOLDER as WORKFLOWS

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "pictures"
TRAINING = "Wan 2.1 - train a LoRA from a folder"
TRAINER = "MusubiTuner_Wan21LoRATrainer"
STEPS = 120
HALF_S = 1200.0


def wanted(changes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The training workflow with some widgets changed: class → widget → value."""
    workflow: dict[str, Any] = json.loads((WORKFLOWS / f"{TRAINING}.json").read_text(encoding="utf-8"))
    for node in workflow["nodes"]:
        names = node.get("widgets_values_named", {})
        for name, value in changes.get(node["type"], {}).items():
            place = list(names).index(name)
            names[name] = node["widgets_values"][place] = value
    return workflow


def open_with(browser: Browser, url: str, *, nodes2: bool = False, locale: str = "en", theme: str = "dark") -> None:
    settings = {"Comfy.VueNodes.Enabled": nodes2, "Comfy.Locale": locale, "Comfy.ColorPalette": theme}
    open_page(browser, url, settings)


def newest_training(url: str, is_so: Callable[[dict[str, Any]], bool]) -> None:
    """Wait until the run that began last is a training of which something is true."""
    begun, end = time.time(), time.monotonic() + HALF_S
    while time.monotonic() < end:
        with urllib.request.urlopen(f"{url}/musubi/runs") as reply:
            newest = json.load(reply)["runs"][0]
        if newest["verb"] == "train" and newest["started"] > begun - 1 and is_so(newest):
            return
        time.sleep(0.5)
    raise SystemExit(f"Waited {HALF_S:.0f} s in vain for the training.")


def is_half_way(run: dict[str, Any]) -> bool:
    return bool((run["progress"] or {}).get("done", 0) > STEPS * 0.55)


def training(browser: Browser, url: str, name: str, **look: Any) -> None:
    """A training half way, the pointer on its curve; then it is cancelled.

    The page is closed meanwhile, since drawing without a GPU takes as much of a small machine as the training; that it
    shows everything when it is opened again is one of the things that the picture shows.
    """
    open_with(browser, url, **look)
    changes = {
        "MusubiTuner_LoRATrainingConfig": {"max_train_steps": STEPS},
        TRAINER: {"output_name": f"{name}_{int(time.time())}"},
    }
    workflow = wanted(changes)
    load(browser, workflow, "My first LoRA")
    queue(browser)
    browser.open("about:blank")
    newest_training(url, is_half_way)
    open_with(browser, url, **look)
    load(browser, workflow, "My first LoRA")
    look_at(browser, [TRAINER], left=60, top=90)
    panel = "document.querySelector('.musubi-panel[data-task=train]')"
    browser.wait_for(f"{panel}.querySelector('.musubi-badge.running')", what="the training")
    x, y = browser.centre(".musubi-canvas")
    browser.mouse("mouseMoved", x - 60, y)
    time.sleep(0.5)
    browser.picture(FOLDER / f"{name}.jpg", quality=88)
    browser.mouse("mouseMoved", 5, 5)
    browser.run("app.extensionManager.command.execute('Comfy.Interrupt')")
    browser.wait_for(f"!{panel}.querySelector('.musubi-badge.running')", what="the end")


def failure(browser: Browser, url: str) -> None:
    """A wrong model file: what the node says."""
    open_with(browser, url)
    wrong = {"MusubiTuner_Wan21ModelPaths": {"task": "i2v-14B"}, TRAINER: {"output_name": "wrong"}}
    load(browser, wanted(wrong), "A wrong choice")
    look_at(browser, [TRAINER], left=60, top=90)
    queue(browser)
    newest_training(url, lambda run: run["state"] == "failed")
    time.sleep(8.0)
    browser.picture(FOLDER / "error.jpg", quality=88)


def whole_graph(browser: Browser, url: str, name: str, **look: Any) -> None:
    """The training workflow as it is opened from the templates."""
    open_with(browser, url, **look)
    load(browser, wanted({}), TRAINING)
    types = {node["type"] for node in wanted({})["nodes"]}
    look_at(browser, sorted(types), left=60, top=50)
    browser.picture(FOLDER / f"{name}.jpg", quality=85)


def jobs(browser: Browser, url: str, **look: Any) -> None:
    """The list of jobs after a reload, and one of them."""
    open_with(browser, url, **look)
    browser.click(".musubi-jobs-tab-button")
    browser.wait_for("document.querySelectorAll('.musubi-card').length > 3", what="the cards")
    time.sleep(1.0)
    browser.picture(FOLDER / "jobs.jpg", quality=88)
    browser.run(
        "(cards => cards.find((card) => /Training/.test(card.textContent)).querySelector('.musubi-open').click())"
        "([...document.querySelectorAll('.musubi-card[data-state=done]')])"
    )
    time.sleep(2.5)
    browser.picture(FOLDER / "job.jpg", quality=88)


def setup(browser: Browser, url: str, name: str, **look: Any) -> None:
    """The setup dialog."""
    open_with(browser, url, **look)
    browser.run("app.extensionManager.command.execute('MusubiTuner.Setup')")
    browser.wait_for("document.querySelector('.musubi-dialog[data-state]')", what="the dialog")
    time.sleep(1.0)
    browser.picture(FOLDER / f"{name}.jpg", quality=88)


def pictures(browser: Browser, url: str) -> dict[str, Callable[[], None]]:
    """What can be taken, in an order in which the list of jobs fills up."""
    japanese = {"locale": "ja", "theme": "light"}
    return {
        "training": lambda: training(browser, url, "training"),
        "training_nodes2": lambda: training(browser, url, "training_nodes2", nodes2=True),
        "training_ja": lambda: training(browser, url, "training_ja", nodes2=True, **japanese),
        "workflow": lambda: whole_graph(browser, url, "workflow"),
        "workflow_nodes2": lambda: whole_graph(browser, url, "workflow_nodes2", nodes2=True),
        "error": lambda: failure(browser, url),
        "jobs": lambda: jobs(browser, url),
        "setup": lambda: setup(browser, url, "setup"),
        "setup_ja": lambda: setup(browser, url, "setup_ja", **japanese),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("names", nargs="*", help="only these")
    given = parser.parse_args()
    with Browser(width=1280, height=800) as browser:
        for name, take in pictures(browser, given.url).items():
            if not given.names or name in given.names:
                browser.resize(*((2000, 1250) if name.startswith("workflow") else (1280, 800)))
                take()
        open_with(browser, given.url)  # the settings stay with the server: back to the usual ones


if __name__ == "__main__":
    main()
