"""The explorer: the page's data, that it loads nothing, and that it works in a browser."""

import base64
import html.parser
import io
import json
import os
import re
import shlex
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from PIL import Image

import minisd
from minisd.cli.commands import explore
from minisd.cli.commands.explore import strength_list
from minisd.cli.main import main
from minisd.explorer import runs
from minisd.explorer.runs import draw_all
from minisd.images import open_image, resize, to_pil, to_tensor
from minisd.recipes import Recipe, prepare
from tests.chromium import NAMES, Chromium, find_chromium

SKETCH = Path(__file__).parent.parent / "docs" / "pictures" / "fire-sketch.png"
NASTY = (
    '</script><script>document.title = "boom"</script> & "fire" <!-- \u2028 ]]> {{data}} '
    + 60 * "word"
)
ESCAPED = NASTY.replace("]", "\\]")  # as typed: unescaped brackets are words to avoid
READY = "document.documentElement?.dataset.ready === 'yes'"
SLOW = pytest.mark.slow
NEEDS_CHROMIUM = pytest.mark.skipif(
    find_chromium() is None, reason=f"none of {', '.join(NAMES)} is on this machine"
)


@pytest.fixture(scope="module")
def full_page(tmp_path_factory) -> Path:
    """The default page: eleven strengths, twenty steps."""
    path = tmp_path_factory.mktemp("page") / "fire.html"
    line = ["explore", "fire, 3d", "-I", str(SKETCH), "-S", "1", "-C", "4", "-o", str(path)]
    assert main(line) == 0
    return path


def make_small_page(path: Path, prompt: str, *switches: str) -> Path:
    line = ["explore", prompt, "-I", str(SKETCH), "-S", "7", "-s", "4", "-f", "0,0.5,1"]
    assert main([*line, "-o", str(path), *switches]) == 0
    return path


@pytest.fixture(scope="module")
def small_page(tmp_path_factory) -> Path:
    """Three strengths, four steps. It opens at strength 0.5, which runs two of them."""
    return make_small_page(tmp_path_factory.mktemp("page") / "small.html", "fire, 3d", "-C", "4")


@pytest.fixture(scope="module")
def nasty_page(tmp_path_factory) -> Path:
    return make_small_page(tmp_path_factory.mktemp("page") / "nasty.html", ESCAPED)


def data_in(path: Path) -> dict:
    pattern = r'<script type="application/json" id="data">(.*?)</script>'
    (data,) = re.findall(pattern, path.read_text())
    return json.loads(data)


def tiles(uri: str, count: int) -> list[Image.Image]:
    head, body = uri.split(",")
    assert head in ("data:image/webp;base64", "data:image/png;base64")
    sheet = Image.open(io.BytesIO(base64.b64decode(body))).convert("RGB")
    w = sheet.width // count
    return [sheet.crop((i * w, 0, (i + 1) * w, sheet.height)) for i in range(count)]


class Tags(html.parser.HTMLParser):
    """The tags of a text. Fails if a tag is not closed by its own name."""

    VOID = ("meta", "link", "input", "br")

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.title = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["title"]:
            self.title += data


# ---- the file ----------------------------------------------------------------------------------


@SLOW
def test_size(full_page):
    assert full_page.stat().st_size < 2e6


