"""docs/ideas.md: its Python runs, its numbers are right, and it draws its own pictures.

And the Python of docs/see-every-step.md runs; tests/test_strips.py runs that page's commands.
"""

import ast
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parent.parent
IDEAS = (ROOT / "docs" / "ideas.md").read_text(encoding="utf-8")
SEE_EVERY_STEP = (ROOT / "docs" / "see-every-step.md").read_text(encoding="utf-8")


def python_blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def python_lines() -> list[tuple[str, str | None]]:
    """Each statement of the page, and the value that a comment after it claims, if any."""
    lines = []
    for block in python_blocks(IDEAS):
        for statement in ast.parse(block).body:
            source = ast.get_source_segment(block, statement)
            last_line = block.splitlines()[statement.end_lineno - 1]
            claim = last_line.partition("  # ")[2] if isinstance(statement, ast.Expr) else None
            lines.append((source, claim or None))
    return lines


def equals_claim(value, claim: str) -> bool:
    """Whether a value is what the page says, to the digits that the page gives."""
    expected = ast.literal_eval(claim)
    if isinstance(value, torch.Tensor):
        value = value.tolist()
    if isinstance(expected, list):
        claims = claim.strip("[]").split(", ")
        return all(equals_claim(v, c) for v, c in zip(value, claims, strict=True))
    if isinstance(expected, float):
        decimals = len(claim.partition(".")[2])
        return value == pytest.approx(expected, abs=0.51 * 10**-decimals)
    return value == expected


@pytest.mark.slow
def test_the_page_in_order(tmp_path, monkeypatch):
    lines = python_lines()
    assert sum(claim is not None for _, claim in lines) == 15
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    names: dict = {}
    for source, claim in lines:
        if claim is None:
            exec(compile(source, "ideas.md", "exec"), names)
        else:
            value = eval(source, names)
            assert equals_claim(value, claim), (source, value, claim)
    pictures = sorted(tmp_path.glob("*.png"))
    assert [path.name for path in pictures] == ["noise-levels.png", "wrong-noise.png"]
    for path in pictures:
        assert f"](pictures/{path.name})" in IDEAS
        drawn = np.asarray(Image.open(path), float)
        shown = np.asarray(Image.open(ROOT / "docs" / "pictures" / path.name), float)
        assert drawn.shape == shown.shape
        assert np.abs(drawn - shown).mean() < 2  # another CPU rounds differently


@pytest.mark.parametrize(
    ("value", "claim", "equal"),
    [
        (0.029167, "0.0292", True),
        (0.02926, "0.0292", False),
        ([14.61, 7.84], "[14.61, 7.84]", True),
        ([14.61, 7.85], "[14.61, 7.84]", False),
        ((1, 77, 96), "(1, 77, 96)", True),
        (False, "True", False),
    ],
)
def test_claims_are_compared_by_their_digits(value, claim, equal):
    assert equals_claim(value, claim) == equal


@pytest.mark.slow
def test_the_python_of_see_every_step(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    names: dict = {}
    (block,) = python_blocks(SEE_EVERY_STEP)
    exec(compile(block, "see-every-step.md", "exec"), names)
    saved = names["load_trace"]("fire.safetensors")
    assert torch.equal(saved.x[3], names["trace"].x[3])
    assert saved.n_steps == 35  # floor(50 * 0.7)
