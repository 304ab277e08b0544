"""What README.md says of names, files and its first picture."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minisd.checkpoint import POSITION_IDS, PREFIXES, SCHEDULE_BUFFERS
from minisd.cli.main import main

from .conftest import manifest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MARKDOWN = [
    *(ROOT / name for name in ("README.md", "bench/README.md", "tests/golden/README.md")),
    ROOT / "docs/lessons/README.md",
    *(ROOT / name for name in ("tests/seed/README.md", "weights/README.md")),
    *(ROOT / "docs").glob("*.md"),
    ROOT / "weights/train/README.md",
]


def glossary() -> list[tuple[str, str, re.Pattern]]:
    """(prefix, name as written, pattern for a whole key)"""
    prefix, rows = None, []
    for line in README[README.index("## Glossary") :].split("\n"):
        if heading := re.match(r"### `(.+)`", line):
            prefix = heading[1]
        elif prefix and (row := re.match(r"\| `(.+?)` \| .", line)):
            pattern = re.escape(row[1]).replace(r"\{", "(").replace(r"\}", ")").replace(",", "|")
            pattern = re.sub(r"\bN\b", r"\\d+", pattern)
            key = re.compile(rf"{re.escape(prefix)}{pattern}\.(weight|bias)")
            rows.append((prefix, row[1], key))
    return rows


def test_glossary_has_one_row_for_every_tensor():
    rows = glossary()
    assert {prefix for prefix, _, _ in rows} == set(PREFIXES.values())
    for key in manifest():
        if key not in SCHEDULE_BUFFERS and key != POSITION_IDS:
            assert sum(bool(pattern.fullmatch(key)) for *_, pattern in rows) == 1, key
    for _, name, pattern in rows:
        assert any(pattern.fullmatch(key) for key in manifest()), name


def anchors(path: Path) -> set[str]:
    """The #names of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_has_a_target(path):
    text = re.sub(r"```.*?```|`[^`]*`", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for in_markdown, in_html in re.findall(r"\]\(([^)]+)\)|src=\"([^\"]+)\"", text):
        link = in_markdown or in_html
        if link.startswith("http"):
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_reading_order_names_every_core_file_and_every_folder():
    core = {path.name for path in (ROOT / "minisd").glob("*.py")} - {"__init__.py", "__main__.py"}
    assert set(re.findall(r"\(minisd/(\w+\.py)\)", README)) == core
    folders = {path.parent.name for path in (ROOT / "minisd").glob("*/__init__.py")}
    assert set(re.findall(r"\[`(\w+)/`\]\(minisd/\1\)", README)) == folders


def difference(picture: Path) -> float:
    """How far a picture is from the one in README, in levels of 255: the mean over all values."""
    drawn = np.asarray(Image.open(picture), float)
    shown = np.asarray(Image.open(ROOT / "docs/pictures/fire.png"), float)
    assert drawn.shape == shown.shape
    return np.abs(drawn - shown).mean()


def first_command() -> list[str]:
    line = next(line for line in README.split("\n") if "&& .venv/bin/minisd" in line)
    return shlex.split(line.split("&& .venv/bin/minisd ")[1])


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A folder with README's drawing in its place, in which the first command was run."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "docs/pictures").mkdir(parents=True)
    shutil.copy(ROOT / "docs/pictures/fire-sketch.png", folder / "docs/pictures")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(first_command()) == 0
    return folder


def test_the_first_command_draws_the_picture(checkout):
    (path,) = checkout.glob("outputs/img-samples/*.png")
    assert difference(path) < 2  # another CPU rounds differently; another seed is 20 away
    red, green, blue = np.asarray(Image.open(path), float)[30:50, 20:44].mean(axis=(0, 1))
    assert red > 200 and blue < 150 and red > green > blue  # a fire, not the outline of one


def test_the_first_command_is_explained_switch_by_switch():
    switches = [word for word in first_command() if word.startswith("-")]
    rows = re.findall(r"^\| `(-[-\w]+)", README, re.MULTILINE)
    assert rows == switches


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*to fit into")
def test_the_python_runs_and_draws_the_same_picture(checkout, emoji, monkeypatch):
    """All blocks in order, except The line, which is an excerpt of img2img.py."""
    monkeypatch.chdir(checkout)
    blocks = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    names: dict = {}
    for block in blocks:
        if "<<< the noise insertion" not in block:
            exec(compile(block, "README.md", "exec"), names)
    assert difference(checkout / "fire.png") < 4  # resized by another method than --fit's
    assert names["step"].i == 3
    recipe = names["recipe"]
    assert (recipe.strength, recipe.guidance, recipe.seed) == (0.8, 4, 2)
    recipe.draw(emoji).image.save("recipe.png")
    assert difference(checkout / "recipe.png") < 2


def test_the_noise_insertion_is_one_line():
    marked = [
        line.strip()
        for path in (ROOT / "minisd").glob("*.py")
        for line in path.read_text(encoding="utf-8").split("\n")
        if "<<< the noise insertion" in line
    ]
    assert len(marked) == 1 and marked[0].startswith("x = x0 + sigmas[0] * noise")
    assert "\nx = x0 + sigmas[0] * noise  # <<< the noise insertion" in README
