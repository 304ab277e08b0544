"""The house style, as far as a program can tell."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("words", [["check"], ["format", "--check"]])
def test_ruff(words):
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *words, str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_core_stays_small():
    """What lies on the way of one picture, without the reading of files: a dozen files."""
    names = ["img2img", "schedule", "samplers", "step", "guidance", "unet", "vae", "text_encoder"]
    names += ["attention", "tokenizer", "images", "checkpoint"]
    lines = sum(len((ROOT / f"minisd/{name}.py").read_text().split("\n")) for name in names)
    assert lines < 1700
