"""Strips, diffs, sweeps; and what the document's published sheet says of its noise."""

import csv
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.optimize import minimize
from scipy.stats import norm

import minisd
from minisd.__main__ import main
from minisd.schedule import SCHEDULES
from minisd.trace.diff import compare, told
from minisd.trace.sheet import plot, ticks
from minisd.trace.strips import GAP, strip, strip_sheet
from minisd.trace.tiles import SD1, latent_image, latent_tile
from minisd.trace.trace import Seen, Trace, load_trace, save_trace, traced
from minisd.trace.watch import watching

REPO = Path(__file__).parent.parent
SEED = Path(__file__).parent / "seed"
FIRE = Image.new("RGB", (64, 64), "white")
FIRE.paste("red", (20, 20, 44, 50))


# ---- the published sheet of the document's txt2img figure --------------------------------------


def published_frames() -> np.ndarray:
    sheet = np.asarray(Image.open(SEED / "000019.steps.png").convert("RGB"))
    return np.stack([sheet[2:50, 1 + 50 * i : 49 + 50 * i] for i in range(10)])


def published_noise() -> torch.Tensor:
    return torch.randn(1, 4, 48, 48, generator=torch.Generator().manual_seed(1592514025))


def test_the_first_tile_is_the_noise():
    """Pixel for pixel: the same noise, factors and rounding; sigma 14.6146, as published."""
    tile = latent_image(14.614641 * published_noise(), SD1)
    assert (np.asarray(tile) == published_frames()[0]).all()


def noise_level(frame: np.ndarray, noise: np.ndarray) -> float:
    """How much of the known noise is in a frame: the slope of its colours on the noise's.

    Most pixels are clipped at 0 or 255, so it is a Tobit regression: a clipped one counts with the
    probability of lying beyond the bound."""
    y = (frame.reshape(-1, 3) + 0.5) / 255 * 2 - 1
    low, high = frame.reshape(-1, 3) == 0, frame.reshape(-1, 3) == 255

    def cost(p: np.ndarray) -> float:
        mean, spread = p[:3] + np.exp(p[3]) * noise, np.exp(p[4])
        z = (y - mean) / spread
        seen = norm.logpdf(z) - p[4]
        return -np.where(low, norm.logcdf(z), np.where(high, norm.logsf(z), seen)).sum()

    found = minimize(cost, np.array([0, 0, 0, 0.5, -0.5]), method="L-BFGS-B")
    return float(np.exp(found.x[3]))


def test_the_published_noise_levels_are_the_model_grid():
    """Each tile between the ends, where the two grids agree, is at least three times nearer to the
    model grid than to Karras's. The first ones are within 2 %; in later ones a little more of the
    noise is found than was put in, since the network made the picture out of that very noise."""
    noise = (published_noise()[0].permute(1, 2, 0) @ torch.tensor(SD1)).reshape(-1, 3).numpy()
    found = np.log([noise_level(frame, noise) for frame in published_frames()[1:9]])
    model, karras = (np.log(SCHEDULES[name](10)[1:9]) for name in ("model", "karras"))
    assert (abs(found - karras) > 3 * abs(found - model)).all()
    assert (abs(found - model)[:3] < 0.02).all() and (abs(found - model)[:5] < 0.07).all()


# ---- strips ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trace(emoji):
    _, trace = traced(
        minisd.img2img, emoji, "fire", FIRE, steps=10, strength=0.7, guidance=4, seed=1
    )
    return trace


def test_a_strip_has_a_tile_a_step_at_its_right_end(trace):
    image = strip(trace, "x", 48, asked=10)
    assert image.size == (10 * 48 + 9 * GAP, 48)
    for i in range(7):
        left = (3 + i) * (48 + GAP)
        tile = image.crop((left, 0, left + 48, 48))
        assert tile.tobytes() == latent_tile(trace, trace.x[i], 48).tobytes()
    blank = np.asarray(image)[:, : 3 * (48 + GAP) - GAP]
    assert (blank[:5] == 255).all() and (blank < 200).any()  # white, but for what is written there


@pytest.mark.parametrize("what", ["x", "seen", "x0", "eps", "decode"])
def test_every_row(trace, emoji, what):
    assert strip(trace, what, 48, 10, emoji).size == strip(trace, "x", 48, 10).size


