"""docs/the-page.md: the whole page is quoted there, and each verdict holds."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import minisd
from minisd.__main__ import main
from minisd.cli import metadata
from minisd.cli.switches import read_line
from minisd.schedule import SCHEDULES, SIGMAS

HERE = Path(__file__).parent
PAGE = (HERE / "seed" / "IMG2IMG.txt").read_text()
TEXT = (HERE.parent / "docs" / "the-page.md").read_text()
DRAWING = HERE / "seed" / "fire-drawing.png"
VERDICTS = ("**True.**", "**True**", "**True here", "**Wrong", "**Figure.**")


def blocks():
    """(quoted sentences, what is said of them) in order."""
    found = []
    for paragraph in TEXT.split("\n\n"):
        if paragraph.startswith("> "):
            if not found or found[-1][1]:
                found.append(([], []))
            found[-1][0].append(paragraph.removeprefix("> "))
        elif found:
            found[-1][1].append(paragraph)
    return found


def verdict_of(sentence):
    matches = [said for quoted, said in blocks() if any(sentence in q for q in quoted)]
    assert len(matches) == 1, sentence
    return " ".join(matches[0])


def test_the_page_is_quoted_whole():
    quoted = " ".join(q for quotes, _ in blocks() for q in quotes)
    page = " ".join(PAGE.split("title\n", 1)[1].split())
    assert " ".join(quoted.split()) == page


def test_each_sentence_has_a_verdict():
    for quoted, said in blocks():
        assert said and said[0].startswith(VERDICTS), quoted


LINES = re.findall(r"^> (?:invoke> )?(.* -[-\w].*)$", TEXT, re.M)
LINES = [line for line in LINES if re.search(r"-I|-S\d", line) and not line.startswith("The ")]


def test_the_page_has_six_command_lines():
    commands = [line for line in LINES if "steps argument" not in line]
    assert len(commands) == 6


@pytest.mark.parametrize("line", [line for line in LINES if "steps argument" not in line])
def test_command_lines_run_as_typed(line, tmp_path, monkeypatch, emoji, capsys):
    """On the bundled weights. /tmp/fire-drawing.png is looked for under another name for /tmp, so
    that a test writes nothing there; the sketches of the page are stood in for by the drawing."""
    import minisd.checkpoint

    monkeypatch.setattr(minisd.checkpoint, "load", lambda *_, **__: emoji)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test-pictures").mkdir()
    for name in ("tree-and-river-sketch.png", "big-sketch.png"):
        Image.open(DRAWING).resize((96, 80)).save(tmp_path / "test-pictures" / name)
    small = tmp_path / "fire-drawing.png"
    shutil.copy(DRAWING, small)
    typed = line.replace("/tmp/fire-drawing.png", str(small)).replace("-W384 -H384", "-W96 -H96")
    if str(small) in typed:
        typed += " --fit"  # 384 pixels a side take a minute here, 96 two seconds
    (tmp_path / "lines").write_text(typed + "\n")
    assert main(["--from_file", "lines"]) == 0
    asked = read_line(line)
    (path,) = (tmp_path / "outputs/img-samples").glob("*.png")
    used = metadata.recall(path).args
    for name in ("prompt", "steps", "strength", "cfg_scale", "sampler"):
        assert getattr(used, name) == getattr(asked, name)
    if asked.seed is not None:
        assert used.seed == asked.seed == 1592514025


def test_the_line_with_its_prompt_and_full_size(tmp_path, monkeypatch, emoji, capsys):
    """`invoke> "fire" -s10 -W384 -H384 ...`, nothing changed but the folder and fewer steps run."""
    import minisd.checkpoint

    monkeypatch.setattr(minisd.checkpoint, "load", lambda *_, **__: emoji)
    monkeypatch.chdir(tmp_path)
    shutil.copy(DRAWING, tmp_path)
    line = 'invoke> "fire" -s10 -W384 -H384 -S1592514025 -I fire-drawing.png --strength 0.1'
    (tmp_path / "lines").write_text(line)
    assert main(["--from_file", "lines"]) == 0
    assert Image.open("outputs/img-samples/000001.1592514025.png").size == (384, 384)


def test_figure_of_the_noise():
    """The first tile of the page's txt2img figure, all 6,912 values, from the seed alone."""
    assert "6,912" in verdict_of("develops something like this")
    sheet = np.asarray(Image.open(HERE / "seed" / "000019.steps.png").convert("RGB"))
    tile = sheet[2:50, 1:49]
    noise = torch.randn(1, 4, 48, 48, generator=torch.Generator().manual_seed(1592514025))
    factors = torch.tensor(minisd.checkpoint.SD1_LATENT_RGB)
    rgb = (SIGMAS[-1] * noise[0]).permute(1, 2, 0).float() @ factors
    drawn = ((rgb + 1) / 2).clamp(0, 1) * 255
    assert (drawn.to(torch.uint8).numpy() == tile).sum() == 6912


def test_pictures_of_the_page_say_how_they_were_made():
    assert metadata.recall(HERE / "seed" / "000019.1592514025.png").args.sampler == "k_euler"
    found = metadata.recall(HERE / "seed" / "000046.1592514025.png")
    assert found.init_hash == metadata.sha256(DRAWING)
    assert found.args.sampler == "k_lms" and "ddim" in found.notes[0]


@pytest.mark.parametrize(
    ("steps", "strength", "run", "sigma"),
    [(10, 0.7, 7, 2.918307), (10, 0.4, 4, 0.932358)]  # k-diffusion's own, published
    + [(50, 0.4, 20, 1.117), (30, 0.7, 21, 3.191)],  # likewise, with 3 decimals
)
def test_steps_taken_and_noise_put_in(steps, strength, run, sigma):
    start = minisd.start_index(steps, strength)
    assert steps - start == run
    assert SCHEDULES["model"](steps)[start] == pytest.approx(
        sigma, abs=6e-4 if steps > 10 else 1e-6
    )


def test_29_and_30_share_no_level():
    a, b = SCHEDULES["model"](30)[9:-2], SCHEDULES["model"](29)[9:-2]
    assert min(abs(x - y) for x in a for y in b) > 1e-4


def test_defaults():
    args = read_line("fire")
    assert (args.strength, args.cfg_scale, args.steps, args.sampler) == (0.75, 7.5, 50, "k_lms")


def distance(a, b):
    return np.abs(np.asarray(a, float) - np.asarray(b, float)).mean()


@pytest.fixture(scope="module")
def sketch():
    path = HERE.parent / "docs" / "pictures" / "fire-sketch.png"
    return Image.open(path).resize((64, 64), Image.Resampling.LANCZOS)


def test_distance_grows_with_strength(emoji, sketch):
    settings = {"steps": 20, "seed": 1592514025, "guidance": 4}
    distances = [
        distance(minisd.img2img(emoji, "fire", sketch, strength=s, **settings).image, sketch)
        for s in (0.0, 0.4, 0.7, 1.0)
    ]
    assert distances == sorted(distances) and distances[0] < 10


def test_the_prompt_makes_a_big_difference(emoji, sketch):
    """More than the seed does."""
    settings = {"steps": 20, "strength": 0.8, "guidance": 4}
    fire = [minisd.img2img(emoji, "fire, 3d", sketch, seed=s, **settings).image for s in (1, 2, 3)]
    tree = minisd.img2img(emoji, "deciduous tree, noto", sketch, seed=1, **settings).image
    seeds = [distance(fire[0], other) for other in fire[1:]]
    assert distance(fire[0], tree) > max(seeds)
