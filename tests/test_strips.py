"""Strips, diffs and sweeps; and the noise levels in the seed document's published sheet."""

import base64
import io
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor
from scipy.optimize import minimize
from scipy.stats import norm

import minisd
from minisd.cli.main import main
from minisd.figures.axes import COLOURS, Axis, round_numbers
from minisd.figures.chart import BOTTOM, TOP, chart
from minisd.figures.contact_sheet import grid
from minisd.figures.diff_sheet import MARGIN, diff_sheet
from minisd.figures.sheet import CENTRE, END, mosaic, padded
from minisd.figures.strips import GAP, result_image, strip, strip_sheet
from minisd.figures.svg import plot
from minisd.images import to_pil
from minisd.observe import Trace, load_trace
from minisd.observe.diff import compare, report
from minisd.observe.tiles import data_uri, latent_image
from minisd.observe.trace import TracedStep
from minisd.observe.watch import Watcher
from minisd.schedule import SCHEDULES
from minisd.stable_diffusion import SD1_LATENT_RGB

REPO = Path(__file__).parent.parent
SEED = Path(__file__).parent / "seed"
FIRE = Image.new("RGB", (64, 64), "white")
FIRE.paste("red", (20, 20, 44, 50))


# ---- the published sheet of the document's txt2img figure ----------------------------------------


def published_frames() -> np.ndarray:
    sheet = np.asarray(Image.open(SEED / "000019.steps.png").convert("RGB"))
    return np.stack([sheet[2:50, 1 + 50 * i : 49 + 50 * i] for i in range(10)])


def published_noise() -> torch.Tensor:
    return torch.randn(1, 4, 48, 48, generator=torch.Generator().manual_seed(1592514025))


def test_the_first_tile_is_the_noise():
    """Pixel for pixel: the same noise, factors and rounding; sigma 14.6146, as published."""
    tile = latent_image(14.614641 * published_noise(), SD1_LATENT_RGB)
    assert (np.asarray(tile) == published_frames()[0]).all()


def noise_level(frame: np.ndarray, noise: np.ndarray) -> float:
    """How much of the known noise is in a frame: the slope of its colours on the noise's colours.

    Most pixels are clipped at 0 or 255, so this is a Tobit regression: a clipped value counts with
    the probability of lying beyond the bound."""
    y = (frame.reshape(-1, 3) + 0.5) / 255 * 2 - 1
    low, high = frame.reshape(-1, 3) == 0, frame.reshape(-1, 3) == 255

    def cost(p: np.ndarray) -> float:
        mean, spread = p[:3] + np.exp(p[3]) * noise, np.exp(p[4])
        z = (y - mean) / spread
        inside = norm.logpdf(z) - p[4]
        return -np.where(low, norm.logcdf(z), np.where(high, norm.logsf(z), inside)).sum()

    fit = minimize(cost, np.array([0, 0, 0, 0.5, -0.5]), method="L-BFGS-B")
    return float(np.exp(fit.x[3]))


def test_the_published_noise_levels_are_those_of_the_model_schedule():
    """Each tile between the ends, where the two schedules agree, is at least three times nearer to
    the model schedule than to Karras's. The first ones are within 2 %. Later tiles contain a little
    more of the noise than was added, because the network made the picture from this very noise."""
    noise = (published_noise()[0].permute(1, 2, 0) @ torch.tensor(SD1_LATENT_RGB)).reshape(-1, 3)
    levels = np.log([noise_level(frame, noise.numpy()) for frame in published_frames()[1:9]])
    model, karras = (np.log(SCHEDULES[name](10)[1:9]) for name in ("model", "karras"))
    assert (abs(levels - karras) > 3 * abs(levels - model)).all()
    assert (abs(levels - model)[:3] < 0.02).all() and (abs(levels - model)[:5] < 0.07).all()


# ---- strips --------------------------------------------------------------------------------------


def traced(sd, **settings):
    with Trace(sd, settings) as trace:
        minisd.img2img(sd, "fire", FIRE, **settings, observe=trace)
    return trace


@pytest.fixture(scope="module")
def trace(emoji):
    return traced(emoji, steps=10, strength=0.7, guidance=4, seed=1)


