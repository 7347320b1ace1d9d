"""Takes the pictures in `docs/pictures/`: every workflow, a training half way, an error, the setup dialog, jobs.

    python -m tests.comfyui.make_pictures http://127.0.0.1:8188 [name …]

Needs a running ComfyUI with this pack, the engine and the demo models: the pictures show real runs, on small models.
`_nodes2` is the newer renderer, `_ja` Japanese on light colours.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from .browser import Browser
from .graphs import graphs
from .page import load, look_at, open_page, queue
from .test_workflows import read

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "pictures"
TRAINING = "Wan 2.1 - train a LoRA from a folder"
TRAINER = "MusubiTuner_Wan21LoRATrainer"
STEPS = 120
HALF_S = 1200.0
IN_A_ROW, CELL = 3, (880, 550)
LIGHT = {"locale": "ja", "theme": "light"}
LOOKS: dict[str, dict[str, Any]] = {
    "": {},
    "_nodes2": {"nodes2": True},
    "_ja": LIGHT,
    "_nodes2_ja": {"nodes2": True, **LIGHT},
}


def wanted(changes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The training workflow with some widgets changed: class → widget → value."""
    workflow = read(TRAINING)
    for node in workflow["nodes"]:
        names = node.get("widgets_values_named", {})
        for name, value in changes.get(node["type"], {}).items():
            place = list(names).index(name)
            names[name] = node["widgets_values"][place] = value
    return workflow


def open_with(
    browser: Browser, url: str, *, nodes2: bool = False, locale: str = "en", theme: str = "dark", menu: bool = True
) -> None:
    settings = {"Comfy.VueNodes.Enabled": nodes2, "Comfy.Locale": locale, "Comfy.ColorPalette": theme}
    open_page(browser, url, {**settings, "Comfy.Graph.CanvasMenu": menu})


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


def failure(browser: Browser, url: str, name: str, **look: Any) -> None:
    """A wrong model file: what the node says."""
    open_with(browser, url, **look)
    wrong = {"MusubiTuner_Wan21ModelPaths": {"task": "i2v-14B"}, TRAINER: {"output_name": "wrong"}}
    load(browser, wanted(wrong), "A wrong choice")
    look_at(browser, [TRAINER], left=60, top=90)
    queue(browser)
    newest_training(url, lambda run: run["state"] == "failed")
    time.sleep(8.0)
    browser.picture(FOLDER / f"{name}.jpg", quality=88)


def whole_graph(browser: Browser, url: str, name: str, **look: Any) -> None:
    """The training workflow as it is opened from the templates."""
    open_with(browser, url, **look)
    load(browser, wanted({}), TRAINING)
    types = {node["type"] for node in wanted({})["nodes"]}
    look_at(browser, sorted(types), left=60, top=50)
    browser.picture(FOLDER / f"{name}.jpg", quality=85)


def every_graph(browser: Browser, url: str, name: str, **look: Any) -> None:
    """All workflows as they are opened from the templates, in one picture. They get new ids: no run is theirs yet."""
    from PIL import Image

    open_with(browser, url, menu=False, **look)
    browser.run("app.extensionManager.focusMode = true; null")
    cells = []
    with tempfile.TemporaryDirectory() as folder:
        for number, title in enumerate(graph.name for graph in graphs()):
            workflow = {**read(title), "id": str(uuid.uuid4())}
            load(browser, workflow, title)
            look_at(browser, sorted({node["type"] for node in workflow["nodes"]}), left=10, top=10)
            with Image.open(browser.picture(Path(folder) / f"{number}.png")) as cell:
                cells.append(cell.convert("RGB").resize(CELL, Image.Resampling.LANCZOS))
    browser.run("app.extensionManager.focusMode = false; null")
    width, height = CELL
    sheet = Image.new("RGB", (width * IN_A_ROW, height * -(-len(cells) // IN_A_ROW)))
    for number, cell in enumerate(cells):
        sheet.paste(cell, (number % IN_A_ROW * width, number // IN_A_ROW * height))
    sheet.save(FOLDER / f"{name}.jpg", quality=70, optimize=True)


def jobs(browser: Browser, url: str, name: str, **look: Any) -> None:
    """The list of jobs after a reload."""
    open_with(browser, url, **look)
    browser.click(".musubi-jobs-tab-button")
    browser.wait_for("document.querySelectorAll('.musubi-card').length > 3", what="the cards")
    time.sleep(1.0)
    browser.picture(FOLDER / f"{name}.jpg", quality=88)


def job(browser: Browser, url: str, name: str, **look: Any) -> None:
    """A training in the list of jobs."""
    open_with(browser, url, **look)
    browser.click(".musubi-jobs-tab-button")
    browser.wait_for("document.querySelectorAll('.musubi-card').length > 3", what="the cards")
    browser.run(
        "(cards => cards.find((card) => /Training/.test(card.textContent)).querySelector('.musubi-open').click())"
        "([...document.querySelectorAll('.musubi-card[data-state=done]')])"
    )
    time.sleep(2.5)
    browser.picture(FOLDER / f"{name}.jpg", quality=88)


def setup(browser: Browser, url: str, name: str, **look: Any) -> None:
    """The setup dialog."""
    open_with(browser, url, **look)
    browser.run("app.extensionManager.command.execute('MusubiTuner.Setup')")
    browser.wait_for("document.querySelector('.musubi-dialog[data-state]')", what="the dialog")
    time.sleep(1.0)
    browser.picture(FOLDER / f"{name}.jpg", quality=88)


def pictures(browser: Browser, url: str) -> dict[str, Callable[[], None]]:
    """What can be taken, in an order in which the list of jobs fills up: each as it looks in four ways."""
    kinds = {"training": training, "workflow": whole_graph, "error": failure, "jobs": jobs, "setup": setup}
    whole = {f"{kind}{way}": (take, look) for kind, take in kinds.items() for way, look in LOOKS.items()}
    whole |= {f"workflows{way}": (every_graph, look) for way, look in LOOKS.items()} | {"job": (job, {})}
    return {
        name: partial(take, browser, url, name, **look)
        for name, (take, look) in whole.items()
        if name not in ("workflow_ja", "workflow_nodes2_ja")  # as the sheets of all show them
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
