"""A run of another ComfyUI on the same output folder, in the page. Needs no engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..nodes.test_elsewhere import Other
from .browser import Browser
from .page import open_page, our_errors
from .server import Server, link_pack


@pytest.fixture
def server(checkout: None, tmp_path: Path) -> Iterator[Server]:
    link_pack(tmp_path)
    with Server(tmp_path) as found:
        yield found


@pytest.mark.parametrize(
    "locale, words", [("en", "Running elsewhere"), ("ja", "別の ComfyUI で実行中")], ids=["English", "Japanese"]
)
def test_it_is_shown_as_running_there_and_followed_to_its_end(
    server: Server, browser: Browser, locale: str, words: str
):
    jobs = server.base / "output" / "musubi" / "jobs"
    other = Other(jobs)
    with other.process:
        open_page(browser, server.url, {"Comfy.Locale": locale})
        browser.click(".musubi-jobs-tab-button")
        badge = "document.querySelector('.musubi-card .musubi-badge')?.textContent"
        browser.wait_for(f"{badge} === {json.dumps(words)}", what="its card")
        browser.click(".musubi-card .musubi-open")
        browser.wait_for("document.querySelector('.musubi-detail .musubi-advice:not([hidden])')", what="where it runs")
        told = browser.run("document.querySelector('.musubi-detail .musubi-advice').textContent")
        assert str(other.process.pid) in told and ("ComfyUI" in told)
        for button in (".danger", ".musubi-body > .musubi-bar > .musubi-button"):
            assert not browser.run(f"document.querySelector('.musubi-detail {button}')?.offsetParent"), button
        refused = server.post(f"/musubi/runs/{other.run}", {}, method="DELETE")
        assert "another ComfyUI" in refused["error"]["message"]
        other.kill()
        browser.wait_for("document.querySelector('.musubi-detail .musubi-badge.failed')", what="its end")
    browser.click(".musubi-detail .danger")
    browser.wait_for("document.querySelector('.musubi-cards')", what="the list again")
    assert not (jobs / other.run).exists()
    assert our_errors(browser) == []