def tiles_of(strip_image: Image.Image, n: int) -> list[Image.Image]:
    """The last n tiles of a strip of 48-pixel tiles."""
    lefts = [strip_image.width - (n - i) * (48 + GAP) + GAP for i in range(n)]
    return [strip_image.crop((left, 0, left + 48, 48)) for left in lefts]


def test_a_strip_has_a_tile_for_each_step_at_its_right_end(trace):
    image = strip(trace, "x", 48)
    assert image.size == (10 * 48 + 9 * GAP, 48)
    for tile, x in zip(tiles_of(image, 7), trace.x, strict=True):
        assert tile.tobytes() == trace.tile(x, 48).tobytes()
    blank = np.asarray(image)[:, : 3 * (48 + GAP) - GAP]
    assert (blank[:5] == 255).all() and (blank < 200).any()  # white, but for the text in the middle


@pytest.mark.parametrize("name", ["seen", "x0", "eps", "decode"])
def test_every_row_shows_its_tensor(trace, emoji, name):
    expected = {
        "seen": lambda step: trace.tile(step.x / (step.sigma**2 + 1) ** 0.5, 48),
        "x0": lambda step: trace.tile(step.x - step.sigma * step.eps, 48),
        "eps": lambda step: trace.tile(step.eps, 48, bias=False),
        "decode": lambda step: to_pil(emoji.vae.decode(step.x0)).resize(
            (48, 48), Image.Resampling.LANCZOS
        ),
    }
    image = strip(trace, name, 48, emoji)
    assert image.size == strip(trace, "x", 48).size
    for tile, step in zip(tiles_of(image, 7), trace.steps, strict=True):
        assert tile.tobytes() == expected[name](step).tobytes()


def test_zero_is_grey_in_the_row_of_eps(trace):
    zero = torch.zeros(1, 4, 16, 16)
    assert trace.tile(zero, 48, bias=False).getpixel((0, 0)) == (127, 127, 127)
    assert trace.tile(zero, 48).getpixel((0, 0)) != (127, 127, 127)


def test_a_strip_without_steps(emoji):
    trace = traced(emoji, steps=5, strength=0, seed=1)
    image = strip(trace, "x", 48)
    assert image.width == 5 * (48 + GAP) - GAP
    assert (np.asarray(image)[:5] == 255).all() and (np.asarray(image) < 200).any()
    sheet = strip_sheet([trace], ["strength 0"], ["x", "decode"], 48, emoji)
    result = result_image(trace, 144)
    assert sheet.crop(box_of(sheet, result)).tobytes() == result.tobytes()


def box_of(sheet: Image.Image, part: Image.Image) -> tuple[int, int, int, int]:
    """Where a picture is on a sheet. Fails if it is not there."""
    a, b = (np.asarray(image, int) @ (1 << 16, 1 << 8, 1) for image in (sheet, part))
    colours, counts = np.unique(a, return_counts=True)
    count_of = dict(zip(colours.tolist(), counts.tolist(), strict=True))
    rarest = min(np.unique(b).tolist(), key=lambda colour: count_of.get(colour, 0))
    y, x = np.argwhere(b == rarest)[0]
    for top, left in np.argwhere(a == rarest) - (y, x):
        box = a[max(top, 0) : top + part.height, max(left, 0) : left + part.width]
        if np.array_equal(box, b):
            return (left, top, left + part.width, top + part.height)
    raise AssertionError("the picture is not on the sheet")


def test_the_sheet_has_each_runs_strips_and_result(trace, emoji):
    """Runs of a few steps stand in columns; of many steps, below each other."""
    other = traced(emoji, steps=10, strength=0.3, guidance=1, seed=1)
    sheet = strip_sheet([trace, other], ["0.7", "0.3"], ["x", "x0"], 48)
    lefts, tops = [], []
    for run in (trace, other):
        boxes = [box_of(sheet, strip(run, name, 48)) for name in ("x", "x0")]
        boxes.append(box_of(sheet, result_image(run, 144)))
        assert boxes[0][0] == boxes[1][0] == boxes[2][0] and boxes[0][1] < boxes[1][1] < boxes[2][1]
        lefts.append(boxes[0][0])
        tops.append(boxes[0][1])
    assert lefts[0] < lefts[1] and tops[0] == tops[1]

    stacked = strip_sheet([trace, other], ["0.7", "0.3"], ["x"], 96)
    boxes = [box_of(stacked, strip(run, "x", 96, blank=3)) for run in (trace, other)]
    assert boxes[0][2] == boxes[1][2] and boxes[0][3] < boxes[1][1]  # right ends aligned


