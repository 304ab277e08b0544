"""The studio: what it refuses, what it draws and saves, and that it works in a browser."""

import argparse
import base64
import http.client
import io
import json
import re
import shlex
import socket
import struct
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

import minisd
from minisd.cli.commands import studio as command
from minisd.cli.main import main
from minisd.cli.studio import Studio as Drawer
from minisd.explorer import guard, server
from minisd.explorer.engine import MAX_WAITING, Cancelled, Engine, QueueFull, Task
from minisd.explorer.lines import is_plain, python_lines
from minisd.explorer.settings import read_drawing, read_settings
from minisd.observe import load_trace
from minisd.proof.record import as_png, read_enclosures
from minisd.recipes import Recipe
from tests.chromium import NAMES, Chromium, find_chromium

SLOW = pytest.mark.slow
NEEDS_CHROMIUM = pytest.mark.skipif(
    find_chromium() is None, reason=f"none of {', '.join(NAMES)} is on this machine"
)
TOKEN, TICKET = "the-token-of-these-tests", "a-ticket"
SETTINGS = {
    "prompt": "red apple, noto",
    "strength": 0.5,
    "steps": 4,
    "sampler": "k_euler",
    "schedule": "karras",
    "guidance": 4,
    "seed": 3,
}


def drawing() -> Image.Image:
    image = Image.new("RGB", (64, 64), "white")
    image.paste("red", (12, 20, 52, 60))
    image.paste("green", (36, 8, 48, 16))
    return image


def in_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


DRAWING = in_base64(as_png(drawing()))


# ---- settings and drawings ---------------------------------------------------------------------


def test_settings_become_a_recipe():
    recipe = read_settings(SETTINGS)
    assert recipe == Recipe(
        image="drawing.png",
        **{**SETTINGS, "guidance": 4.0},  # type: ignore[arg-type]
    )
    assert read_settings({**SETTINGS, "schedule": ""}).schedule is None
    cook = "\U0001f469\u200d\U0001f373"  # one sign of three characters
    assert read_settings({**SETTINGS, "prompt": cook}).prompt == cook


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strength": 1.01}, "strength must be a number from 0 to 1"),
        ({"strength": float("nan")}, "strength must be a number"),
        ({"steps": 2.5}, "steps must be a whole number from 1 to 100"),
        ({"steps": 10**9}, "steps must be a whole number from 1 to 100"),
        ({"steps": True}, "steps must be"),
        ({"guidance": "4"}, "guidance must be"),
        ({"seed": -1}, "seed must be"),
        ({"sampler": "/tmp/mine.py:sampler"}, "sampler must be one of k_lms"),
        ({"sampler": ["k_lms"]}, "sampler must be one of k_lms"),
        ({"sampler": ""}, "sampler must be one of k_lms"),
        ({"schedule": "mine.py:even"}, "schedule must be one of model"),
        ({"prompt": "a\nb"}, "the prompt must be one line"),
        ({"prompt": "\ud800"}, "the prompt must be one line"),
        ({"prompt": "x" * 1001}, "the prompt must be one line of at most 1000"),
        ({"prompt": "[fire"}, "the prompt, at character"),
    ],
)
def test_settings_that_are_refused(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read_settings({**SETTINGS, **changes})


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def huge_png() -> bytes:
    """A PNG of 60,000 x 60,000 pixels, as its header says."""
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0" * 99))


def gif() -> bytes:
    data = io.BytesIO()
    drawing().save(data, "GIF")
    return data.getvalue()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "not a whole PNG file"),
        ("no base64!", "not a whole PNG file"),
        (in_base64(gif()), "not a whole PNG file"),
        (in_base64(as_png(drawing())[:150]), "not a whole PNG file"),
        (in_base64(huge_png()), "not a whole PNG file"),
        (in_base64(as_png(drawing().resize((64, 65)))), "must be 64x64 pixels, not 64x65"),
    ],
    ids=["none", "text", "gif", "cut", "huge", "size"],
)
def test_drawings_that_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        read_drawing(text, 64)


