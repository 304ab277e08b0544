"""docs/the-page.md: it quotes the whole page, and its verdicts hold."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import minisd
from minisd.cli.main import main
from minisd.cli.switches import read_line
from minisd.files import sha256
from minisd.recipes import read_recipe
from minisd.schedule import SCHEDULES, SIGMAS
from minisd.stable_diffusion import SD1_LATENT_RGB

ROOT = Path(__file__).parent.parent
SEED = ROOT / "tests" / "seed"
PAGE = (SEED / "IMG2IMG.txt").read_text(encoding="utf-8")
TEXT = (ROOT / "docs" / "the-page.md").read_text(encoding="utf-8")
DRAWING = SEED / "fire-drawing.png"
VERDICTS = ("**True.**", "**True**", "**True here", "**Wrong", "**Figure.**")


def passages() -> list[tuple[list[str], list[str]]]:
    """(quoted paragraphs, the verdict's paragraphs), in order."""
    pairs: list[tuple[list[str], list[str]]] = []
    for paragraph in TEXT.split("\n\n"):
        if paragraph.startswith("> "):
            if not pairs or pairs[-1][1]:
                pairs.append(([], []))
            pairs[-1][0].append(paragraph.removeprefix("> "))
        elif pairs:
            pairs[-1][1].append(paragraph)
    return pairs


def verdict_of(sentence: str) -> str:
    verdicts = [v for quoted, v in passages() if any(sentence in q for q in quoted)]
    assert len(verdicts) == 1, sentence
    return " ".join(verdicts[0])


def test_the_whole_page_is_quoted():
    quoted = " ".join(q for quotes, _ in passages() for q in quotes)
    page = " ".join(PAGE.split("title\n", 1)[1].split())
    assert " ".join(quoted.split()) == page


def test_each_passage_has_a_verdict():
    for quoted, verdict in passages():
        assert verdict and verdict[0].startswith(VERDICTS), quoted


# ---- the page's command lines --------------------------------------------------------------------

LINES = re.findall(r"^> (?:invoke> )?(.* -[-\w].*)$", TEXT, re.MULTILINE)
LINES = [line for line in LINES if re.search(r"-I|-S\d", line) and not line.startswith("The ")]
LINES = [line for line in LINES if "steps argument" not in line]


def test_the_page_has_six_command_lines():
    assert len(LINES) == 6


@pytest.fixture
def folder(tmp_path, monkeypatch, emoji):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minisd.cli.studio.load", lambda *_, **__: emoji)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("line", LINES)
def test_a_command_line_runs_as_typed(line, folder):
    """On the small model. The fire drawing is looked for in the test's folder instead of /tmp, and
    it also stands in for the page's sketches, which were never published. Pictures are 96 pixels
    wide: the small model takes a minute for 384 or 512, and two seconds for 96."""
    copy_sketches(folder)
    drawing = folder / "fire-drawing.png"
    shutil.copy(DRAWING, drawing)
    typed = line.replace("/tmp/fire-drawing.png", str(drawing)).replace("-W384 -H384", "-W96 -H96")
    typed = typed.replace("-H512 -W512", "-H96 -W96")
    if str(drawing) in typed:
        typed += " --fit"
    (folder / "lines").write_text(typed + "\n")
    assert main(["--from_file", "lines"]) == 0
    asked = read_line(line).recipe
    (path,) = (folder / "outputs/img-samples").glob("*.png")
    drawn = read_recipe(path)
    for name in ("prompt", "steps", "strength", "guidance", "sampler"):
        assert getattr(drawn, name) == getattr(asked, name)
    if asked.seed is not None:
        assert drawn.seed == asked.seed == 1592514025


def copy_sketches(folder: Path) -> None:
    (folder / "test-pictures").mkdir()
    for name in ("tree-and-river-sketch.png", "big-sketch.png"):
        Image.open(DRAWING).resize((96, 80)).save(folder / "test-pictures" / name)


@pytest.mark.slow
def test_the_line_with_fit_runs_at_full_size(folder):
    """Changed only in its strength: all its steps take a minute and a half."""
    copy_sketches(folder)
    (line,) = (line for line in LINES if "--fit" in line)
    (folder / "lines").write_text(f"{line} -f 0.02")
    assert main(["--from_file", "lines"]) == 0
    (path,) = (folder / "outputs/img-samples").glob("*.png")
    assert Image.open(path).size == (512, 432)  # 512x427, to the nearest multiple of 16


@pytest.mark.slow
def test_a_line_with_its_prompt_at_full_size(folder):
    """`invoke> "fire" -s10 -W384 -H384 ...`, changed only in its folder and its strength."""
    shutil.copy(DRAWING, folder)
    line = 'invoke> "fire" -s10 -W384 -H384 -S1592514025 -I fire-drawing.png --strength 0.1'
    (folder / "lines").write_text(line)
    assert main(["--from_file", "lines"]) == 0
    assert Image.open("outputs/img-samples/000001.1592514025.png").size == (384, 384)


# ---- what the verdicts say -----------------------------------------------------------------------


def test_the_first_tile_of_the_figure_is_the_noise_of_its_seed():
    """The first tile of the page's txt2img figure, all 6,912 values, from the seed alone."""
    assert "6,912" in verdict_of("develops something like this")
    sheet = np.asarray(Image.open(SEED / "000019.steps.png").convert("RGB"))
    tile = sheet[2:50, 1:49]
    noise = torch.randn(1, 4, 48, 48, generator=torch.Generator().manual_seed(1592514025))
    rgb = (SIGMAS[-1] * noise[0]).permute(1, 2, 0).float() @ torch.tensor(SD1_LATENT_RGB)
    drawn = ((rgb + 1) / 2).clamp(0, 1) * 255
    assert (drawn.to(torch.uint8).numpy() == tile).sum() == 6912


def test_the_metadata_of_the_figures_names_their_samplers():
    assert read_recipe(SEED / "000019.1592514025.png").sampler == "k_euler"
    recipe = read_recipe(SEED / "000046.1592514025.png")
    assert Path(recipe.image) == DRAWING  # by its SHA-256, as written in the picture
    assert sha256(DRAWING) in (SEED / "000046.1592514025.png").read_bytes().decode("latin-1")
    assert recipe.sampler == "k_lms" and "ddim" in recipe.notes[0]


@pytest.mark.parametrize(
    ("steps", "strength", "steps_run", "sigma"),
    [(10, 0.7, 7, 2.918307), (10, 0.4, 4, 0.932358)]  # k-diffusion's own, published
    + [(50, 0.4, 20, 1.117), (30, 0.7, 21, 3.191)],  # likewise, with 3 decimals
)
def test_steps_run_and_noise_added(steps, strength, steps_run, sigma):
    start = minisd.start_index(steps, strength)
    assert steps - start == steps_run
    tolerance = 6e-4 if steps > 10 else 1e-6
    assert SCHEDULES["model"](steps)[start] == pytest.approx(sigma, abs=tolerance)


def test_29_and_30_steps_share_only_the_last_two_levels():
    a, b = SCHEDULES["model"](30)[9:], SCHEDULES["model"](29)[9:]
    assert a[-2:] == b[-2:]
    assert min(abs(x - y) for x in a[:-2] for y in b[:-2]) > 1e-4


def test_defaults():
    recipe = read_line("fire").recipe
    settings = (recipe.strength, recipe.guidance, recipe.steps, recipe.sampler)
    assert settings == (0.75, 7.5, 50, "k_lms")


def distance(a: Image.Image, b: Image.Image) -> float:
    """The mean difference of all values, in levels of 255."""
    return np.abs(np.asarray(a, float) - np.asarray(b, float)).mean()


@pytest.fixture(scope="module")
def sketch():
    path = ROOT / "docs" / "pictures" / "fire-sketch.png"
    return Image.open(path).resize((64, 64), Image.Resampling.LANCZOS)


@pytest.mark.slow
def test_distance_grows_with_strength(emoji, sketch):
    settings = {"steps": 20, "seed": 1592514025, "guidance": 4}
    distances = [
        distance(minisd.img2img(emoji, "fire", sketch, strength=s, **settings).image, sketch)
        for s in (0.0, 0.4, 0.7, 1.0)
    ]
    assert distances == sorted(distances) and distances[0] < 10


@pytest.mark.slow
def test_the_prompt_makes_a_big_difference(emoji, sketch):
    """More than the seed does."""
    settings = {"steps": 20, "strength": 0.9, "guidance": 4}
    fire = [minisd.img2img(emoji, "fire, 3d", sketch, seed=s, **settings).image for s in (1, 2, 3)]
    tree = minisd.img2img(emoji, "deciduous tree, noto", sketch, seed=1, **settings).image
    seeds = [distance(fire[0], other) for other in fire[1:]]
    assert distance(fire[0], tree) > max(seeds)
