"""The explorer: what the page holds, that it asks for nothing, and that it works in a browser."""

import base64
import html.parser
import io
import json
import os
import re
import shlex
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

import minisd
from minisd.__main__ import main
from minisd.cli.outputs import write_new
from minisd.explorer import page as pages
from minisd.explorer.command import strengths
from tests.chromium import NAMES, Chromium, find_chromium

SKETCH = Path(__file__).parent.parent / "docs" / "pictures" / "fire-sketch.png"
NASTY = (
    '</script><script>document.title = "boom"</script> & "fire" <!-- \u2028 ]]> {{data}} '
    + 60 * "word"
)
READY = "document.documentElement?.dataset.ready === 'yes'"
NEEDS_CHROMIUM = pytest.mark.skipif(
    find_chromium() is None, reason=f"none of {', '.join(NAMES)} is on this machine"
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def whole_page(tmp_path_factory) -> Path:
    """The default run: eleven strengths, twenty steps."""
    path = tmp_path_factory.mktemp("page") / "fire.html"
    assert (
        main(["explore", "fire, 3d", "-I", str(SKETCH), "-S", "1", "-C", "4", "-o", str(path)]) == 0
    )
    return path


def small_page(path: Path, prompt: str, *more: str) -> Path:
    line = ["explore", prompt, "-I", str(SKETCH), "-S", "7", "-s", "4", "-f", "0,0.5,1"]
    assert main([*line, "-o", str(path), *more]) == 0
    return path


@pytest.fixture(scope="module")
def nasty_page(tmp_path_factory) -> Path:
    return small_page(tmp_path_factory.mktemp("page") / "nasty.html", NASTY.replace("]", "\\]"))


def data_in(path: Path) -> dict:
    found = re.findall(
        r'<script type="application/json" id="data">(.*?)</script>', path.read_text()
    )
    assert len(found) == 1
    return json.loads(found[0])


def tiles(uri: str, count: int) -> list[Image.Image]:
    head, body = uri.split(",")
    assert head in ("data:image/webp;base64", "data:image/png;base64")
    sheet = Image.open(io.BytesIO(base64.b64decode(body))).convert("RGB")
    w = sheet.width // count
    return [sheet.crop((i * w, 0, (i + 1) * w, sheet.height)) for i in range(count)]


class Tags(html.parser.HTMLParser):
    """Which tags there are, and whether each is closed by its own name."""

    VOID = ("meta", "link", "input", "br")

    def __init__(self, text: str):
        super().__init__()
        self.seen: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.title = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["title"]:
            self.title += data


# ---- the file ----------------------------------------------------------------------------------


def test_size(whole_page):
    assert whole_page.stat().st_size < 5e6
    assert whole_page.stat().st_size < 2e6  # so it was, with room; more is worth a look


@pytest.mark.parametrize("name", ["whole_page", "nasty_page"])
def test_it_is_html_that_refers_to_nothing(name, request):
    text = request.getfixturevalue(name).read_text()
    tags = Tags(text)
    assert tags.open == []
    assert [tag for tag, _ in tags.seen].count("script") == 2
    for what in ("http:", "https:", "url(", "@import", "fetch(", "XMLHttp", "import(", "ftp:"):
        assert what not in text  # base64 has neither : nor (
    for tag, attributes in tags.seen:
        for place in ("src", "href", "action", "data", "srcset"):
            assert attributes.get(place, "data:").startswith("data:"), tag
    policy = next(a for _, a in tags.seen if a.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"].startswith("default-src 'none'; img-src data:;")


def test_what_the_prompt_says_is_text(nasty_page):
    tags = Tags(nasty_page.read_text())
    assert tags.title == f"{NASTY.replace(']', chr(92) + ']')} · minisd explorer"
    assert data_in(nasty_page)["prompt"] == NASTY.replace("]", "\\]")


def test_the_results_are_img2img_s(whole_page, emoji):
    """To the last bit: the tiles are lossless, and each strength is drawn alone."""
    data = data_in(whole_page)
    assert [run["strength"] for run in data["runs"]] == [i / 10 for i in range(11)]
    drawing = minisd.images.resize(minisd.images.open_image(SKETCH), (64, 64))
    for i in (0, 3, 10):
        run = data["runs"][i]
        steps = []

        def observe(name, steps=steps, **values):
            if name == "step":
                steps.append(values["step"])

        settings = {"steps": 20, "guidance": 4.0, "seed": 1, "observe": observe}
        result = minisd.img2img(emoji, "fire, 3d", drawing, strength=i / 10, **settings)
        pictures = tiles(run["sheets"]["image"], run["run"] + 2)
        assert pictures[-1].tobytes() == result.image.tobytes()
        assert run["run"] == len(steps) == 2 * i
        for k, step in enumerate(steps):
            with torch.inference_mode():
                believed = minisd.images.to_pil(emoji.vae.decode(step.x0))
            assert pictures[1 + k].tobytes() == believed.tobytes()


def test_what_the_page_knows(whole_page):
    data = data_in(whole_page)
    assert (
        data["words"] == ["fire", "3d"] and data["size"] == [64, 64] and data["latent"] == [16, 16]
    )
    assert data["sigmas"] == minisd.SCHEDULES["model"](20)
    for run in data["runs"]:
        n, ledger = run["run"], run["ledger"]
        assert ledger["calls"] == n
        for view, count in (
            ("x", n + 2),
            ("x0", n + 2),
            ("image", n + 2),
            ("eps", n),
            ("words", n),
        ):
            if count:
                assert tiles(run["sheets"][view], count)[0].width in (16, 64)
        assert [len(shares) for shares in run["shares"]] == [n, n]
        if n:
            sigma = data["sigmas"][20 - n]
            # x0, noise and x are float32, and at sigma 14.6 the image is a small part of x
            assert ledger["image_gain"] == pytest.approx(1, abs=1e-6)
            assert ledger["sigma_put"] == pytest.approx(sigma, rel=1e-6)
            assert ledger["sigma_told"] == pytest.approx(sigma, rel=1e-6)


@pytest.mark.parametrize(
    "more",
    [
        ["-A", "ddim"],  # whose grid does not end in 0
        ["-A", "k_heun", "--schedule", "karras"],
        ["-C", "1"],
        ["-W", "128", "-H", "64"],
    ],
    ids=" ".join,
)
def test_other_settings(tmp_path, more):
    data = data_in(small_page(tmp_path / "page.html", "!!!", *more))
    assert set(more) <= set(shlex.split(data["command"]))
    assert data["words"] == [] and [run["run"] for run in data["runs"]] == [0, 2, 4]


def test_larger_drawings_are_shown_smaller(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "TILE", 32)
    data = data_in(small_page(tmp_path / "page.html", "fire"))
    assert tiles(data["runs"][2]["sheets"]["image"], 6)[0].size == (32, 32)


def test_strengths():
    assert strengths("0.8,0.3,0.30") == [0.3, 0.8]
    with pytest.raises(Exception, match="not between"):
        strengths("1.2")


# ---- writing -----------------------------------------------------------------------------------


def test_nothing_is_overwritten(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    there = tmp_path / "explorer.html"
    there.write_text("mine")
    line = ["explore", "fire", "-I", str(SKETCH), "-s", "1", "-f", "0"]
    assert main([*line, "-o", str(there)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main(line) == 0  # by itself it finds another name
    assert there.read_text() == "mine" and (tmp_path / "explorer-2.html").exists()
    assert main([*line, "-o", str(tmp_path / "no" / "page.html")]) == 2
    assert main([*line, "-o", str(tmp_path)]) == 2
    with pytest.raises(OSError, match="could not write"):  # it appeared meanwhile
        write_new(there, b"new")
    assert sorted(os.listdir(tmp_path)) == ["explorer-2.html", "explorer.html"]
    assert there.read_text() == "mine"


def test_wrong_lines(tmp_path, capsys):
    line = ["-I", str(SKETCH), "-o", str(tmp_path / "page.html")]
    assert main(["explore", "fire:1 tree:1", *line]) == 2
    assert "blend" in capsys.readouterr().err
    assert main(["explore", "fire", *line, "-A", "nosuch"]) == 2
    assert main(["explore", "fire", "-I", str(tmp_path / "none.png"), *line[2:]]) == 2
    assert os.listdir(tmp_path) == []


# ---- in a browser ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Chromium(tmp_path_factory.mktemp("profile")) as chromium:
        yield chromium


@pytest.fixture
def chromium(browser):
    browser.problems.clear()
    browser.requests.clear()
    browser.size(1280, 900)
    browser.dark(False)
    yield browser
    assert browser.problems == []


def stage(chromium: Chromium) -> str:
    return chromium.run("document.getElementById('stage').toDataURL()")


def said(chromium: Chromium, part: str) -> str:
    return chromium.run(f"document.getElementById('{part}').textContent")


@NEEDS_CHROMIUM
@pytest.mark.parametrize("name", ["whole_page", "nasty_page"])
def test_it_opens_and_asks_for_nothing(chromium, name, request):
    path = request.getfixturevalue(name)
    chromium.open(path, READY)
    time.sleep(0.3)  # for what might come later
    chromium.run("1")
    asked = [url for url in chromium.requests if not url.startswith("data:")]
    assert asked == [path.as_uri()]
    assert said(chromium, "prompt") == data_in(path)["prompt"]
    assert chromium.run("document.title").endswith("minisd explorer")


@NEEDS_CHROMIUM
def test_requests_would_be_refused(chromium, whole_page):
    """The page's own policy holds: even if someone put a request in, none would leave."""
    chromium.open(whole_page, READY)
    chromium.run("fetch('https://example.com/').catch(() => { document.body.dataset.no = 'yes' })")
    chromium.wait("document.body.dataset.no === 'yes'")
    assert any("Content Security Policy" in problem for problem in chromium.problems)
    chromium.problems.clear()


@NEEDS_CHROMIUM
def test_it_begins_with_the_result_at_strength_0_7(chromium, whole_page):
    chromium.open(whole_page, READY)
    assert said(chromium, "headline") == "Finished, after 14 steps."
    assert said(chromium, "strength-said") == "0.7"
    shown = Image.open(io.BytesIO(base64.b64decode(stage(chromium).split(",")[1]))).convert("RGB")
    result = tiles(data_in(whole_page)["runs"][7]["sheets"]["image"], 16)[-1]
    assert shown.tobytes() == result.tobytes()  # pixel for pixel on the canvas; CSS enlarges it
    assert chromium.run("getComputedStyle(stage).imageRendering") == "pixelated"


@NEEDS_CHROMIUM
def test_sliders_move_the_pictures(chromium, whole_page):
    chromium.open(whole_page, READY)
    seen = {stage(chromium)}
    chromium.run("document.getElementById('strength').focus()")
    for expected in ("0.6", "0.5", "0.4"):
        chromium.press("ArrowLeft")  # the slider's own key
        assert said(chromium, "strength-said") == expected
        seen.add(stage(chromium))
    assert len(seen) == 4
    assert said(chromium, "headline") == "Finished, after 8 steps."
    chromium.run("document.getElementById('step').focus()")
    for k in (8, 7, 6):
        chromium.press("ArrowLeft")
        assert said(chromium, "headline") == f"You are at step {k} of 8."
        seen.add(stage(chromium))
    assert len(seen) == 7
    chromium.click("#strength")  # the middle
    assert said(chromium, "strength-said") == "0.5"
    assert "at step" in said(chromium, "headline")
    chromium.click("#results > div:nth-child(10)")
    assert said(chromium, "strength-said") == "0.9"


@NEEDS_CHROMIUM
def test_the_step_slider_jumps_over_what_was_skipped(chromium, whole_page):
    chromium.open(whole_page, READY)
    chromium.press("Home")
    assert said(chromium, "headline") == "This is the drawing."
    assert chromium.run("document.querySelectorAll('#tiles .skipped').length") == 6
    chromium.run("document.getElementById('step').focus()")
    chromium.press("ArrowRight")
    assert said(chromium, "headline") == "You are at step 1 of 14."
    assert "The first 6 of 20 steps were skipped." in said(chromium, "story")
    assert chromium.run("document.getElementById('step').value") == "7"
    chromium.press("ArrowLeft")
    assert said(chromium, "headline") == "This is the drawing."
    chromium.click("#tiles > div:nth-child(4)")  # a skipped one
    assert said(chromium, "headline") == "You are at step 1 of 14."


@NEEDS_CHROMIUM
def test_keys(chromium, whole_page):
    chromium.open(whole_page, READY)
    pictures = set()
    chromium.press("ArrowLeft")
    assert said(chromium, "headline") == "You are at step 14 of 14."
    for view, name in enumerate(("x", "x0", "eps", "image", "words"), 1):
        chromium.press(str(view))
        assert chromium.run("state.view") == name
        pictures.add(stage(chromium))
    assert len(pictures) == 5
    assert chromium.run("document.getElementById('words').children.length") == 2
    chromium.click("#words button:nth-child(2)")
    assert "when it reads “3d”" in said(chromium, "about")
    assert stage(chromium) not in pictures
    chromium.press("ArrowUp")
    assert said(chromium, "strength-said") == "0.8"
    chromium.press("ArrowDown")
    chromium.press("ArrowDown")
    assert said(chromium, "strength-said") == "0.6"
    chromium.press("End")
    assert said(chromium, "headline") == "Finished, after 12 steps."
    chromium.press(" ")
    assert said(chromium, "play-said") == "Pause"
    chromium.press(" ")
    assert said(chromium, "play-said") == "Play"


@NEEDS_CHROMIUM
def test_play(chromium, nasty_page):
    chromium.open(nasty_page, READY)
    chromium.click("#play")
    assert said(chromium, "headline") == "This is the drawing."
    chromium.wait("document.getElementById('headline').textContent.startsWith('Finished')", 20)
    assert said(chromium, "play-said") == "Play"


@NEEDS_CHROMIUM
def test_the_ledger_follows(chromium, whole_page):
    chromium.open(whole_page, READY)
    sigma = f", \u03c3{data_in(whole_page)['sigmas'][6]:.4f}"
    text = said(chromium, "ledger")
    assert f"noise put in{sigma}" in text and f"noise told{sigma}" in text
    assert "steps asked20" in text and "steps run14" in text and "steps skipped6" in text
    chromium.run("setRun(0)")
    text = said(chromium, "ledger")
    assert "steps run0" in text and "noise told, \u03c3\u2013" in text


@NEEDS_CHROMIUM
def test_light_and_dark(chromium, whole_page):
    chromium.open(whole_page, READY)
    paper = "getComputedStyle(document.body).backgroundColor"
    light = chromium.run(paper)
    chromium.click("#theme")
    dark = chromium.run(paper)
    assert dark != light
    chromium.click("#theme")
    assert chromium.run(paper) == light
    chromium.dark(True)
    chromium.open(whole_page, READY)
    assert chromium.run(paper) == dark


@NEEDS_CHROMIUM
@pytest.mark.parametrize("width", [320, 375, 768])
@pytest.mark.parametrize("name", ["whole_page", "nasty_page"])
def test_on_a_phone(chromium, name, width, request):
    chromium.size(width, 667, phone=True)
    chromium.open(request.getfixturevalue(name), READY)
    for view in ("image", "words"):
        chromium.run(f"setView('{view}')")
        assert chromium.run("document.documentElement.scrollWidth") == width
    wide = "[...document.querySelectorAll('body *')].filter((e) => e.getBoundingClientRect().right"
    names = chromium.run(f"{wide} > {width} + 1).map((e) => e.tagName + e.id + e.className).join()")
    assert names == ""
    sizes = chromium.run(
        "[...document.querySelectorAll('p, h1, h2, label, button, dt, dd, text')]"
        ".filter((e) => e.textContent.trim())"
        ".map((e) => parseFloat(getComputedStyle(e).fontSize))"
    )
    assert min(sizes) >= 12
    assert (
        chromium.run('parseFloat(getComputedStyle(document.getElementById("story")).fontSize)')
        >= 16
    )
    for slider in ("strength", "step"):  # high enough for a finger
        assert chromium.run(f"document.getElementById('{slider}').offsetHeight") >= 32


@NEEDS_CHROMIUM
def test_picture_and_sliders_are_on_a_phone_s_first_screen(chromium, whole_page):
    chromium.size(375, 667, phone=True)
    chromium.open(whole_page, READY)
    for part in ("stage", "strength", "step"):
        bottom = f"document.getElementById('{part}').getBoundingClientRect().bottom"
        assert chromium.run(bottom) <= 667
    x, y = chromium.middle("#strength")
    before = stage(chromium)
    chromium.ask("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
    for shift in (20, 40, 60):
        points = [{"x": x - shift, "y": y}]
        chromium.ask("Input.dispatchTouchEvent", type="touchMove", touchPoints=points)
    chromium.ask("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    assert float(said(chromium, "strength-said")) < 0.5
    assert stage(chromium) != before