def test_seen_is_what_the_network_was_passed(emoji):
    class Inputs(Watcher):
        def see_call(self, x_in, t, context, eps):
            inputs.append(x_in[:1])

    inputs, trace = [], Trace()
    with Inputs(emoji):
        minisd.img2img(emoji, "fire", FIRE, steps=4, seed=1, observe=trace)
    assert len(inputs) == 3
    assert all(torch.equal(a, step.x_in) for a, step in zip(inputs, trace.steps, strict=True))


def test_a_trace_of_x_alone_has_one_row(trace):
    bare = made_up([4.0, 2.0], eps=False)
    assert strip(bare, "x", 48).width == 2 * 48 + GAP
    with pytest.raises(ValueError, match="the trace has no x0"):
        strip(bare, "x0", 48)
    with pytest.raises(ValueError, match="decode needs the model"):
        strip(trace, "decode", 48)


# ---- where two runs separate ---------------------------------------------------------------------


def made_up(sigmas, offset=lambda sigma: 0.0, eps=True):
    """A trace whose x is a straight line in sigma, so that interpolation is exact."""
    noise = torch.ones(1, 4, 8, 8)
    trace = Trace()
    for i, (sigma, sigma_next) in enumerate(zip(sigmas, [*sigmas[1:], 0.0], strict=True)):
        x = sigma * noise + offset(sigma)
        trace.steps.append(TracedStep(i, sigma, sigma_next, x, noise if eps else None))
    trace.n_steps, trace.latent = len(sigmas), 0 * noise + offset(0)
    return trace


def test_a_run_does_not_separate_from_itself(trace):
    growth = compare(trace, trace)
    assert growth.sigma == pytest.approx(trace.sigma)
    assert set(growth.x) == set(growth.x0) == {0.0}
    assert (growth.latent, growth.pixels, growth.split) == (0, 0, None)
    assert "they are bit-equal" in report(growth, trace, trace, ("A", "B"))


def test_two_schedules_on_one_line_are_not_apart():
    growth = compare(made_up([8.0, 4, 2, 1]), made_up([6.0, 3, 1.5, 0.5]))
    assert growth.sigma == [6, 4, 3, 2, 1.5, 1]  # of both, in the range that both cover
    assert growth.x == pytest.approx([0] * 6, abs=1e-6)


def test_where_they_separate():
    """B leaves A's line by 2 - sigma below sigma 2: more than 0.1 at 1.5, and from there on."""
    sigmas = [8.0, 4, 2, 1.5, 1, 0.5]
    a = made_up(sigmas)
    b = made_up(sigmas, lambda sigma: max(0.0, 2 - sigma))
    growth = compare(a, b)
    assert growth.x == pytest.approx([0, 0, 0, 0.5, 1, 1.5])
    assert growth.split_sigma == 1.5 and growth.latent == pytest.approx(2)
    lines = report(growth, a, b, ("A", "B")).splitlines()
    marked = [line for line in lines if "separate from here" in line]
    assert len(marked) == 1 and marked[0].split()[:4] == ["1.5000", "4", "4", "0.5000"]
    assert lines[-1].startswith("they separate at sigma 1.500, step 4 of A and 4 of B")


def test_runs_that_meet_again_do_not_separate():
    sigmas = [8.0, 4, 2, 1]
    offset = {8.0: 0.5, 4.0: 0.5, 2.0: 0.0, 1.0: 0.0, 0: 0.0}
    growth = compare(made_up(sigmas), made_up(sigmas, offset.__getitem__))
    assert growth.x == pytest.approx([0.5, 0.5, 0, 0]) and growth.split is None


def test_the_threshold_is_a_distance_of_x():
    """x is 0.3 apart everywhere; x0 too, and above a threshold of 0.3 they do not separate."""
    a, b = made_up([4.0, 2]), made_up([4.0, 2], lambda _: 0.3)
    assert compare(a, b, threshold=0.29).split == 0
    assert compare(a, b, threshold=0.31).split is None


