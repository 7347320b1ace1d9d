"""Takes the pictures in `docs/pictures/`: a training half way, an error, the setup dialog, the jobs tab, and more.

    python -m tests.comfyui.make_pictures http://127.0.0.1:8188

Needs a running ComfyUI with this pack, the engine and the demo models: the pictures show real runs, on small models.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .browser import Browser
from .page import load, look_at, open_page, queue
from .test_workflows import FOLDER as WORKFLOWS

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "pictures"
TRAINING = "Wan 2.1 - train a LoRA from a folder"
TRAINER, GENERATOR = "MusubiTuner_Wan21LoRATrainer", "MusubiTuner_Wan21Generator"
STEPS = 200
BEGUN_S = 300.0


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


def training(browser: Browser, url: str, name: str, **look: Any) -> None:
    """A training half way, the pointer on its curve; then it is cancelled."""
    open_with(browser, url, **look)
    changes = {
        "MusubiTuner_LoRATrainingConfig": {"max_train_steps": STEPS},
        TRAINER: {"output_name": f"{name}_{int(time.time())}"},
    }
    load(browser, wanted(changes), "My first LoRA")
    look_at(browser, [TRAINER, GENERATOR], left=60, top=90)
    queue(browser)
    panel = "document.querySelector('.musubi-panel[data-task=train]')"
    browser.wait_for(f"{panel}.querySelector('.musubi-badge.running')", seconds=BEGUN_S, what="the training")
    done = f"Number({panel}.querySelector('.musubi-facts').textContent.match(/(\\d+) \\/ {STEPS} step/)?.[1])"
    browser.wait_for(f"{done} > {STEPS * 0.55}", what="half the steps", seconds=BEGUN_S)
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
    browser.wait_for("document.querySelector('.musubi-problem.error')", seconds=BEGUN_S, what="the error")
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
        "[...document.querySelectorAll('.musubi-card[data-state=done]')]"
        ".find((card) => /Training|Video/.test(card.textContent)).querySelector('.musubi-open').click()"
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    url = parser.parse_args().url
    with Browser(width=1280, height=800) as browser:
        training(browser, url, "training")
        training(browser, url, "training_nodes2", nodes2=True)
        training(browser, url, "training_ja", nodes2=True, locale="ja", theme="light")
        browser.resize(2000, 1250)
        whole_graph(browser, url, "workflow")
        whole_graph(browser, url, "workflow_nodes2", nodes2=True)
        browser.resize(1280, 800)
        jobs(browser, url)
        setup(browser, url, "setup")
        setup(browser, url, "setup_ja", locale="ja", theme="light")
        failure(browser, url)


if __name__ == "__main__":
    main()
