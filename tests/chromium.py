"""A headless Chromium, controlled over its debugging pipe, with the standard library only."""

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

# Chromium reads commands from file descriptor 3 and writes answers to 4. This program moves the
# pipes there and then becomes Chromium.
LAUNCHER = """
import fcntl, os, sys
pipes = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 10) for fd in sys.argv[1:3]]
for number, pipe in zip((3, 4), pipes):
    os.dup2(pipe, number)
os.execv(sys.argv[3], sys.argv[3:])
"""
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SWITCHES = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
    "--no-first-run",
    "--force-color-profile=srgb",
    "--hide-scrollbars",
]


def find_chromium() -> str | None:
    """The browser's path, or None. The environment variable CHROMIUM overrides the search."""
    paths = [os.environ.get("CHROMIUM"), *map(shutil.which, NAMES)]
    return next((path for path in paths if path), None)


class Chromium:
    """`with Chromium(folder) as page:` one page; `folder` is for the browser's profile.

    `problems` collects console errors, exceptions and failed loads; `requests` collects URLs.
    """

    def __init__(self, folder: Path):
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.number, self.buffer, self.session = 0, b"", None
        to_read, self.to_browser = os.pipe()
        self.from_browser, to_write = os.pipe()
        launcher = [sys.executable, "-c", LAUNCHER, str(to_read), str(to_write)]
        browser = [str(find_chromium()), *SWITCHES, f"--user-data-dir={folder}", "about:blank"]
        self.process = subprocess.Popen(
            [*launcher, *browser],
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

    # ---- messages --------------------------------------------------------------------------------

    def ask(self, method: str, timeout: float = 60, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its result."""
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
                raise TimeoutError("the browser did not answer")
            data = os.read(self.from_browser, 1 << 16)
            if not data:
                raise OSError("the browser has ended")
            self.buffer += data
        first, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(first)

    def note(self, event: dict[str, Any]) -> None:
        method, params = event.get("method", ""), event.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(params["exceptionDetails"])[:500])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.problems.append(json.dumps(params["args"])[:500])
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.problems.append(params["entry"]["text"])

    # ---- the page --------------------------------------------------------------------------------

    def open(self, path: Path, ready: str, timeout: float = 60) -> None:
        """Open the file; wait until the JavaScript expression `ready` is true in it."""
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
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in answer:
            raise ValueError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

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

    def screenshot(self, path: Path, beyond_viewport: bool = False) -> None:
        answer = self.ask("Page.captureScreenshot", captureBeyondViewport=beyond_viewport)
        path.write_bytes(base64.b64decode(answer["data"]))

    # ---- keys, mouse and finger ------------------------------------------------------------------

    def press(self, key: str) -> None:
        for kind in ("rawKeyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, **key_codes(key))

    def click(self, selector: str) -> None:
        """With the mouse, in the middle of the element."""
        x, y = self.middle(selector)
        self.down(x, y)
        self.up(x, y)

    def down(self, x: float, y: float, touch: bool = False) -> None:
        """Press the mouse button, or put a finger down."""
        if touch:
            self.ask("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        else:
            self.mouse("mousePressed", x, y, clickCount=1)

    def move(self, x: float, y: float, touch: bool = False) -> None:
        """Move the mouse with its button held, or the finger."""
        if touch:
            self.ask("Input.dispatchTouchEvent", type="touchMove", touchPoints=[{"x": x, "y": y}])
        else:
            self.mouse("mouseMoved", x, y)

    def up(self, x: float, y: float, touch: bool = False) -> None:
        if touch:
            self.ask("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        else:
            self.mouse("mouseReleased", x, y, clickCount=1)

    def mouse(self, kind: str, x: float, y: float, **params: Any) -> None:
        buttons = 0 if kind == "mouseReleased" else 1
        button = {"button": "left", "buttons": buttons}
        self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, **button, **params)

    def middle(self, selector: str) -> tuple[float, float]:
        """The middle of the element, scrolled into view."""
        x, y, width, height = self.box(selector)
        return x + width / 2, y + height / 2

    def box(self, selector: str) -> tuple[float, float, float, float]:
        """x, y, width and height of the element, scrolled into view."""
        element = f"document.querySelector({json.dumps(selector)})"
        self.run(f"{element}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        rectangle = self.run(f"{element}.getBoundingClientRect().toJSON()")
        return tuple(rectangle[side] for side in ("x", "y", "width", "height"))


def key_codes(key: str) -> dict[str, Any]:
    """The codes that the page's default actions depend on."""
    numbers = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, " ": 32}
    numbers |= {"PageUp": 33, "PageDown": 34}
    number = numbers.get(key, ord(key[0].upper()))
    return {"code": "Space" if key == " " else key, "windowsVirtualKeyCode": number}