def test_a_drawing_is_laid_on_white_paper():
    clear = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    paper = read_drawing(in_base64(as_png(clear)), 64)
    assert paper.getcolors() == [(64 * 64, (255, 255, 255))]


# ---- the engine --------------------------------------------------------------------------------


class Work:
    """A task that runs until it is released, or until it is cancelled."""

    def __init__(self, engine: Engine, page: str = ""):
        self.started, self.released = threading.Event(), threading.Event()
        self.messages: list = []
        self.ended = threading.Event()
        self.task = Task(self.work, self.send, page)
        self.before = engine.submit(self.task)

    def work(self, task: Task) -> None:
        self.started.set()
        while not self.released.wait(0.005):
            task.check()
        self.send({"kind": "done"})

    def send(self, message) -> None:
        self.messages.append(message and message["kind"])
        if message is None:
            self.ended.set()


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine()
    yield engine
    engine.stop()
    assert not engine.thread.is_alive()


def test_one_task_at_a_time_in_order(engine):
    works = [Work(engine) for _ in range(3)]
    assert works[0].started.wait(5)
    for work, later in zip(works, [*works[1:], None]):
        assert work.started.wait(5) and not (later and later.started.is_set())
        work.released.set()
        assert work.ended.wait(5) and work.messages == ["done", None]


def test_the_queue_is_bounded(engine):
    first = Work(engine)
    assert first.started.wait(5)
    assert [Work(engine).before for _ in range(MAX_WAITING)] == [1, 2, 3, 4]
    with pytest.raises(QueueFull):
        Work(engine)


def test_a_newer_task_of_the_same_page_takes_the_place_of_the_older(engine):
    running = Work(engine, "page")
    assert running.started.wait(5)
    other, waiting = Work(engine, "other"), Work(engine, "page")
    newest = Work(engine, "page")
    assert running.ended.wait(5) and running.messages == ["cancelled", None]
    assert waiting.messages == ["cancelled", None] and not waiting.started.is_set()
    assert other.started.wait(5)
    other.released.set()
    assert newest.started.wait(5) and other.messages == ["done", None]


def test_an_error_ends_the_task_and_not_the_engine(engine):
    messages: list = []

    def fail(task: Task) -> None:
        raise RuntimeError("broken")

    engine.submit(Task(fail, messages.append))
    after = Work(engine)
    assert after.started.wait(5)
    assert messages == [{"kind": "error", "text": "RuntimeError: broken"}, None]


def test_check_raises_only_when_cancelled():
    task = Task(lambda task: None, lambda message: None)
    task.check()
    task.cancelled.set()
    with pytest.raises(Cancelled):
        task.check()


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.configure(parser)
    return parser.parse_args(words)


# ---- the Python lines --------------------------------------------------------------------------


def test_python_lines_for_prompts_with_syntax(emoji):
    recipe = Recipe("fire [smoke]", image="drawing.png", seed=1, schedule="karras")
    assert is_plain("fire, noto") and not is_plain(recipe.prompt)
    words = ["--model", "sd-v1-4.ckpt", "--dtype", "bfloat16", "--device", "cuda"]
    lines = python_lines(recipe, command.load_line(arguments(*words), emoji))
    assert "minisd.Recipe(\n    'fire [smoke]'," in lines and ").draw(sd, drawing)" in lines
    assert f"sd = minisd.load('{emoji.path}', device='cuda', dtype=torch.bfloat16)" in lines
    assert lines.startswith("import torch\n") and "schedule='karras'" in lines


def test_python_lines_of_a_picture_in_exact_mode(tmp_path, monkeypatch):
    """They draw the exact picture, also in a program that is not in exact mode."""
    monkeypatch.chdir(tmp_path)
    picture = drawing()
    picture.save("drawing.png")
    recipe = Recipe("fire, noto", image="drawing.png", strength=0.5, steps=2, seed=1)
    with minisd.exact():
        lines = python_lines(recipe)
        expected = minisd.img2img(
            minisd.load(), "fire, noto", picture, strength=0.5, steps=2, seed=1
        )
    exec(compile(lines, "lines", "exec"), namespace := {})
    assert namespace["result"].latent.equal(expected.latent)
    assert Image.open("picture.png").tobytes() == expected.image.tobytes()