def test_two_seeds_are_two_noises_apart(emoji):
    """At the insertion by sigma * sqrt(2): 3 % is what 1024 normals allow (1 / sqrt(2 * 1024))."""
    traces = [traced(emoji, steps=5, strength=0.6, seed=seed) for seed in (1, 2)]
    growth = compare(*traces)
    assert growth.split == 0
    assert growth.x[0] == pytest.approx(2**0.5 * traces[0].sigma[0], rel=0.07)


def test_without_eps_x_is_compared():
    growth = compare(made_up([4.0, 2], eps=False), made_up([4.0, 2], lambda _: 1.0, eps=False))
    assert growth.x0 == [] and growth.split == 0


def test_traces_that_cannot_be_compared(trace):
    with pytest.raises(ValueError, match="no step"):
        compare(trace, Trace())
    with pytest.raises(ValueError, match="different sizes"):
        compare(trace, made_up([2.0, 1]))
    with pytest.raises(ValueError, match="no noise level"):
        compare(made_up([8.0, 4]), made_up([2.0, 1]))


def test_the_curve_is_in_line_with_the_tiles(trace, emoji):
    """The chart's point for A's step i is below the middle of A's tile i."""
    other = traced(emoji, steps=10, strength=0.7, guidance=4, seed=2)
    growth = compare(trace, other)
    sheet = diff_sheet(growth, trace, other, ("one", "two"), ["x"], 48)
    boxes = [box_of(sheet, trace.tile(x, 48)) for x in trace.x]
    assert boxes[0][0] == 10 + MARGIN
    pixels = np.asarray(sheet, int)[boxes[0][3] + 60 :]
    curve = (abs(pixels - ImageColor.getrgb(COLOURS[1])) < 8).all(axis=-1).any(axis=0)
    middles = [(left + right) // 2 for left, _, right, _ in boxes]
    assert all(curve[middle] for middle in middles)
    assert abs(int(np.flatnonzero(curve)[-1]) - middles[-1]) <= 4  # it ends with a point


# ---- sheets and plots ----------------------------------------------------------------------------


def test_a_mosaic_puts_pictures_in_cells():
    red, blue = Image.new("RGB", (4, 2), "red"), Image.new("RGB", (2, 6), "blue")
    image = mosaic([[red, blue], [blue]], gap=1, margin=3, x=END, y=CENTRE)
    assert image.size == (3 + 4 + 1 + 2 + 3, 3 + 6 + 1 + 6 + 3)
    pixels = np.asarray(image)
    assert (pixels[5:7, 3:7] == (255, 0, 0)).all() and (pixels[3:5, 3:7] == 255).all()
    assert (pixels[3:9, 8:10] == (0, 0, 255)).all() and (pixels[10:16, 5:7] == (0, 0, 255)).all()
    assert padded(red, 2, 1) is red


def test_the_grid_is_as_square_as_possible():
    images = [Image.new("RGB", (8, 4), (i, 0, 0)) for i in range(5)]
    image = grid(images)
    assert image.size == (2 * 8, 3 * 4)
    assert [image.getpixel((8 * (i % 2), 4 * (i // 2)))[0] for i in range(5)] == [0, 1, 2, 3, 4]
    assert image.getpixel((15, 11)) == (0, 0, 0)
    assert grid(images[:1]).size == (8, 4)


def test_data_uri_keeps_every_pixel_if_exact():
    noise = Image.fromarray(np.random.RandomState(0).randint(0, 256, (8, 8, 3), np.uint8))
    head, _, data = data_uri(noise, exact=True).partition(",")
    assert head in ("data:image/webp;base64", "data:image/png;base64")
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert image.convert("RGB").tobytes() == noise.tobytes()


@pytest.mark.parametrize("highest", [1e-5, 0.03, 0.1, 0.7, 1, 1.44, 9, 10, 63, 255, 1000])
def test_ticks(highest):
    ticks = round_numbers(0, highest, beyond=True)
    assert ticks[0] == 0 and ticks[-1] >= highest * (1 - 1e-6) and 3 <= len(ticks) <= 8
    assert ticks[-2] < highest
    within = round_numbers(-highest / 3, highest)
    assert -highest / 3 <= within[0] <= 0 and highest * (1 + 1e-6) >= within[-1] and 0 in within


def test_a_logarithmic_axis():
    axis = Axis(0.01, 100, log=True)
    assert axis.ticks() == pytest.approx([0.01, 0.1, 1, 10, 100])
    assert [axis.share(value) for value in (0.01, 1, 100)] == pytest.approx([0, 0.5, 1])
    assert Axis(1, 30, log=True).ticks() == [1, 2, 5, 10, 20]


def test_a_chart_puts_a_point_where_it_belongs():
    """One point in the middle of the plane, in the first colour."""
    image = chart([("", [0.0, 1, 2], [0.0, 0.5, 1])], size=(300, 200), x_range=(0, 2))
    across = (56 + 300 - 16) // 2
    assert image.getpixel((across, (TOP + 200 - BOTTOM) // 2)) == (31, 97, 180)


def test_both_plotters_use_the_same_ticks_and_colours():
    svg = plot("", {"a": [(0.0, 0.0), (1.0, 0.9)], "b": [(0.0, 0.4), (1.0, 0.5)]}, "x", "y")
    texts = re.findall(r'text-anchor="(?:middle|end)">([\d.]+)</text>', svg)
    assert texts[:6] == ["0", "0.2", "0.4", "0.6", "0.8", "1"]
    assert texts[6:] == [f"{tick:g}" for tick in round_numbers(0, 0.9)]
    assert [c for c in COLOURS if f'stroke="{c}"' in svg] == list(COLOURS[:2])


# ---- the commands --------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch, emoji):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minisd.cli.studio.load", lambda *_, **__: emoji)
    FIRE.save("in.png")
    return tmp_path


def run(line: str, status: int = 0) -> None:
    assert main(shlex.split(line)) == status


@pytest.mark.slow
def test_strip_and_diff(folder, capsys):
    run("strip fire -I in.png -s 4,5 -f 0.7,0.4 -C 4 -S 1 --rows x,x0,decode --traces t --to a.png")
    names = sorted(path.name for path in (folder / "t").iterdir())
    assert names == [f"s{s}-f{f}-k_lms-S1.safetensors" for s in (4, 5) for f in (0.4, 0.7)]
    traces = {name: load_trace(folder / "t" / name) for name in names}
    first = traces[names[0]]
    assert first.settings["prompt"] == "fire" and first.n_steps == 1
    assert (first.settings["steps"], first.settings["strength"]) == (4, 0.4)
    assert first.settings["sampler"] == "k_lms" and first.settings["image"] == "in.png"
    sheet = Image.open("a.png").convert("RGB")
    for trace in traces.values():
        for row in ("x", "x0"):
            assert box_of(sheet, strip(trace, row, 48))
        assert box_of(sheet, result_image(trace, 144))

    capsys.readouterr()
    run("diff t/s4-f0.7-k_lms-S1.safetensors t/s5-f0.7-k_lms-S1.safetensors --to d.png")
    out = capsys.readouterr().out
    assert "A: steps 4, 2 steps from" in out and "the final latents are" in out
    sheet = Image.open("d.png").convert("RGB")
    for name in ("s4-f0.7", "s5-f0.7"):
        trace = traces[f"{name}-k_lms-S1.safetensors"]
        assert box_of(sheet, strip(trace, "x0", 48, blank=0))
        assert box_of(sheet, result_image(trace, 48))


def test_a_sampler_in_a_file(folder, capsys):
    """-A, --schedule and -C take FILE.py:FUNCTION; the file's name is safe in names of files."""
    (folder / "mine.py").write_text(
        "from minisd.samplers import k_euler\n"
        "def steps(predict_eps, x, sigmas):\n    yield from k_euler(predict_eps, x, sigmas)\n"
        "def even(steps):\n    return [2 * (steps - i) / steps for i in range(steps + 1)]\n"
        "def rule(eps_uncond, eps_cond, x, sigma):\n    return eps_cond\n"
    )
    own = "-A k_euler,mine.py:steps --schedule mine.py:even -C mine.py:rule"
    run(f"strip fire -s 2 -S 1 {own} --traces t --to a.png")
    own_run, plain = (
        load_trace("t/s2-mine.py-steps-S1.safetensors"),
        load_trace("t/s2-k_euler-S1.safetensors"),
    )
    assert own_run.sigma == [2, 1] and own_run.settings["guidance"] == "mine.py:rule"
    assert torch.equal(own_run.latent, plain.latent)
    run(f"sweep fire -s 2 -S 1 {own} --to out")
    names = {path.name.rpartition("-")[0] for path in (folder / "out/pictures").iterdir()}
    assert names == {"s2-k_euler-S1", "s2-mine.py-steps-S1"}
    run("explain -s 3 -f 1 -A mine.py:steps --schedule mine.py:even")
    out = capsys.readouterr().out
    assert "3 steps at strength 1, mine.py:steps on the mine.py:even schedule" in out


def test_strip_writes_a_new_file_each_time(folder):
    for _ in range(2):
        run("strip fire -s 2 -S 1 -C 1")
    names = sorted(path.name for path in (folder / "outputs/img-samples").iterdir())
    assert names == ["000001.1.strip.png", "000002.1.strip.png"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("strip fire --rows y", "--rows y: choose from x, seen, x0, eps, decode"),
        ("strip fire -A k_lsm", "no sampler named 'k_lsm'"),
        ("strip fire -A k_lms,mine.py:mine", "there is no file mine.py"),
        ("strip fire --tile 0", "--tile must be 1 or more"),
        ("strip fire --to sheet", "sheet should end in .png, as in sheet.png"),
        ("strip fire -I missing.png", "there is no file missing.png"),
        ("diff in.png in.png", "in.png cannot be read as a trace"),
        ("diff a.safetensors in.png", "there is no file a.safetensors"),
        ("diff in.png in.png --rows decode", "--rows decode: choose from x, seen, x0, eps"),
        ("sweep fire --batch 0", "--batch must be 1 or more"),
        ("sweep fire -A k_lms,k_lsm", "no sampler named 'k_lsm'"),
    ],
)
def test_mistakes(folder, capsys, line, message):
    run(line, status=2)
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == ["in.png"]


def test_steps_after(folder, capsys):
    run("strip fire -I in.png -f 1,0.5 --steps-after 3 -C 1 -S 1 --traces t --to a.png")
    assert {path.name[:2] for path in (folder / "t").iterdir()} == {"s3", "s6"}
    run("img2img fire -I in.png -f 0.5 --steps-after 3 -C 1 -S 1")
    assert "6 steps asked, 3 run, 3 skipped" in capsys.readouterr().out


# ---- docs/see-every-step.md ----------------------------------------------------------------------


def documented() -> list[str]:
    text = (REPO / "docs/see-every-step.md").read_text()
    blocks = re.findall(r"```sh\n(.*?)```", text, re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith(("minisd ", "cp "))]


def draw_documented(tmp_path: Path, monkeypatch, emoji, lines: list[str]) -> list[str]:
    """Run the lines in an empty folder, and compare the pictures with the documented ones.

    On another machine the arithmetic rounds differently, and that grows where two runs separate:
    so a mean difference of 4 levels of 255 is accepted. Returns the pictures' names.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minisd.cli.studio.load", lambda *_, **__: emoji)
    for drawing in ("docs/pictures/fire-sketch.png", "tests/seed/fire-drawing.png"):
        (tmp_path / drawing).parent.mkdir(parents=True)
        shutil.copy(REPO / drawing, drawing)
    for line in lines:
        words = shlex.split(line, comments=True)
        if words[0] == "cp":
            shutil.copy(*words[1:])
        else:
            assert main(words[1:]) == 0, line
    made = sorted(Path("docs/pictures").glob("*.png"))
    for path in made:
        new, old = (np.asarray(Image.open(p).convert("RGB"), int) for p in (path, REPO / path))
        assert new.shape == old.shape, path
        assert np.abs(new - old).mean() <= 4, path
    return [path.name for path in made]


@pytest.mark.slow
def test_the_documented_commands_draw_the_documented_pictures(tmp_path, monkeypatch, emoji):
    names = draw_documented(tmp_path, monkeypatch, emoji, documented())
    assert len(names) >= 5
    shown = re.findall(r"\]\(pictures/([\w.-]+)\)", (REPO / "docs/see-every-step.md").read_text())
    assert {*names, "settle.png"} >= set(shown)


def test_a_documented_command_draws_its_picture(tmp_path, monkeypatch, emoji):
    lines = [line for line in documented() if "strip-txt2img.png" in line]
    names = draw_documented(tmp_path, monkeypatch, emoji, lines)
    assert len(lines) == 1 and "strip-txt2img.png" in names


def test_the_documented_explanation(capsys):
    assert main(["explain", "-s", "30", "-f", "0.7"]) == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert "\n".join(lines) in (REPO / "docs/see-every-step.md").read_text()
