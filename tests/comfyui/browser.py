"""A headless Chromium that a test looks through: open a page, run JavaScript in it, click, take a picture.

Speaks the DevTools protocol over a pair of pipes, so it needs nothing but Chromium and the standard library. Every
message of the page's console is kept, because "no error in the console" is itself a test. What was given up: other
browsers, and more than one window at a time for each `Browser`.
"""

from __future__ import annotations

import base64
import json
import os
import queue
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--mute-audio",
    "--autoplay-policy=no-user-gesture-required", "--remote-debugging-pipe",
)  # fmt: skip
ANSWER_S = 60.0
LOOK_AGAIN_S = 0.1


def find_chromium() -> str | None:
    """The browser's path: CHROMIUM_PATH, or the first of the usual names on PATH."""
    named = os.environ.get("CHROMIUM_PATH")
    return named or next(filter(None, map(shutil.which, NAMES)), None)


class BrowserError(RuntimeError):
    """The page threw, or the browser did not answer."""


@dataclass
class Browser:
    """One Chromium with one page. Use it in a `with`; afterwards the process and its profile are gone."""

    width: int = 1600
    height: int = 1000
    locale: str = "en-US"
    console: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def __enter__(self) -> Browser:
        self._profile = Path(tempfile.mkdtemp(prefix="chromium-"))
        self._answers: dict[int, queue.Queue[dict[str, Any]]] = {}
        self._last_id = 0
        self._lock = threading.Lock()
        self._start(str(find_chromium()))
        target = self.send("Target.createTarget", {"url": "about:blank"}, session=None)["targetId"]
        self._session = self.send("Target.attachToTarget", {"targetId": target, "flatten": True}, session=None)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        self.resize(self.width, self.height)
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(timeout=10)
        self._write.close()
        shutil.rmtree(self._profile, ignore_errors=True)

    def _start(self, chromium: str) -> None:
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()

        def place_pipes() -> None:
            spare_in, spare_out = os.dup(theirs_in), os.dup(theirs_out)  # 3 and 4 may be the pipes themselves
            os.dup2(spare_in, 3)
            os.dup2(spare_out, 4)

        self.process = subprocess.Popen(
            [chromium, *FLAGS, f"--user-data-dir={self._profile}", f"--lang={self.locale}", "about:blank"],
            preexec_fn=place_pipes, close_fds=False, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self._write = os.fdopen(ours_out, "wb", buffering=0)
        threading.Thread(target=self._listen, args=(ours_in,), daemon=True).start()
        self._session: str | None = None

    def _listen(self, pipe: int) -> None:
        rest = b""
        while chunk := os.read(pipe, 1 << 16):
            *messages, rest = (rest + chunk).split(b"\0")
            for message in messages:
                self._receive(json.loads(message))
        os.close(pipe)

    def _receive(self, message: dict[str, Any]) -> None:
        if "id" in message:
            self._answers.pop(message["id"]).put(message)
            return
        method, params = message.get("method"), message.get("params", {})
        if method == "Runtime.consoleAPICalled":
            text = " ".join(str(part.get("value", part.get("description", ""))) for part in params["args"])
            self.console.append(f"{params['type']}: {text}")
            if params["type"] in ("error", "assert"):
                self.errors.append(text)
        elif method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif method == "Page.javascriptDialogOpening":
            threading.Thread(target=self.send, args=("Page.handleJavaScriptDialog", {"accept": True})).start()

    def send(
        self, method: str, params: dict[str, Any] | None = None, *, session: str | None = "page"
    ) -> dict[str, Any]:
        """One DevTools command and its answer."""
        with self._lock:
            self._last_id += 1
            number = self._last_id
            answer: queue.Queue[dict[str, Any]] = queue.Queue()
            self._answers[number] = answer
            message: dict[str, Any] = {"id": number, "method": method, "params": params or {}}
            if session and self._session:
                message["sessionId"] = self._session
            self._write.write(json.dumps(message).encode() + b"\0")
        try:
            reply = answer.get(timeout=ANSWER_S)
        except queue.Empty:
            raise BrowserError(f"No answer to {method} within {ANSWER_S:.0f} s.") from None
        if "error" in reply:
            raise BrowserError(f"{method}: {reply['error']['message']}")
        result: dict[str, Any] = reply["result"]
        return result

    def resize(self, width: int, height: int, scale: float = 1.0) -> None:
        """The page's size in CSS pixels; a picture has `scale` times as many."""
        self.width, self.height = width, height
        self.send(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": False},
        )

    def open(self, url: str) -> None:
        self.send("Page.navigate", {"url": url})

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression or of the promise that it gives."""
        reply = self.send(
            "Runtime.evaluate",
            {"expression": script, "awaitPromise": True, "returnByValue": True, "userGesture": True},
        )
        if "exceptionDetails" in reply:
            details = reply["exceptionDetails"]
            raise BrowserError(details.get("exception", {}).get("description") or details["text"])
        return reply["result"].get("value")

    def wait_for(self, script: str, *, seconds: float = 30.0, what: str = "") -> Any:
        """Look until a JavaScript expression, or the promise that it gives, is true; its value, True for an object."""
        plain = "value => value instanceof Object && !Array.isArray(value) ? true : value"
        look = f"(async () => {{ try {{ return await ({script}) }} catch {{ return null }} }})().then({plain})"
        end = time.monotonic() + seconds
        while True:
            try:
                value = self.run(look)
            except BrowserError as error:  # the page is just being replaced
                if "context" not in str(error):
                    raise
                value = None
            if value:
                return value
            if time.monotonic() > end:
                raise BrowserError(f"Waited {seconds:.0f} s in vain for {what or script}. Console: {self.console[-8:]}")
            time.sleep(LOOK_AGAIN_S)

    def centre(self, selector: str) -> tuple[float, float]:
        """Where the middle of an element is, in CSS pixels of the page, once it has stopped moving."""
        look = (
            f"(b => b && b.width && [b.x + b.width / 2, b.y + b.height / 2])"
            f"(document.querySelector({json.dumps(selector)})?.getBoundingClientRect())"
        )
        before = None
        while True:
            now = self.wait_for(look, what=f"{selector} to be visible")
            if now == before:
                return now[0], now[1]
            before = now
            time.sleep(LOOK_AGAIN_S)

    def click(self, selector: str) -> None:
        """A real press of the left button on the middle of an element."""
        x, y = self.centre(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.mouse(kind, x, y, buttons=1 if kind == "mousePressed" else 0, clicks=1)

    def mouse(self, kind: str, x: float, y: float, *, buttons: int = 0, clicks: int = 0, wheel: float = 0.0) -> None:
        self.send(
            "Input.dispatchMouseEvent",
            {"type": kind, "x": x, "y": y, "buttons": buttons, "clickCount": clicks, "deltaX": 0, "deltaY": wheel,
             "button": "left" if kind in ("mousePressed", "mouseReleased") or buttons else "none"},
        )  # fmt: skip

    def type(self, text: str) -> None:
        self.send("Input.insertText", {"text": text})

    def press(self, key: str) -> None:
        """One key by its DOM name: "Escape", "Tab", "ArrowRight"."""
        code = {"Escape": 27, "Tab": 9, "Enter": 13, "ArrowLeft": 37, "ArrowRight": 39}.get(key, ord(key[0].upper()))
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", {"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code})

    def picture(self, path: Path, *, of: str = "", quality: int = 0, scale: float = 1.0) -> Path:
        """A PNG of the page, or a JPEG where `quality` is 1..100; `of` a selector cuts it to that element.

        `scale` below 1 makes the picture smaller than the page.
        """
        options: dict[str, Any] = {"format": "jpeg", "quality": quality} if quality else {"format": "png"}
        options["clip"] = {"x": 0, "y": 0, "width": self.width, "height": self.height, "scale": scale}
        if of:
            box = self.run(
                f"(b => ({{x: b.x, y: b.y, width: b.width, height: b.height, scale: {scale}}}))"
                f"(document.querySelector({json.dumps(of)}).getBoundingClientRect())"
            )
            options["clip"] = box
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", options)["data"]))
        return path