# ---- the server --------------------------------------------------------------------------------


class Client:
    """Requests to the studio as its page sends them; `headers` replaces some, None removes one."""

    def __init__(self, port: int, studio: server.Studio):
        self.port, self.studio = port, studio
        self.host = f"127.0.0.1:{port}"

    def send(
        self, method: str, path: str, body: object = None, headers: dict | None = None
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        merged = {"Host": self.host}
        data = None
        if method == "POST":
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            merged |= {"Origin": f"http://{self.host}", "Content-Type": "application/json"}
            merged |= {"Content-Length": str(len(data))}
        merged |= headers or {}
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in merged.items():
            if value is not None:
                connection.putheader(name, value)
        connection.endheaders(data)
        response = connection.getresponse()
        answer = response.status, response.read()
        connection.close()
        return answer

    def draw(self, page: str = "page", **changes: object) -> list[dict]:
        body = {"page": page, "settings": {**SETTINGS, **changes}, "drawing": DRAWING}
        status, answer = self.send("POST", f"/{TOKEN}/draw", body)
        assert status == 200, answer
        return [json.loads(line) for line in answer.splitlines()]

    def save(self, kind: str, *runs: str) -> bytes:
        body = {"kind": kind, "runs": runs}
        status, answer = self.send("POST", f"/{TOKEN}/save", body)
        assert status == 200, answer
        return answer


@pytest.fixture(scope="module")
def client(emoji) -> Iterator[Client]:
    """The studio in a thread, with the command's own way to write a picture."""
    drawer = Drawer(arguments())
    drawer.sd = emoji
    with command.listen(0) as listener:
        studio = server.Studio(emoji, command.picture_writer(drawer))
        running = server.make_server(studio, listener, TOKEN, TICKET)
        thread = threading.Thread(target=running.run, args=([listener],))
        thread.start()
        yield Client(listener.getsockname()[1], studio)
        running.should_exit = True
        thread.join(20)
        studio.engine.stop()
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def drawn(client) -> list[dict]:
    return client.draw()


def test_the_page_and_its_parts_are_served(client):
    for name, start in (("", b"<!doctype html>"), ("studio.js", b'"use strict"'),
                        ("studio.css", b":root")):  # fmt: skip
        status, answer = client.send("GET", f"/{TOKEN}/{name}")
        assert status == 200 and answer.startswith(start)
    page = client.send("GET", f"/{TOKEN}/")[1].decode()
    assert "{{" not in page and "http:" not in page and "https:" not in page


def test_the_ticket_leads_to_the_page_once(client):
    assert client.send("GET", f"/{TICKET}", headers={"Host": "evil.example"})[0] == 403
    assert client.send("GET", f"/{TICKET}")[0] == 303
    assert client.send("GET", f"/{TICKET}")[0] == 403


def test_every_step_is_sent_before_the_end(drawn, emoji):
    """Frames 0 to the result, each with its views; the tiles are those of img2img's own steps."""
    assert drawn[0]["kind"] == "start" and drawn[0]["data"]["prompt"] == "red apple, noto"
    frames = [message for message in drawn if message["kind"] == "frame"]
    assert [message["frame"] for message in frames] == [0, 1, 2, 3]
    for frame in frames:
        views = {"x", "x0"} if frame["frame"] in (0, 3) else {"x", "x0", "eps", "words"}
        assert frame["tiles"].keys() == views
    pictures = {m["frame"]: m["tile"] for m in drawn if m["kind"] == "picture"}
    assert sorted(pictures) == [0, 1, 2, 3]
    order = [(m["kind"], m.get("frame")) for m in drawn]
    # The first step is shown before it is decoded, later ones with their pictures.
    assert order.index(("frame", 1)) < order.index(("picture", 2)) < order.index(("frame", 2))
    result, events = draw_directly(emoji)
    assert pixels(pictures[3]) == result.image.tobytes()
    ledger = frames[1]["ledger"]
    sigma = events[0].sigma
    assert ledger["sigma_added"] == pytest.approx(sigma, rel=1e-6)  # float32
    assert ledger["sigma_expected"] == pytest.approx(sigma, rel=1e-6)
    assert [len(m["shares"]) for m in frames] == [0, 3, 3, 0]


def draw_directly(sd):
    events: list = []
    settings = {name: value for name, value in SETTINGS.items() if name != "prompt"}
    result = minisd.img2img(sd, SETTINGS["prompt"], drawing(), **settings, observe=events.append)
    return result, [event for event in events if isinstance(event, minisd.Step)]


def pixels(uri: str) -> bytes:
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGB").tobytes()


def name_of_run(messages: list[dict]) -> str:
    return next(message["run"] for message in messages if message["kind"] == "end")


def test_the_saved_picture_has_its_recipe_and_the_drawing(client, drawn, tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(client.save("picture", name_of_run(drawn)))
    recipe = minisd.read_recipe(path)
    for name, value in SETTINGS.items():
        assert getattr(recipe, name) == value
    enclosed, _ = read_enclosures(path)
    assert enclosed is not None and enclosed.tobytes() == drawing().tobytes()
    assert main(["verify", str(path)]) == 0


def test_the_python_lines_draw_the_saved_picture(client, drawn, tmp_path, monkeypatch):
    """In another folder, beside the saved drawing; to the last bit."""
    name = name_of_run(drawn)
    monkeypatch.chdir(tmp_path)
    Path("drawing.png").write_bytes(client.save("drawing", name))
    exec(compile(drawn[0]["lines"], "lines", "exec"), {})
    saved = Image.open(io.BytesIO(client.save("picture", name)))
    assert Image.open("picture.png").tobytes() == saved.tobytes()


def test_the_saved_trace_has_every_step(client, drawn, emoji, tmp_path):
    path = tmp_path / "trace.safetensors"
    path.write_bytes(client.save("trace", name_of_run(drawn)))
    trace, (result, steps) = load_trace(path), draw_directly(emoji)
    assert [step.sigma for step in trace.steps] == [step.sigma for step in steps]
    assert all((a.x == b.x).all() for a, b in zip(trace.steps, steps, strict=True))
    assert (trace.latent == result.latent).all() and trace.settings["seed"] == 3


@SLOW
def test_the_saved_explorer_is_the_one_of_the_command(client, drawn, tmp_path, monkeypatch):
    """Byte for byte."""
    other = client.draw(strength=0.25)
    page = client.save("page", name_of_run(drawn), name_of_run(other))
    monkeypatch.chdir(tmp_path)
    Path("drawing.png").write_bytes(client.save("drawing", name_of_run(drawn)))
    data = re.search(rb'id="data">(.*?)</script>', page)
    assert data is not None
    program, *words = shlex.split(json.loads(data[1])["command"])
    assert program == "minisd" and main([*words, "-o", "page.html"]) == 0
    assert Path("page.html").read_bytes() == page


def test_runs_of_different_settings_make_no_explorer(client, drawn):
    other = client.draw(seed=4)
    body = {"kind": "page", "runs": [name_of_run(drawn), name_of_run(other)]}
    status, answer = client.send("POST", f"/{TOKEN}/save", body)
    assert status == 400 and b"must differ in strength only" in answer


def test_a_blend_is_drawn_without_words(client):
    messages = client.draw(prompt="fire:1 tree:1", steps=2)
    assert messages[0]["data"]["words"] == [] and messages[-1]["kind"] == "picture"


def test_strength_0_runs_no_step(client):
    messages = client.draw(strength=0)
    assert [m["frame"] for m in messages if m["kind"] == "frame"] == [0, 1]


# ---- requests that are refused -----------------------------------------------------------------

SECRET = "root:"  # what a read of /etc/passwd would show
DRAW = {"page": "x", "settings": SETTINGS, "drawing": DRAWING}
HOSTILE = [
    ("no token", "GET", "/", None, {}, 403),
    ("part of the token", "GET", f"/{TOKEN[:-1]}/", None, {}, 403),
    ("no slash after the token", "GET", f"/{TOKEN}", None, {}, 404),
    ("another host", "GET", f"/{TOKEN}/", None, {"Host": "evil.example"}, 403),
    ("another port", "GET", f"/{TOKEN}/", None, {"Host": "127.0.0.1:1"}, 403),
    ("no host", "GET", f"/{TOKEN}/", None, {"Host": None}, 400),
    ("another origin", "GET", f"/{TOKEN}/", None, {"Origin": "http://evil.example"}, 403),
    ("another origin draws", "POST", f"/{TOKEN}/draw", DRAW, {"Origin": "null"}, 403),
    ("no origin draws", "POST", f"/{TOKEN}/draw", DRAW, {"Origin": None}, 403),
    ("another method", "PUT", f"/{TOKEN}/draw", None, {}, 405),
    ("preflight", "OPTIONS", f"/{TOKEN}/draw", None, {}, 405),
    ("a form", "POST", f"/{TOKEN}/draw", DRAW, {"Content-Type": "text/plain"}, 415),
    ("path upwards", "GET", f"/{TOKEN}/../../etc/passwd", None, {}, 404),
    ("path in percents", "GET", f"/{TOKEN}/%2e%2e/%2e%2e/etc/passwd", None, {}, 404),
    ("path with a null", "GET", f"/{TOKEN}/studio.js%00", None, {}, 404),
    ("own source", "GET", f"/{TOKEN}/server.py", None, {}, 404),
    ("large headers", "GET", f"/{TOKEN}/", None, {"X": "x" * 20_000}, 431),
    ("large body", "POST", f"/{TOKEN}/draw", b"x" * 200_000, {}, 413),
    ("lying length", "POST", f"/{TOKEN}/draw", b"", {"Content-Length": "9" * 30}, 400),
    ("no JSON", "POST", f"/{TOKEN}/draw", b"{", {}, 400),
    ("deep JSON", "POST", f"/{TOKEN}/draw", b"[" * 90_000, {}, 400),
    ("JSON of another form", "POST", f"/{TOKEN}/draw", [1], {}, 400),
    ("no drawing", "POST", f"/{TOKEN}/draw", {**DRAW, "drawing": None}, {}, 400),
    ("a file", "POST", f"/{TOKEN}/save", {"kind": "picture", "runs": ["/etc/passwd"]}, {}, 400),
    ("no runs", "POST", f"/{TOKEN}/save", {"kind": "page", "runs": []}, {}, 400),
]  # fmt: skip


def test_hostile_requests_are_refused(client, drawn):
    for name, method, path, body, headers, expected in HOSTILE:
        status, answer = client.send(method, path, body, headers)
        assert status == expected, (name, status, answer)
        assert SECRET not in answer.decode("utf-8", "replace"), name
        assert answer.count(b"\n") <= 1 and b"Traceback" not in answer, name
    unknown = {"kind": "secrets", "runs": [name_of_run(drawn)]}
    assert client.send("POST", f"/{TOKEN}/save", unknown)[0] == 400
    assert client.send("GET", f"/{TOKEN}/")[0] == 200


def test_many_silent_connections_do_not_lock_the_page_out(client):
    sockets = [socket.create_connection(("127.0.0.1", client.port)) for _ in range(300)]
    assert client.send("GET", f"/{TOKEN}/")[0] == 200
    time.sleep(0.2)
    closed = 0
    for connection in sockets:
        connection.setblocking(False)
        try:
            closed += connection.recv(1) == b""
        except BlockingIOError:
            pass
        connection.close()
    assert closed >= 300 - guard.MAX_CONNECTIONS


def test_a_body_that_does_not_arrive_is_not_waited_for(client, monkeypatch):
    monkeypatch.setattr(guard, "PATIENCE", 0.2)
    headers = {"Content-Length": "1000"}
    status, answer = client.send("POST", f"/{TOKEN}/draw", b"{", headers)
    assert status == 408 and b"did not arrive" in answer


def test_a_page_that_is_closed_cancels_its_run(client):
    """The next run of another page does not wait for 100 steps, some seconds."""
    body = json.dumps({**DRAW, "settings": {**SETTINGS, "steps": 100, "strength": 1}}).encode()
    head = f"POST /{TOKEN}/draw HTTP/1.1\r\nHost: {client.host}\r\n"
    head += f"Origin: http://{client.host}\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", client.port)) as connection:
        connection.sendall(head.encode() + body)
        received = b""
        while b'"frame": 1,' not in received:
            received += connection.recv(65536)
        task = client.studio.engine.running
    assert client.draw(page="other", steps=1)[-1]["kind"] == "picture"
    assert task is not None and task.cancelled.is_set()
    finished = client.studio.shelf.runs.values()
    assert all(kept.run.job.recipe.steps < 100 for kept in finished)


