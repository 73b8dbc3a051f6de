"""A real browser for tests: headless Chromium, driven over a pipe by its DevTools protocol."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_SECONDS = 60


def chromium() -> str:
    """Return the browser's program; the test fails where there is none."""
    if given := os.environ.get("JUDGESEYE_CHROMIUM"):
        return given  # that it does not start is then a failure
    for name in _NAMES:
        if found := shutil.which(name):
            return found
    pytest.fail("no Chromium on this machine; install one, or set JUDGESEYE_CHROMIUM")


class Tab:
    """One tab of a browser.

    Attributes:
        log: What the page has said to the console, and what went wrong in it.
    """

    def __init__(self, out: int, into: int) -> None:
        """Attach to a new tab of the browser behind two pipes."""
        self._out, self._into = out, into
        self._rest, self._number, self._session = b"", 0, ""
        self.log: list[str] = []
        self.requests: list[str] = []
        self.dialogs: list[str] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self._number += 1
        number = self._number
        session = {"sessionId": self._session} if self._session else {}
        message = json.dumps({"id": number, "method": method, "params": parameters, **session})
        os.write(self._out, message.encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                result: dict[str, Any] = answer["result"]
                return result

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + _SECONDS
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._into], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "the browser does not answer"
            more = os.read(self._into, 1 << 16)
            assert more, "the browser has ended"
            self._rest += more
        message, _, self._rest = self._rest.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        method, parameters = answer.get("method"), answer.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.log.append(json.dumps(parameters["exceptionDetails"])[:500])
        elif method == "Log.entryAdded":
            self.log.append(parameters["entry"]["text"])
        elif method == "Runtime.consoleAPICalled":
            self.log.append(json.dumps(parameters["args"])[:500])
        elif method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method == "Page.javascriptDialogOpening":
            self.dialogs.append(parameters["message"])
        return answer

    def run(self, script: str) -> Any:
        """Return what a script in the page comes to."""
        how = {"returnByValue": True, "awaitPromise": True, "allowUnsafeEvalBlockedByCSP": False}
        found = self.send("Runtime.evaluate", expression=script, **how)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, condition: str, seconds: float = 20) -> None:
        """Wait until a script in the page is true."""
        deadline = time.monotonic() + seconds
        while not self.run(f"Boolean({condition})"):
            assert time.monotonic() < deadline, f"{condition} did not come; {self.log}; {self.text()}"
            time.sleep(0.02)

    def text(self) -> str:
        """Return what the page shows."""
        return str(self.run("document.body.innerText"))

    def open(self, address: str, ready: str = "true") -> None:
        """Go to an address and wait for what is expected there."""
        self.send("Page.navigate", url=address)
        self.wait(f"document.readyState === 'complete' && ({ready})")

    def press(self, key: str, *, ctrl: bool = False) -> None:
        """Press a key."""
        codes = {"Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowRight": 39}
        printable = {"text": "\r" if key == "Enter" else key} if key not in codes or key == "Enter" else {}
        code = codes.get(key, ord(key.upper()[0]))
        event = {"key": key, "windowsVirtualKeyCode": code, "modifiers": 2 if ctrl else 0}
        self.send("Input.dispatchKeyEvent", type="keyDown", **event, **({} if ctrl else printable))
        self.send("Input.dispatchKeyEvent", type="keyUp", **event)

    def type(self, text: str) -> None:
        """Type a text where the cursor is."""
        self.send("Input.insertText", text=text)

    def screenshot(self, path: Path, width: int, height: int, scheme: str = "light") -> None:
        """Save what the page looks like on a screen of a size, light or dark."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        time.sleep(0.2)
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Tab]:
    """Start a browser that keeps its files in a folder, and return a tab of it; it ends with the block."""
    program = chromium()
    to_browser, ours_out = os.pipe()
    ours_in, from_browser = os.pipe()
    arguments = [program, "--headless=new", "--remote-debugging-pipe", f"--user-data-dir={profile}", "--no-sandbox",
                 "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking",
                 "--disable-component-update", "--window-size=1280,900"]  # fmt: skip
    # The browser reads commands from descriptor 3 and writes answers to 4.
    script = f'exec 3<&{to_browser} 4>&{from_browser}; exec "$@"'
    with (profile.parent / "chromium.log").open("wb") as log:
        process = subprocess.Popen(
            ["/bin/bash", "-c", script, "chromium", *arguments],
            pass_fds=(to_browser, from_browser),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    os.close(to_browser)
    os.close(from_browser)
    try:
        yield Tab(ours_out, ours_in)
    finally:
        os.close(ours_out)  # it ends with the pipe
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
        os.close(ours_in)