def test_a_strip_of_no_steps(emoji):
    _, trace = traced(minisd.img2img, emoji, "fire", FIRE, steps=5, strength=0, seed=1)
    assert strip(trace, "x", 48, asked=5).width == 5 * (48 + GAP) - GAP
    strip_sheet([trace], ["strength 0"], ["x", "decode"], 48, emoji)


def test_seen_is_what_the_network_was_given(emoji):
    given, trace = [], Trace()
    with watching(emoji.unet, lambda x_in, *_: given.append(x_in[:1])):
        minisd.img2img(emoji, "fire", FIRE, steps=4, seed=1, observe=trace)
    assert all(torch.equal(a, step.x_in) for a, step in zip(given, trace.steps, strict=True))


# ---- where two runs part -----------------------------------------------------------------------


def made_up(sigmas, offset=lambda sigma: 0.0, eps=True):
    """A trace whose x is a straight line in sigma, and so is interpolated without an error."""
    noise = torch.ones(1, 4, 8, 8)
    xs = [sigma * noise + offset(sigma) for sigma in sigmas]
    steps = [
        Seen(i, sigma, after, x, noise if eps else None)
        for i, (sigma, after, x) in enumerate(zip(sigmas, [*sigmas[1:], 0.0], xs))
    ]
    return Trace(steps=steps, n_steps=len(steps), latent=0 * noise + offset(0))


def test_a_run_does_not_part_from_itself(trace):
    growth = compare(trace, trace)
    assert growth.sigma == pytest.approx(trace.sigma)
    assert set(growth.x) == set(growth.x0) == {0.0}
    assert (growth.end, growth.pixels, growth.parted) == (0, 0, None)


def test_other_grids_of_one_line_are_one():
    growth = compare(made_up([8.0, 4, 2, 1]), made_up([6.0, 3, 1.5, 0.5]))
    assert growth.sigma == [6, 4, 3, 2, 1.5, 1]  # of both, where both are
    assert growth.x == pytest.approx([0] * 6, abs=1e-6)


def test_where_they_part():
    """B leaves A's line by 2 - sigma below sigma 2: more than 0.1 at 1.5, and from there on."""
    sigmas = [8.0, 4, 2, 1.5, 1, 0.5]
    a = made_up(sigmas)
    b = made_up(sigmas, lambda sigma: max(0.0, 2 - sigma))
    growth = compare(a, b)
    assert growth.x == pytest.approx([0, 0, 0, 0.5, 1, 1.5])
    assert growth.parted_at == 1.5 and growth.end == pytest.approx(2)
    assert "1.5000        4        4" in told(growth, a, b, ("A", "B"))


def test_back_together_is_not_parted():
    sigmas = [8.0, 4, 2, 1]
    growth = compare(made_up(sigmas), made_up(sigmas, lambda sigma: 0.5 * (sigma > 3)))
    assert growth.parted is None


def test_two_seeds_are_two_noises_apart(emoji):
    """At the insertion by sigma * sqrt(2): 3 % is what 1024 normals allow (1 / sqrt(2 * 1024))."""
    traces = [
        traced(minisd.img2img, emoji, "fire", FIRE, steps=5, strength=0.6, seed=seed)[1]
        for seed in (1, 2)
    ]
    growth = compare(*traces)
    assert growth.parted == 0
    assert growth.x[0] == pytest.approx(2**0.5 * traces[0].sigma[0], rel=0.07)


def test_without_eps_x_is_compared():
    growth = compare(made_up([4.0, 2], eps=False), made_up([4.0, 2], lambda _: 1.0, eps=False))
    assert growth.x0 == [] and growth.parted == 0


def test_what_cannot_be_compared(trace):
    with pytest.raises(ValueError, match="no step"):
        compare(trace, Trace())
    with pytest.raises(ValueError, match="different sizes"):
        compare(trace, made_up([2.0, 1]))
    with pytest.raises(ValueError, match="no noise level"):
        compare(made_up([8.0, 4]), made_up([2.0, 1]))


