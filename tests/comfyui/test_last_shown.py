"""A video that a node showed is there again after a reload, and after ComfyUI was started anew. Needs no engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .browser import Browser
from .page import load, open_page, our_errors, queue
from .server import Server, link_pack

UUID = "5b4d6c1e-91c5-4f0c-8f55-3f2f9f0c7a10"
SHOWN = "[...document.querySelectorAll('video')].find((one) => /filename=shown_/.test(one.src))"
NOTICE = "document.querySelector('.musubi-problem.warning')"
PLAYS = f"({SHOWN})?.readyState > 1 && ({SHOWN}).getBoundingClientRect().height > 50"


@pytest.fixture
def with_video(checkout: None, tmp_path: Path) -> Iterator[Server]:
    """ComfyUI with this pack and one video."""
    from engine.demo.clips import SCENES, frames
    from engine.media.writing import write_video

    link_pack(tmp_path)
    (tmp_path / "input").mkdir()
    write_video(tmp_path / "input" / "clip.mp4", frames(SCENES[0]), fps=SCENES[0].fps)
    with Server(tmp_path) as server:
        yield server


def workflow() -> dict[str, Any]:
    """A video that is saved and shown."""

    def node(number: int, name: str, values: list[Any], **more: Any) -> dict[str, Any]:
        return {
            "id": number, "type": f"MusubiTuner_{name}", "pos": [40 + 360 * (number - 1), 80], "size": [320, 360],
            "flags": {}, "order": number, "mode": 0, "properties": {}, "widgets_values": values, "inputs": [],
            "outputs": [], **more,
        }  # fmt: skip

    video = {"name": "video", "type": "VIDEO"}
    nodes = [
        node(1, "VideoInput", ["input/clip.mp4", 0, 0], outputs=[{**video, "links": [1]}]),
        node(2, "VideoOutput", ["shown", "auto"], inputs=[{**video, "link": 1}]),
    ]
    return {
        "id": UUID, "revision": 0, "last_node_id": 2, "last_link_id": 1, "nodes": nodes,
        "links": [[1, 1, 0, 2, 0, "VIDEO"]], "groups": [], "config": {}, "extra": {}, "version": 0.4,
    }  # fmt: skip


@pytest.mark.parametrize("nodes2", [False, True], ids=["classic", "nodes 2.0"])
def test_a_video_is_there_again(with_video: Server, browser: Browser, nodes2: bool):
    renderer = {"Comfy.VueNodes.Enabled": nodes2}
    open_page(browser, with_video.url, renderer)
    load(browser, workflow())
    queue(browser)
    browser.wait_for(PLAYS, what="the video")
    open_page(browser, with_video.url, renderer)
    browser.wait_for(PLAYS, what="the video after a reload")
    assert our_errors(browser) == []
    with_video.stop()
    with_video.start()
    with Browser() as second:
        open_page(second, with_video.url, renderer)
        load(second, workflow())
        second.wait_for(PLAYS, what="the video in another browser, after ComfyUI was started anew")
        assert our_errors(second) == []


@pytest.mark.parametrize("nodes2", [False, True], ids=["classic", "nodes 2.0"])
def test_a_video_that_is_gone_is_named_until_it_is_back(with_video: Server, browser: Browser, nodes2: bool):
    renderer = {"Comfy.VueNodes.Enabled": nodes2}
    open_page(browser, with_video.url, renderer)
    load(browser, workflow())
    queue(browser)
    browser.wait_for(PLAYS, what="the video")
    [file] = (with_video.base / "output").glob("shown_*")
    file.rename(with_video.base / "elsewhere.mp4")
    come_back = "window.dispatchEvent(new Event('focus'))"
    browser.run(come_back)
    browser.wait_for(f"({NOTICE})?.textContent.startsWith('{file.name} is gone')", what="the file's name")
    assert browser.run(PLAYS), "what is there to see stays"
    open_page(browser, with_video.url, {**renderer, "Comfy.Locale": "ja"})
    browser.wait_for(f"({NOTICE})?.textContent.startsWith('{file.name} が出力フォルダーに')", what="it after a reload")
    assert browser.run(f"({NOTICE}).getBoundingClientRect().height") > 20 and not browser.run(f"Boolean({SHOWN})")
    assert browser.run("app.graph.serialize().nodes[1].widgets_values") == ["shown", "auto"]
    (with_video.base / "elsewhere.mp4").rename(file)
    browser.run(come_back)
    browser.wait_for(PLAYS, what="the video, which is back")
    assert not browser.run(f"Boolean({NOTICE})")
    assert our_errors(browser) == []
    file.unlink()
    shown = {"images": [{"filename": file.name, "subfolder": "", "type": "output"}], "animated": [True]}
    told = json.dumps({"detail": {"node": "2", "display_node": "2", "output": shown}})  # as of a node that is cached
    browser.run(f"void comfyAPI.api.api.dispatchEvent(new CustomEvent('executed', {told}))")
    browser.wait_for(f"({NOTICE})?.textContent.startsWith('{file.name} が')", what="its name again")
