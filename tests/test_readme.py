"""What the README says of names, files and its first picture."""

import re
import shlex
from pathlib import Path

import numpy as np
from PIL import Image

from minisd.__main__ import main
from minisd.checkpoint import POSITION_IDS, PREFIXES, SCHEDULE_BUFFERS

from .conftest import manifest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def glossary():
    """(prefix, name as written, pattern for a whole key)"""
    prefix, rows = None, []
    for line in README[README.index("## Glossary") :].split("\n"):
        if found := re.match(r"### `(.+)`", line):
            prefix = found[1]
        elif prefix and (found := re.match(r"\| `(.+?)` \| .", line)):
            pattern = re.escape(found[1]).replace(r"\{", "(").replace(r"\}", ")").replace(",", "|")
            pattern = re.sub(r"\bN\b", r"\\d+", pattern)
            rows.append(
                (prefix, found[1], re.compile(rf"{re.escape(prefix)}{pattern}\.(weight|bias)"))
            )
    return rows


def test_glossary_covers_every_tensor_once():
    rows = glossary()
    assert {prefix for prefix, _, _ in rows} == set(PREFIXES.values())
    for key in manifest():
        if key not in SCHEDULE_BUFFERS and key != POSITION_IDS:
            assert sum(bool(pattern.fullmatch(key)) for *_, pattern in rows) == 1, key
    for _, name, pattern in rows:
        assert any(pattern.fullmatch(key) for key in manifest()), name


def test_links_lead_somewhere():
    for path in [ROOT / "README.md", ROOT / "weights/README.md", *ROOT.glob("docs/*.md")]:
        text = re.sub(r"```.*?```|`[^`]*`", "", path.read_text(), flags=re.S)
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)|src=\"([^\"]+)\"", text):
            target = link[0] or link[1]
            assert target.startswith("http") or (path.parent / target).exists(), (path, target)


def test_every_file_of_the_core_is_in_the_reading_order():
    named = set(re.findall(r"\(minisd/(\w+\.py)\)", README))
    there = {path.name for path in (ROOT / "minisd").glob("*.py")} - {"__init__.py", "__main__.py"}
    assert named >= there


def test_first_picture(tmp_path, monkeypatch):
    line = next(line for line in README.split("\n") if "&& .venv/bin/minisd" in line)
    words = shlex.split(line.split("&& .venv/bin/minisd ")[1])
    words[words.index("-I") + 1] = str(ROOT / words[words.index("-I") + 1])
    monkeypatch.chdir(tmp_path)
    assert main(words) == 0
    (path,) = tmp_path.glob("outputs/img-samples/*.png")
    made = np.asarray(Image.open(path), float)
    shown = np.asarray(Image.open(ROOT / "docs/pictures/fire.png"), float)
    assert made.shape == shown.shape
    assert np.abs(made - shown).mean() < 2  # another CPU rounds otherwise; another seed is 20 away
    red, green, blue = made[30:50, 20:44].mean(axis=(0, 1))
    assert red > 200 and blue < 150 and red > green > blue  # and it is a fire, not its outline


def test_core_leads_nowhere_else():
    """What lies around the core imports it, never the reverse."""
    core = {path.stem for path in (ROOT / "minisd").glob("*.py")}
    around = {"__init__", "__main__", "conditioning", "prompts", "variations"}
    around |= {"attention_maps", "fast"}
    for name in core - around:
        source = (ROOT / "minisd" / f"{name}.py").read_text()
        for imported in re.findall(r"(?:from|import) minisd\.?([\w.]*)", source):
            assert imported.split(".")[0] in (core - around) | {"files"}, (name, imported)


def test_one_insertion_line():
    lines = [
        line
        for path in (ROOT / "minisd").glob("*.py")
        for line in path.read_text().split("\n")
        if "<<< the noise insertion" in line
    ]
    assert len(lines) == 1 and lines[0].strip().startswith("x = x0 + sigmas[0] * noise")
