"""Takes the pictures in `docs/pictures/`: a training half way, an error, the setup dialog, the jobs tab, and more.

    python -m tests.comfyui.make_pictures http://127.0.0.1:8189

Needs a running ComfyUI with the fake pack (`server.fake_pack`), so that the pictures show a run of a full-size model.
"""

from __future__ import annotations

import argparse
import json
import time
import urllib.request
from pathlib import Path
from typing import Any

from .browser import Browser
from .page import load, look_at, open_page, queue
from .test_page import workflow

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "pictures"
NAMES = ("Wan21LoRATrainer", "Wan21Generator")
STEPS = 300


def tell(url: str, **asked: Any) -> None:
    """Have the fake pack play a scene or take a state."""
    data = json.dumps(asked).encode()
    request = urllib.request.Request(f"{url}/fake/scene", data, {"Content-Type": "application/json"})
    urllib.request.urlopen(request, timeout=30).read()


def training(browser: Browser, url: str, name: str, *, nodes2: bool, locale: str, theme: str) -> None:
    """A training half way, the pointer on its curve."""
    settings = {"Comfy.VueNodes.Enabled": nodes2, "Comfy.Locale": locale, "Comfy.ColorPalette": theme}
    open_page(browser, url, settings)
    graph = workflow(*NAMES, steps=STEPS)
    load(browser, graph, "Wan LoRA")
    tell(url, scene="generate", node="2", workflow=graph, steps=10, pace_s=0.01)
    look_at(browser, [f"MusubiTuner_{name}" for name in NAMES], left=60, top=90)
    queue(browser)
    browser.wait_for("document.querySelector('.musubi-badge.running')", what="the run")
    done = f"Number(document.querySelector('.musubi-facts').textContent.match(/(\\d+) \\/ {STEPS}/)?.[1])"
    browser.wait_for(f"{done} > {STEPS * 0.55}", what="half the steps", seconds=120)
    x, y = browser.centre(".musubi-canvas")
    browser.mouse("mouseMoved", x - 60, y)
    time.sleep(0.5)
    browser.picture(FOLDER / f"{name}.jpg", quality=88)
    browser.mouse("mouseMoved", 5, 5)
    browser.run("app.extensionManager.command.execute('Comfy.Interrupt')")
    time.sleep(2.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    url = parser.parse_args().url
    ready = {"state": "ready", "home": "/home/me/.local/share/musubi", "python": "3.12.9", "torch": "2.13.0+cu130"}
    tell(url, environment=ready)
    with Browser(width=1280, height=800) as browser:
        training(browser, url, "training", nodes2=False, locale="en", theme="dark")
        training(browser, url, "training_nodes2", nodes2=True, locale="en", theme="dark")
        training(browser, url, "training_ja", nodes2=True, locale="ja", theme="light")

        open_page(browser, url, {"Comfy.VueNodes.Enabled": False, "Comfy.Locale": "en", "Comfy.ColorPalette": "dark"})
        graph = workflow("Wan21LoRATrainer", steps=80)
        load(browser, graph, "Wan LoRA")
        look_at(browser, ["MusubiTuner_Wan21LoRATrainer"], left=60, top=90)
        tell(url, scene="generate", node="9", workflow=graph, steps=10, pace_s=0.01)
        tell(url, scene="cache-latents", node="8", workflow=graph, steps=20, pace_s=0.01)
        tell(url, scene="train", node="1", workflow=graph, steps=200, pace_s=0.002)
        time.sleep(6.0)
        tell(url, scene="fail", node="1", workflow=graph, steps=200, pace_s=0.002)
        browser.wait_for("document.querySelector('.musubi-problem.error')", what="the error")
        time.sleep(10.0)
        browser.picture(FOLDER / "error.jpg", quality=88)
        open_page(browser, url)
        browser.click(".musubi-jobs-tab-button")
        time.sleep(1.5)
        browser.picture(FOLDER / "jobs.jpg", quality=88)
        browser.run("[...document.querySelectorAll('.musubi-card[data-state=done] .musubi-open')].at(0).click()")
        time.sleep(2.0)
        browser.picture(FOLDER / "job.jpg", quality=88)

        tell(url, environment={**ready, "state": "missing", "message": "absent", "hint": ""})
        browser.run("app.extensionManager.command.execute('MusubiTuner.Setup')")
        browser.wait_for("document.querySelector('.musubi-dialog .primary')", what="the button")
        time.sleep(0.5)
        browser.picture(FOLDER / "setup.jpg", quality=88)
        browser.click(".musubi-dialog .primary")
        browser.wait_for(
            "parseFloat(document.querySelector('.musubi-dialog .musubi-fill').style.width) > 50", what="half"
        )
        browser.picture(FOLDER / "setup_running.jpg", quality=88)


if __name__ == "__main__":
    main()
