"""A headless Chromium to be told what to do, over its debugging pipe; standard library only."""

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

# Chromium's pipe is at 3 (where it reads) and 4 (where it writes).
BEHIND_PIPES = """
import fcntl, os, sys
pipes = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 10) for fd in sys.argv[1:3]]
for at, pipe in zip((3, 4), pipes):
    os.dup2(pipe, at)
os.execv(sys.argv[3], sys.argv[3:])
"""
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find_chromium() -> str | None:
    """The browser's path, or None where there is none. CHROMIUM names one that is elsewhere."""
    if named := os.environ.get("CHROMIUM"):
        return named
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Chromium:
    """`with Chromium(folder) as page:` one page; `folder` is for the browser's profile.

    What it saw is in `problems` (console errors, exceptions, failed loads) and `requests` (URLs).
    """

    def __init__(self, folder: Path):
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.events: list[str] = []
        self.number, self.buffer, self.session = 0, b"", None
        to_read, self.to_browser = os.pipe()
        self.from_browser, to_write = os.pipe()
        switches = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        switches += ["--remote-debugging-pipe", f"--user-data-dir={folder}", "--no-first-run"]
        switches += ["--force-color-profile=srgb", "--hide-scrollbars", "about:blank"]
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                BEHIND_PIPES,
                str(to_read),
                str(to_write),
                find_chromium(),
                *switches,
            ],
            pass_fds=(to_read, to_write),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)

    def __enter__(self) -> "Chromium":
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        attached = self.ask("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.ask(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        self.session = None
        try:
            self.ask("Browser.close", timeout=10)
            self.process.wait(10)
        except (OSError, TimeoutError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        os.close(self.to_browser)
        os.close(self.from_browser)

    def ask(self, method: str, timeout: float = 60, **params: Any) -> dict[str, Any]:
        self.number += 1
        message: dict[str, Any] = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to_browser, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + timeout
        while True:
            answer = self.receive(until)
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise OSError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self.note(answer)

    def receive(self, until: float) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            if not select.select([self.from_browser], [], [], max(0, until - time.monotonic()))[0]:
                raise TimeoutError("no answer from the browser")
            data = os.read(self.from_browser, 1 << 16)
            if not data:
                raise OSError("the browser is gone")
            self.buffer += data
        first, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(first)

    def note(self, event: dict[str, Any]) -> None:
        method, params = event.get("method", ""), event.get("params", {})
        self.events.append(method)
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(params["exceptionDetails"])[:500])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.problems.append(json.dumps(params["args"])[:500])
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.problems.append(params["entry"]["text"])

    def open(self, path: Path, ready: str, timeout: float = 60) -> None:
        """Open the file; wait until the expression `ready` is true in it."""
        self.ask("Page.navigate", url=path.resolve().as_uri())
        self.wait(ready, timeout)

    def wait(self, expression: str, timeout: float = 60) -> None:
        until = time.monotonic() + timeout
        while not self.run(expression):
            if time.monotonic() > until:
                raise TimeoutError(f"{expression} was not true in {timeout} s; {self.problems}")
            time.sleep(0.05)

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        said = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in said:
            raise ValueError(f"{expression}: {said['exceptionDetails']}")
        return said["result"].get("value")

    def size(self, width: int, height: int, phone: bool = False) -> None:
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        self.ask("Emulation.setTouchEmulationEnabled", enabled=phone)

    def dark(self, on: bool) -> None:
        value = "dark" if on else "light"
        features = [{"name": "prefers-color-scheme", "value": value}]
        self.ask("Emulation.setEmulatedMedia", features=features)

    def press(self, key: str) -> None:
        for kind in ("rawKeyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, **code(key))

    def click(self, selector: str) -> None:
        """With the mouse, in the element's middle."""
        x, y = self.middle(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def middle(self, selector: str) -> tuple[float, float]:
        found = f"document.querySelector({json.dumps(selector)})"
        self.run(f"{found}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        box = self.run(f"(({{x, y, width, height}}) => [x, y, width, height])"
                       f"({found}.getBoundingClientRect().toJSON())")  # fmt: skip
        return box[0] + box[2] / 2, box[1] + box[3] / 2

    def screenshot(self, path: Path, whole: bool = False) -> None:
        shot = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))


def code(key: str) -> dict[str, Any]:
    """What the page's default actions go by."""
    numbers = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, " ": 32}
    number = numbers.get(key, ord(key[0].upper()))
    return {"code": "Space" if key == " " else key, "windowsVirtualKeyCode": number}