@pytest.mark.parametrize("name", [pytest.param("full_page", marks=SLOW), "nasty_page"])
def test_html_refers_to_nothing_outside_the_file(name, request):
    text = request.getfixturevalue(name).read_text()
    page = Tags(text)
    assert page.open == []
    assert [tag for tag, _ in page.tags].count("script") == 2
    for part in ("http:", "https:", "url(", "@import", "fetch(", "XMLHttp", "import(", "ftp:"):
        assert part not in text  # base64 has neither : nor (
    for tag, attributes in page.tags:
        for attribute in ("src", "href", "action", "data", "srcset"):
            assert attributes.get(attribute, "data:").startswith("data:"), tag
    policy = next(a for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"].startswith("default-src 'none'; img-src data:;")


def test_tags_in_the_prompt_stay_text(nasty_page):
    assert Tags(nasty_page.read_text()).title == f"{ESCAPED} · minisd explorer"
    assert data_in(nasty_page)["prompt"] == ESCAPED


@pytest.mark.parametrize(
    ("name", "steps", "seed", "runs"),
    [
        pytest.param("full_page", 20, 1, {0: 0, 3: 6, 10: 20}, marks=SLOW),
        ("small_page", 4, 7, {0: 0, 1: 2, 2: 4}),
    ],
    ids=["full", "small"],
)
def test_results_equal_those_of_img2img(name, steps, seed, runs, request, emoji):
    """To the last bit: the tiles are lossless, and each strength is a run of its own."""
    data = data_in(request.getfixturevalue(name))
    init_image = resize(open_image(SKETCH), (64, 64))
    for i, steps_run in runs.items():
        run = data["runs"][i]
        events: list = []
        settings = {"steps": steps, "guidance": 4.0, "seed": seed, "strength": run["strength"]}
        result = minisd.img2img(emoji, "fire, 3d", init_image, observe=events.append, **settings)
        pictures = tiles(run["sheets"]["image"], run["steps_run"] + 2)
        assert pictures[-1].tobytes() == result.image.tobytes()
        x0s = [event.x0 for event in events if isinstance(event, minisd.Step)]
        assert run["steps_run"] == len(x0s) == steps_run
        for picture, x0 in zip(pictures[1:-1], x0s, strict=True):
            with torch.inference_mode():
                decoded = to_pil(emoji.vae.decode(x0))
            assert picture.tobytes() == decoded.tobytes()


@pytest.mark.parametrize(
    ("name", "steps", "strengths"),
    [
        pytest.param("full_page", 20, [i / 10 for i in range(11)], marks=SLOW),
        ("small_page", 4, [0, 0.5, 1]),
    ],
    ids=["full", "small"],
)
def test_data_of_the_page(name, steps, strengths, request):
    data = data_in(request.getfixturevalue(name))
    assert data["words"] == ["fire", "3d"]
    assert data["size"] == [64, 64] and data["latent"] == [16, 16]
    assert data["sigmas"] == minisd.SCHEDULES["model"](steps)
    assert [run["strength"] for run in data["runs"]] == strengths
    for run in data["runs"]:
        n, ledger = run["steps_run"], run["ledger"]
        assert ledger["calls"] == n
        counts = {"x": n + 2, "x0": n + 2, "image": n + 2, "eps": n, "words": n}
        for view, count in counts.items():
            if count:
                width = 64 if view == "image" else 16
                assert tiles(run["sheets"][view], count)[0].width == width
        assert [len(shares) for shares in run["shares"]] == [n, n]
        if n:
            sigma = data["sigmas"][steps - n]
            # x0, noise and x are float32, and at sigma 14.6 the image is a small part of x
            assert ledger["image_gain"] == pytest.approx(1, abs=1e-6)
            assert ledger["sigma_added"] == pytest.approx(sigma, rel=1e-6)
            assert ledger["sigma_expected"] == pytest.approx(sigma, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "switches",
    [
        ["-A", "ddim"],  # its schedule does not end at 0
        ["-A", "k_heun", "--schedule", "karras"],
        ["-A", "k_euler_a", "--set", "eta=0.5"],
        ["-C", "1.0"],
        ["-W", "128", "-H", "64"],
    ],
    ids=" ".join,
)
def test_other_settings(tmp_path, switches):
    data = data_in(make_small_page(tmp_path / "page.html", "!!!", *switches))
    assert set(switches) <= set(shlex.split(data["command"]))
    assert data["words"] == [] and [run["steps_run"] for run in data["runs"]] == [0, 2, 4]


@pytest.mark.slow
def test_the_page_s_own_command_makes_the_same_page(tmp_path, monkeypatch):
    page = make_small_page(tmp_path / "page.html", "red apple")
    monkeypatch.chdir(SKETCH.parent)  # the command names the init image without its folder
    program, *line = shlex.split(data_in(page)["command"])
    assert program == "minisd"
    assert main([*line, "-o", str(tmp_path / "again.html")]) == 0
    assert (tmp_path / "again.html").read_bytes() == page.read_bytes()


def test_a_sampler_and_a_schedule_from_a_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from minisd.samplers import k_euler as euler\n"
        "def even(steps):\n    return [10 - 10 * i / steps for i in range(steps + 1)]\n"
    )
    switches = ["-A", f"{file}:euler", "--schedule", f"{file}:even"]
    data = data_in(make_small_page(tmp_path / "page.html", "fire", *switches))
    assert data["sigmas"] == [10.0, 7.5, 5.0, 2.5, 0.0]
    assert data["sampler"] == f"{file}:euler" and data["schedule"] == f"{file}:even"
    assert set(switches) <= set(shlex.split(data["command"]))