# ---- the command -------------------------------------------------------------------------------


class FakeServer:
    def run(self, sockets: list[socket.socket]) -> None:
        raise KeyboardInterrupt


def test_the_command_prints_the_address_and_opens_it(capsys, monkeypatch):
    opened: list[str] = []
    monkeypatch.setattr(command, "make_server", lambda *_: FakeServer())
    monkeypatch.setattr(command.webbrowser, "open", opened.append)
    assert main(["studio"]) == 130
    text = capsys.readouterr().out
    address = re.search(r"http://127\.0\.0\.1:\d+/[\w-]{30,}/", text)
    assert address is not None and len(opened) == 1
    # The browser gets another address, which works once: other users may see how it was started.
    (server_address, token, _), (opened_address, ticket) = (
        address[0].rsplit("/", 2),
        opened[0].rsplit("/", 1),
    )
    assert opened_address == server_address and ticket != token and len(ticket) >= 30
    assert main(["studio", "--no-open"]) == 130
    assert len(opened) == 1 and capsys.readouterr().out.count("127.0.0.1") == 1


def test_a_taken_port_is_one_clear_line(capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["studio", "--no-open", "--port", str(port)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"minisd: port {port} cannot be used") and error.count("\n") == 1


def test_missing_packages_are_one_clear_line(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["studio"]) == 2
    error = capsys.readouterr().err
    assert "needs the package uvicorn: pip install 'minisd[studio]'" in error
    assert error.count("\n") == 1


# ---- in a browser ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Chromium]:
    with Chromium(tmp_path_factory.mktemp("profile")) as chromium:
        yield chromium


@pytest.fixture
def page(browser, client) -> Iterator[Chromium]:
    browser.problems.clear()
    browser.requests.clear()
    browser.size(1200, 900)
    open_page(browser, client)
    yield browser
    assert browser.problems == []
    address = f"http://{client.host}/"
    assert all(url.startswith((address, "data:", "blob:")) for url in browser.requests)


def open_page(browser: Chromium, client: Client) -> None:
    browser.ask("Page.navigate", url="about:blank")
    browser.ask("Page.navigate", url=f"http://{client.host}/{TOKEN}/")
    browser.wait("document.documentElement?.dataset.ready === 'yes'")
    browser.run("$('steps').value = 4; $('prompt').value = 'fire, 3d'; 0")


def stroke(page: Chromium, touch: bool = False, top: float = 0.3) -> None:
    x, y, width, height = page.box("#board")
    page.down(x + 0.2 * width, y + top * height, touch)
    for part in (0.4, 0.6, 0.8):
        page.move(x + part * width, y + (top + 0.2) * height, touch)
    page.up(x + 0.8 * width, y + (top + 0.2) * height, touch)


def ink(page: Chromium) -> int:
    """How many points of the board are not white."""
    return page.run(
        "new Uint32Array(boardContext().getImageData(0, 0, 512, 512).data.buffer)"
        ".filter((point) => point !== 0xffffffff).length"
    )


def text_of(page: Chromium, name: str) -> str:
    return page.run(f"$('{name}').textContent")


DONE = "data !== null && run().done && current === null"


@SLOW
@NEEDS_CHROMIUM
@pytest.mark.parametrize("touch", [False, True], ids=["mouse", "touch"])
def test_a_stroke_is_drawn_again_step_by_step(page, touch):
    page.size(900, 900, phone=touch)
    page.run("window.seen = []; const before = show; show = () => {"
             " before(); if (seen.at(-1) !== state.frame) seen.push(state.frame); }")  # fmt: skip
    assert ink(page) == 0
    stroke(page, touch)
    page.wait(DONE)
    first = ink(page)
    assert first > 5000 and text_of(page, "headline") == "Finished, after 2 steps."
    assert set(page.run("seen")) >= {1, 2, 3}
    assert "steps asked4" in text_of(page, "ledger")
    stroke(page, touch, top=0.6)
    page.wait(f"board.strokes === 2 && {DONE}")
    assert ink(page) > first
    page.click("#undo")
    assert ink(page) == first
    page.click("#clear")
    assert ink(page) == 0


@SLOW
@NEEDS_CHROMIUM
def test_drawing_again_cancels_and_strengths_are_kept(page, client):
    page.run("$('steps').value = 100; chosen = 10; 0")
    stroke(page)
    page.wait("data !== null && run().reached >= 2")
    page.run("window.first = run(); 0")
    page.run("$('steps').value = 4; chosen = 7; 0")
    stroke(page, top=0.6)
    page.wait(f"data.steps === 4 && {DONE}")
    assert page.run("first.reached") < 100 and not page.run("first.done")
    page.run("$('strength').focus()")
    page.press("ArrowLeft")  # the slider's own key
    page.wait(f"state.run === 6 && {DONE}")
    assert page.run("data.runs.filter((r) => r.done).length") == 2
    page.click("#all")
    page.wait("data.runs.every((r) => r.done)")
    assert page.run("state.run") == 6
    page.click("#pin")
    page.run("$('prompt').value = 'tree'; redraw()")
    page.wait(f"data.prompt === 'tree' && {DONE}")
    assert text_of(page, "other-settings") == "prompt fire, 3d"
    page.click("#results > div:nth-child(3)")
    page.wait(f"state.run === 2 && {DONE}")
    assert text_of(page, "other-settings") == "prompt fire, 3d, strength 0.6"


@SLOW
@NEEDS_CHROMIUM
def test_keys_draw_and_saves_are_downloads(page, tmp_path):
    page.ask("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page.run("$('board').focus()")
    for key in (" ", "ArrowRight", "ArrowRight", "ArrowDown", " "):
        page.press(key)
    page.wait(DONE)
    assert ink(page) > 500
    for name in ("picture.png", "drawing.png", "explorer.html", "trace.safetensors"):
        kind = {"explorer.html": "page"}.get(name, name.split(".")[0])
        page.click(f"[data-kind={kind}]")
        deadline = time.monotonic() + 20
        while not (tmp_path / name).exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert (tmp_path / name).stat().st_size > 0
    assert minisd.read_recipe(tmp_path / "picture.png").prompt == "fire, 3d"
    assert "minisd.img2img(" in text_of(page, "lines")


@SLOW
@NEEDS_CHROMIUM
def test_wrong_settings_are_one_clear_line(page):
    stroke(page)
    page.wait(DONE)
    page.run("$('steps').value = 0; redraw()")
    assert text_of(page, "status") == "steps must be a number from 1 to 100"
    page.run("$('steps').value = 4; $('prompt').value = '[fire'; redraw()")
    page.wait("$('status').className === 'error'")
    assert "the prompt, at character" in text_of(page, "status")
    page.problems.clear()  # the browser notes the status 400


@SLOW
@NEEDS_CHROMIUM
def test_widths_light_and_dark(page):
    stroke(page)
    page.wait(DONE)
    page.click("#pin")
    papers = set()
    for width in (320, 768, 1200, 1600):
        page.size(width, 800, phone=width < 700)
        page.dark(width > 1000)
        papers.add(page.run("getComputedStyle(document.body).backgroundColor"))
        # The curve is drawn again for its new width in the frame after the page's.
        page.wait(f"document.documentElement.scrollWidth === {width}")
        assert page.run("document.documentElement.scrollWidth") == width
        sizes = page.run(
            "[...document.querySelectorAll('p, h1, h2, label, button, dt, dd, input, select')]"
            ".filter((e) => e.textContent.trim())"
            ".map((e) => parseFloat(getComputedStyle(e).fontSize))"
        )
        assert min(sizes) >= 12
    assert len(papers) == 2
    page.dark(False)