# ---- sheets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("highest", [1e-5, 0.03, 0.1, 0.7, 1, 1.44, 9, 10, 63, 255, 1000])
def test_ticks(highest):
    found = ticks(highest)
    assert found[0] == 0 and found[-1] >= highest * (1 - 1e-6) and 3 <= len(found) <= 8


def test_plot_puts_a_point_where_it_belongs():
    """One point in the middle of the plane, in the first colour."""
    image = plot([("", [0.0, 1, 2], [0.0, 0.5, 1])], size=(300, 200), x_range=(0, 2))
    across = (56 + 300 - 16) // 2
    assert image.getpixel((across, (30 + 200 - 44) // 2)) == (31, 97, 180)


# ---- the commands ------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch, emoji):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minisd.checkpoint.load", lambda *_, **__: emoji)
    FIRE.save("in.png")
    return tmp_path


def run(line: str, status: int = 0) -> None:
    assert main(shlex.split(line)) == status


def test_strip_and_diff(folder, capsys):
    run("strip fire -I in.png -s 4,5 -f 0.7,0.4 -C 4 -S 1 --rows x,x0,decode --traces t --to a.png")
    assert Image.open("a.png").width > 500
    names = sorted(path.name for path in (folder / "t").iterdir())
    assert names[0] == "s4-f0.4-k_lms-S1.safetensors" and len(names) == 4
    kept = load_trace(folder / "t" / names[0])
    assert kept.settings["prompt"] == "fire" and kept.n_steps == 1
    run("diff t/s4-f0.7-k_lms-S1.safetensors t/s5-f0.7-k_lms-S1.safetensors --to d.png")
    out = capsys.readouterr().out
    assert "A: steps 4, 2 steps from" in out and "the final latents are" in out
    assert Image.open("d.png").height > 200


def test_strip_writes_a_new_file_each_time(folder):
    for _ in range(2):
        run("strip fire -s 2 -S 1 -C 1")
    names = sorted(path.name for path in (folder / "outputs/img-samples").iterdir())
    assert names == ["000001.1.strip.png", "000002.1.strip.png"]


def test_mistakes(folder, capsys):
    run("strip fire --rows y", status=2)
    run("strip fire -A k_lsm", status=2)
    run("diff in.png in.png", status=2)
    run("sweep fire -n 3", status=2)
    run("sweep fire --batch 0", status=2)
    assert "k_lsm" in capsys.readouterr().err


def test_sweep(folder, emoji):
    run("sweep fire -I in.png -f 0,0.5,1 -s 2,4 -S 1,2 -C 1 --to out")
    pictures = {path.name: path for path in (folder / "out").glob("f*.png")}
    assert len(pictures) == 12
    alone = minisd.img2img(emoji, "fire", FIRE, strength=0.5, steps=4, guidance=1, seed=2).image
    there = Image.open(pictures["f0.5-s4-k_lms-S2.png"])
    # In a batch sums are rounded otherwise: a level or two of 255.
    assert np.abs(np.asarray(alone, int) - np.asarray(there, int)).max() <= 2

    with open(folder / "out/distances.csv", newline="") as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    row = rows["f1-s4-k_lms-S2.png"]
    assert (row["steps_run"], row["sigma"], row["to_previous_sampler"]) == ("4", "14.6146", "")

    def apart(a, b):
        a, b = (np.asarray(image.convert("RGB"), float) for image in (a, b))
        return np.sqrt(((a - b) ** 2).mean())

    here = Image.open(pictures["f1-s4-k_lms-S2.png"])
    assert float(row["to_init"]) == pytest.approx(apart(here, FIRE), abs=1e-3)
    assert float(row["to_previous_strength"]) == pytest.approx(apart(here, there), abs=1e-3)
    assert rows["f0-s2-k_lms-S1.png"]["to_previous_steps"] == ""
    assert rows["f0-s4-k_lms-S2.png"]["to_previous_seed"] == "0.000"  # strength 0: no noise
    assert Image.open(folder / "out/sheet.png").width > 3 * 96


def test_a_sweep_goes_on_after_an_interruption(folder, monkeypatch, emoji, capsys):
    line = "sweep fire -I in.png -f 0.5,1 -s 2,3 -C 1 --batch 1 --to out"  # a seed is drawn
    calls = []
    count = emoji.unet.register_forward_hook(lambda *_: calls.append(1))
    monkeypatch.setattr("minisd.trace.sweep.os.replace", interrupted := Interrupted(after=2))
    run(line, status=130)
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    monkeypatch.setattr("minisd.checkpoint.load", lambda *_, **__: emoji)
    assert interrupted.calls == 3 and len(list((folder / "out").glob("f*.png"))) == 2
    calls.clear()
    run(line)
    count.remove()
    # Longest first: the two of strength 1 are there, the others run floor(3 / 2) and 2 / 2 steps.
    assert len(calls) == 2
    assert "2 of 4 pictures are there already" in capsys.readouterr().out
    run("sweep water -I in.png -f 0.5,1 -s 2,3 -C 1 --to out", status=2)
    assert "another prompt" in capsys.readouterr().err


class Interrupted:
    """os.replace, until somebody presses Ctrl-C."""

    def __init__(self, after):
        self.after, self.calls = after, 0

    def __call__(self, a, b):
        self.calls += 1
        if self.calls > self.after:
            raise KeyboardInterrupt
        shutil.move(a, b)


def test_text_and_image_are_encoded_once(folder, monkeypatch, emoji):
    encoded, texts = [], []
    monkeypatch.setattr(
        emoji.vae, "encode", lambda image: encoded.append(1) or torch.zeros(1, 4, 16, 16)
    )
    count = emoji.text_encoder.register_forward_hook(lambda *_: texts.append(1))
    run("sweep fire -I in.png -f 0.5,1 -s 2 -S 1,2,3 -C 1 --to out")
    count.remove()
    assert len(encoded) == 1 and len(texts) <= 2  # the words, and what to avoid


def test_steps_after(folder, capsys):
    run("strip fire -I in.png -f 1,0.5 --steps-after 3 -C 1 -S 1 --traces t --to a.png")
    assert {path.name[:2] for path in (folder / "t").iterdir()} == {"s3", "s6"}
    run("img2img fire -I in.png -f 0.5 --steps-after 3 -C 1 -S 1")
    assert "6 steps asked, 3 run, 3 dropped" in capsys.readouterr().out


# ---- docs/see-every-step.md --------------------------------------------------------------------


def documented() -> list[str]:
    text = (REPO / "docs/see-every-step.md").read_text()
    blocks = re.findall(r"```sh\n(.*?)```", text, re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith(("minisd ", "cp "))]


def test_the_documented_commands_make_the_documented_pictures(tmp_path, monkeypatch, emoji):
    """In order, in an empty folder. On another machine the arithmetic rounds otherwise, and where
    two runs part that grows: so a mean difference of 4 levels of 255 is let pass."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minisd.checkpoint.load", lambda *_, **__: emoji)
    for drawing in ("docs/pictures/fire-sketch.png", "tests/seed/fire-drawing.png"):
        (tmp_path / drawing).parent.mkdir(parents=True)
        shutil.copy(REPO / drawing, drawing)
    for line in documented():
        words = shlex.split(line, comments=True)
        if words[0] == "cp":
            shutil.copy(*words[1:])
        else:
            assert main(words[1:]) == 0, line
    made = sorted(Path("docs/pictures").glob("*.png"))
    assert len(made) >= 5
    for path in made:
        new, old = (np.asarray(Image.open(p).convert("RGB"), int) for p in (path, REPO / path))
        assert new.shape == old.shape, path
        assert np.abs(new - old).mean() <= 4, path
    shown = re.findall(r"\]\(pictures/([\w.-]+)\)", (REPO / "docs/see-every-step.md").read_text())
    assert {path.name for path in made} | {"settle.png"} >= set(shown)


def test_the_documented_explanation(capsys):
    assert main(["explain", "-s", "30", "-f", "0.7"]) == 0
    said = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    text = (REPO / "docs/see-every-step.md").read_text()
    assert "\n".join(said) in text


def test_save_trace_of_an_empty_run(tmp_path, emoji):
    _, trace = traced(minisd.img2img, emoji, "fire", FIRE, steps=5, strength=0, seed=1)
    assert load_trace(save_trace(trace, tmp_path / "a.safetensors")).steps == []
