"""docs/write-your-own-sampler.md, run: its Python, its commands, and what it says that they
print."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from PIL import Image

from minisd.__main__ import main

GUIDE = Path(__file__).parent.parent / "docs" / "write-your-own-sampler.md"


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_the_guide(tmp_path, monkeypatch, capsys):
    text = GUIDE.read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("minisd.lab.compare.STEPS", (5, 10))  # of 5 to 50: they take a minute
    cards = []
    for language, code in re.findall(
        r"^```(python|sh)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL
    ):
        if language == "python" and code.startswith("# two_slopes.py"):
            assert len(code.splitlines()) <= 18  # 15 and the imports
            Path("two_slopes.py").write_text(code)
            Path("one_slope_too_many.py").write_text(code.replace("(2 * h_last)", "h_last"))
        elif language == "python":
            with torch.no_grad():
                exec(compile(code, GUIDE.name, "exec"), {})
        else:
            status = main(shlex.split(code)[1:])
            assert status == ("too_many" in code)
            cards.append(capsys.readouterr().out)
    assert Image.open("strip.png").size == (64 * 8, 64)
    assert "<svg" in Path("two_slopes.html").read_text()
    assert re.search(r"fail +order +0.956 +2 ± 0.1", cards[1])
    assert "distance to 100 steps" in cards[2]
    for line in re.findall(r"^  (?:pass|measured) +(.*?)  ", text, re.MULTILINE):
        assert line in cards[0]