def test_large_pictures_are_scaled_down(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "TILE", 32)
    data = data_in(make_small_page(tmp_path / "page.html", "fire"))
    assert tiles(data["runs"][2]["sheets"]["image"], 6)[0].size == (32, 32)


def test_a_result_that_is_not_finite_is_refused(emoji):
    recipe = Recipe("fire", sampler=exploding, steps=2, seed=1)
    job = prepare(recipe, emoji, Image.new("RGB", (64, 64)))
    with pytest.raises(ValueError, match="strength 1, step 1: the sampler's next latent is not"):
        list(draw_all(job, [0.0, 1.0]))


def exploding(predict_eps, x, sigmas):
    for step in minisd.SAMPLERS["k_euler"](predict_eps, x, sigmas):
        yield replace(step, x_next=step.x_next * torch.inf)


def test_strength_list():
    assert strength_list("0.8,0.3,0.30") == [0.3, 0.8]
    with pytest.raises(ValueError, match="not between"):
        strength_list("1.2")


def test_help_names_every_schedule_and_files(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["explore", "-h"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"{', '.join(minisd.SCHEDULES)}, or FILE.py:FUNCTION" in text


# ---- writing -----------------------------------------------------------------------------------


def test_nothing_is_overwritten(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "explorer.html"
    file.write_text("mine")
    line = ["explore", "fire", "-I", str(SKETCH), "-s", "1", "-f", "0"]
    assert main([*line, "-o", str(file)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(line) == 0  # without -o, the page gets the next free name
    assert file.read_text() == "mine" and (tmp_path / "explorer-2.html").exists()
    assert main([*line, "-o", str(tmp_path)]) == 2
    assert sorted(os.listdir(tmp_path)) == ["explorer-2.html", "explorer.html"]
    assert file.read_text() == "mine"
    assert main([*line, "-o", str(tmp_path / "new" / "page.html")]) == 0
    assert os.listdir(tmp_path / "new") == ["page.html"]


def test_mistakes_are_reported_before_the_model_is_loaded(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(explore, "Studio", None)
    line = ["-I", str(SKETCH), "-o", str(tmp_path / "page.html")]
    assert main(["explore", "fire:1 tree:1", *line]) == 2
    assert "blend" in capsys.readouterr().err
    assert main(["explore", "fire", *line, "-A", "nosuch"]) == 2
    assert "there is no sampler named 'nosuch'" in capsys.readouterr().err
    assert main(["explore", "fire", "-I", str(tmp_path / "none.png"), *line[2:]]) == 2
    assert "none.png" in capsys.readouterr().err
    assert main(["explore", "fire", *line[2:]]) == 2
    assert "-I FILE" in capsys.readouterr().err
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


def text_of(chromium: Chromium, name: str) -> str:
    return chromium.run(f"document.getElementById('{name}').textContent")


@NEEDS_CHROMIUM
@pytest.mark.parametrize("name", [pytest.param("full_page", marks=SLOW), "nasty_page"])
def test_the_page_opens_and_loads_nothing(chromium, name, request):
    path = request.getfixturevalue(name)
    chromium.open(path, READY)
    time.sleep(0.3)  # for requests that come late
    chromium.run("1")
    urls = [url for url in chromium.requests if not url.startswith("data:")]
    assert urls == [path.as_uri()]
    assert text_of(chromium, "prompt") == data_in(path)["prompt"]
    assert chromium.run("document.title").endswith("minisd explorer")


@NEEDS_CHROMIUM
def test_the_browser_refuses_requests(chromium, small_page):
    """The page's own policy: even a request from a script in the page would not leave."""
    chromium.open(small_page, READY)
    chromium.run("fetch('https://example.com/').catch(() => { document.body.dataset.no = 'yes' })")
    chromium.wait("document.body.dataset.no === 'yes'")
    assert any("Content Security Policy" in problem for problem in chromium.problems)
    chromium.problems.clear()


@SLOW
@NEEDS_CHROMIUM
def test_it_opens_with_the_result_at_strength_0_7(chromium, full_page):
    chromium.open(full_page, READY)
    assert text_of(chromium, "headline") == "Finished, after 14 steps."
    assert text_of(chromium, "strength-value") == "0.7"
    picture = Image.open(io.BytesIO(base64.b64decode(stage(chromium).split(",")[1])))
    result = tiles(data_in(full_page)["runs"][7]["sheets"]["image"], 16)[-1]
    # Pixel for pixel on the canvas; CSS enlarges it.
    assert picture.convert("RGB").tobytes() == result.tobytes()
    assert chromium.run("getComputedStyle(stage).imageRendering") == "pixelated"


@NEEDS_CHROMIUM
def test_noise_is_compared_with_the_latent_of_the_init_image(chromium, small_page, emoji):
    """Its root mean square, which is not 1; it is not known for a run that adds no noise."""
    x0 = emoji.vae.encode(to_tensor(resize(open_image(SKETCH), (64, 64))))
    spread, sigmas = float(x0.square().mean() ** 0.5), data_in(small_page)["sigmas"]
    assert not 0.8 < spread < 1.25
    chromium.open(small_page, READY)
    for run, skipped in ((1, 2), (2, 0)):
        chromium.run(f"setRun({run})")
        shown = re.search(r"noise ([\d.]+) times", text_of(chromium, "strength-means"))
        # Three digits; the page's run resized the sketch itself.
        assert float(shown[1]) == pytest.approx(sigmas[skipped] / spread, rel=0.02)
        shown = re.search(r"At ([\d.]+), the noise is as strong", text_of(chromium, "even"))
        assert float(shown[1]) == pytest.approx(spread, rel=0.02)
    chromium.run("setRun(0)")
    assert text_of(chromium, "even") == ""


@SLOW
@NEEDS_CHROMIUM
def test_sliders_change_the_picture(chromium, full_page):
    chromium.open(full_page, READY)
    pictures = {stage(chromium)}
    chromium.run("document.getElementById('strength').focus()")
    for expected in ("0.6", "0.5", "0.4"):
        chromium.press("ArrowLeft")  # the slider's own key
        assert text_of(chromium, "strength-value") == expected
        pictures.add(stage(chromium))
    assert len(pictures) == 4
    assert text_of(chromium, "headline") == "Finished, after 8 steps."
    chromium.run("document.getElementById('step').focus()")
    for k in (8, 7, 6):
        chromium.press("ArrowLeft")
        assert text_of(chromium, "headline") == f"You are at step {k} of 8."
        pictures.add(stage(chromium))
    assert len(pictures) == 7
    chromium.click("#strength")  # in the middle
    assert text_of(chromium, "strength-value") == "0.5"
    assert "at step" in text_of(chromium, "headline")
    chromium.click("#results > div:nth-child(10)")
    assert text_of(chromium, "strength-value") == "0.9"


@SLOW
@NEEDS_CHROMIUM
def test_the_step_slider_jumps_over_skipped_steps(chromium, full_page):
    chromium.open(full_page, READY)
    chromium.press("Home")
    assert text_of(chromium, "headline") == "This is the init image."
    assert chromium.run("document.querySelectorAll('#tiles .skipped').length") == 6
    chromium.run("document.getElementById('step').focus()")
    chromium.press("ArrowRight")
    assert text_of(chromium, "headline") == "You are at step 1 of 14."
    assert "The first 6 of 20 steps were skipped." in text_of(chromium, "story")
    assert chromium.run("document.getElementById('step').value") == "7"
    chromium.press("ArrowLeft")
    assert text_of(chromium, "headline") == "This is the init image."
    chromium.press("PageUp")  # the slider's own key: two steps up, among the skipped ones
    assert text_of(chromium, "headline") == "You are at step 1 of 14."
    chromium.press("PageDown")
    assert text_of(chromium, "headline") == "This is the init image."
    chromium.click("#tiles > div:nth-child(4)")  # a skipped step
    assert text_of(chromium, "headline") == "You are at step 1 of 14."


# ---- the Step slider with mouse and finger -----------------------------------------------------


def slider_place(chromium: Chromium, column: float) -> tuple[float, float]:
    """The point on the Step slider that stands for a column."""
    x, y, width, height = chromium.box("#step")
    thumb = 22  # pixels; at the ends of the slider, its middle is half of that inside
    columns = chromium.run("Number(document.getElementById('step').max)")
    return x + thumb / 2 + column / columns * (width - thumb), y + height / 2


def column_of(chromium: Chromium) -> int:
    return chromium.run("Number(document.getElementById('step').value)")


def record_frames(chromium: Chromium) -> None:
    """From now on, note the frame and the slider's column each time that the page is drawn."""
    chromium.run(
        "window.frames_drawn = []; window.original_show = show;"
        "show = () => {"
        "  original_show(); frames_drawn.push([state.frame, Number($('step').value)]);"
        "}"
    )


def changes(values: list[int]) -> list[int]:
    return [b - a for a, b in pairwise(values) if b != a]


# The full page at strength 0.7: column 0 is the init image, 1 to 6 are skipped, 7 to 20 are the
# steps 1 to 14, 21 is the result. The small page at 0.5: 1 and 2 are skipped, 5 is the result.
FULL_CLICKS = [(0, 0), (2, 0), (3, 0), (4, 1), (6, 1), (7, 1), (12, 6), (20, 14)]
SMALL_CLICKS = [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2)]


@NEEDS_CHROMIUM
@pytest.mark.parametrize("touch", [False, True], ids=["mouse", "touch"])
@pytest.mark.parametrize(
    ("name", "skipped", "clicks"),
    [pytest.param("full_page", 6, FULL_CLICKS, marks=SLOW), ("small_page", 2, SMALL_CLICKS)],
    ids=["full", "small"],
)
def test_clicks_on_the_step_slider(chromium, name, skipped, clicks, touch, request):
    """A click among skipped steps goes to the nearer one of the init image and the first step."""
    chromium.size(900, 1200, phone=touch)
    chromium.open(request.getfixturevalue(name), READY)
    for column, frame in clicks:
        chromium.run("setFrame(last(run()))")
        x, y = slider_place(chromium, column)
        chromium.down(x, y, touch)
        chromium.up(x, y, touch)
        assert chromium.run("state.frame") == frame
        assert column_of(chromium) == (0 if frame == 0 else skipped + frame)


@NEEDS_CHROMIUM
@pytest.mark.parametrize("touch", [False, True], ids=["mouse", "touch"])
@pytest.mark.parametrize("size", [(1280, 900), (375, 667)], ids=["desktop", "phone"])
@pytest.mark.parametrize(
    ("name", "skipped", "steps_run"),
    [pytest.param("full_page", 6, 14, marks=SLOW), ("small_page", 2, 2)],
    ids=["full", "small"],
)
def test_dragging_the_step_slider(chromium, name, skipped, steps_run, size, touch, request):
    """The picture follows the pointer, and crosses the skipped steps in one change each way."""
    chromium.size(*size, phone=touch)
    chromium.open(request.getfixturevalue(name), READY)
    chromium.run("setFrame(0)")
    last = steps_run + 1  # the frame of the result
    places = [slider_place(chromium, i / 4) for i in range(4 * (skipped + last) + 1)]
    record_frames(chromium)
    frames, pictures = [0], set()
    for path in (places, places[::-1]):
        chromium.down(*path[0], touch)
        for x, y in path[1:]:
            chromium.move(x, y, touch)
            frames.append(chromium.run("state.frame"))
            pictures.add(stage(chromium))
        chromium.up(*path[-1], touch)
    assert changes(frames) == [1] * last + [-1] * last  # every frame once, in order
    drawn = chromium.run("frames_drawn")
    assert changes([0, *(frame for frame, _ in drawn)]) == [1] * last + [-1] * last
    assert all(column == (0 if frame == 0 else skipped + frame) for frame, column in drawn)
    assert len(pictures) == last + 1


@NEEDS_CHROMIUM
def test_dragging_at_strength_0(chromium, small_page):
    """All steps are skipped: one half of the slider is the init image, the other the result."""
    chromium.open(small_page, READY)
    chromium.run("setRun(0); setFrame(0)")
    frames = []
    chromium.down(*slider_place(chromium, 0))
    for column in range(1, 6):
        chromium.move(*slider_place(chromium, column))
        frames.append((chromium.run("state.frame"), column_of(chromium)))
    chromium.up(*slider_place(chromium, 5))
    assert frames == [(0, 0)] * 2 + [(1, 5)] * 3


@NEEDS_CHROMIUM
@pytest.mark.parametrize("touch", [False, True], ids=["mouse", "touch"])
def test_dragging_stops_the_player(chromium, small_page, touch):
    chromium.size(1280, 900, phone=touch)
    chromium.open(small_page, READY)
    chromium.run("setRun(2); play()")  # all four steps are run
    chromium.wait("state.frame > 0", 20)
    start, end = slider_place(chromium, 3), slider_place(chromium, 2)
    chromium.down(*start, touch)
    chromium.move(*end, touch)
    chromium.up(*end, touch)
    assert text_of(chromium, "play-label") == "Play"
    assert text_of(chromium, "headline") == "You are at step 2 of 4."
    assert chromium.run("state.playing") is None


@SLOW
@NEEDS_CHROMIUM
def test_keys(chromium, full_page):
    chromium.open(full_page, READY)
    pictures = set()
    chromium.press("ArrowLeft")
    assert text_of(chromium, "headline") == "You are at step 14 of 14."
    for view, name in enumerate(("x", "x0", "eps", "image", "words"), 1):
        chromium.press(str(view))
        assert chromium.run("state.view") == name
        pictures.add(stage(chromium))
    assert len(pictures) == 5
    assert chromium.run("document.getElementById('words').children.length") == 2
    chromium.click("#words button:nth-child(2)")
    assert "Attention to “3d”" in text_of(chromium, "about")
    assert stage(chromium) not in pictures
    chromium.press("ArrowUp")
    assert text_of(chromium, "strength-value") == "0.8"
    chromium.press("ArrowDown")
    chromium.press("ArrowDown")
    assert text_of(chromium, "strength-value") == "0.6"
    chromium.press("End")
    assert text_of(chromium, "headline") == "Finished, after 12 steps."
    chromium.press(" ")
    assert text_of(chromium, "play-label") == "Pause"
    chromium.press(" ")
    assert text_of(chromium, "play-label") == "Play"


@NEEDS_CHROMIUM
def test_play(chromium, nasty_page):
    chromium.open(nasty_page, READY)
    chromium.click("#play")
    assert text_of(chromium, "headline") == "This is the init image."
    chromium.wait("document.getElementById('headline').textContent.startsWith('Finished')", 20)
    assert text_of(chromium, "play-label") == "Play"


@pytest.mark.slow
@NEEDS_CHROMIUM
@pytest.mark.parametrize("touch", [False, True], ids=["mouse", "touch"])
def test_holding_the_picture_shows_the_init_image(chromium, small_page, touch):
    chromium.size(1280, 900, phone=touch)
    chromium.open(small_page, READY)
    result, (x, y) = stage(chromium), chromium.middle("#figure")
    chromium.down(x, y, touch)
    assert text_of(chromium, "tag") == "the init image" and stage(chromium) != result
    chromium.up(x, y, touch)
    assert text_of(chromium, "tag") == "the result" and stage(chromium) == result


@NEEDS_CHROMIUM
@pytest.mark.parametrize(
    ("name", "asked", "steps_run", "skipped"),
    [pytest.param("full_page", 20, 14, 6, marks=SLOW), ("small_page", 4, 2, 2)],
    ids=["full", "small"],
)
def test_the_ledger_follows_the_strength(chromium, name, asked, steps_run, skipped, request):
    path = request.getfixturevalue(name)
    chromium.open(path, READY)
    sigma = f", \u03c3{data_in(path)['sigmas'][skipped]:.4f}"
    text = text_of(chromium, "ledger")
    assert f"noise added{sigma}" in text and f"noise expected{sigma}" in text
    assert f"steps asked{asked}" in text and f"steps run{steps_run}" in text
    assert f"steps skipped{skipped}" in text
    chromium.run("setRun(0)")
    text = text_of(chromium, "ledger")
    assert "steps run0" in text and "noise expected, \u03c3\u2013" in text


@NEEDS_CHROMIUM
def test_light_and_dark(chromium, small_page):
    chromium.open(small_page, READY)
    paper = "getComputedStyle(document.body).backgroundColor"
    light = chromium.run(paper)
    chromium.click("#theme")
    dark = chromium.run(paper)
    assert dark != light
    chromium.click("#theme")
    assert chromium.run(paper) == light
    chromium.dark(True)
    chromium.open(small_page, READY)
    assert chromium.run(paper) == dark


@NEEDS_CHROMIUM
@pytest.mark.parametrize("width", [320, 375, 768])
@pytest.mark.parametrize("name", [pytest.param("full_page", marks=SLOW), "nasty_page"])
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
    story_size = 'parseFloat(getComputedStyle(document.getElementById("story")).fontSize)'
    assert chromium.run(story_size) >= 16
    for slider in ("strength", "step"):  # high enough for a finger
        assert chromium.run(f"document.getElementById('{slider}').offsetHeight") >= 32


@SLOW
@NEEDS_CHROMIUM
def test_picture_and_sliders_are_on_a_phone_s_first_screen(chromium, full_page):
    chromium.size(375, 667, phone=True)
    chromium.open(full_page, READY)
    for part in ("stage", "strength", "step"):
        bottom = f"document.getElementById('{part}').getBoundingClientRect().bottom"
        assert chromium.run(bottom) <= 667
    x, y = chromium.middle("#strength")
    before = stage(chromium)
    chromium.down(x, y, touch=True)
    for shift in (20, 40, 60):
        chromium.move(x - shift, y, touch=True)
    chromium.up(x - 60, y, touch=True)
    assert float(text_of(chromium, "strength-value")) < 0.5
    assert stage(chromium) != before
