"""docs/write-your-own-sampler.md: its Python and its commands are run, its output is compared."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from PIL import Image

from minisd.cli.main import main

GUIDE = Path(__file__).parent.parent / "docs" / "write-your-own-sampler.md"


@pytest.mark.slow
@pytest.mark.parametrize("compare", [False, True])
def test_the_guide(tmp_path, monkeypatch, capsys, compare):
    text = GUIDE.read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("minisd.lab.compare.STEPS", (5, 10))  # 5 to 50 take a minute
    outputs = []
    blocks = re.findall(r"^```(python|sh)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    for language, code in blocks:
        if ("--compare" in code and not compare) or "--board" in code:  # test_lab_board has it
            continue
        if language == "python" and (name := re.match(r"# (\w+\.py)\n", code)):
            assert len(code.splitlines()) <= 18  # 15 and the imports
            Path(name[1]).write_text(code)
            wrong = code.replace("(2 * h_last)", "h_last")
            Path(name[1].replace("two", "wrong")).write_text(wrong)
        elif language == "python":
            with torch.no_grad():
                exec(compile(code, GUIDE.name, "exec"), {})
        else:
            for line in code.splitlines():
                status = main(shlex.split(line)[1:])
                assert status == (1 if "wrong" in code else 0)
                outputs.append(capsys.readouterr().out)
    *errors, distance, hooked = capsys.readouterr().out.splitlines()[-5:]
    error_10, error_20, error_40 = (float(line.split()[1]) for line in errors)
    assert error_10 > 2 * error_20 > 4 * error_40  # order 2
    assert float(distance) < 1e-6 and hooked == "2 torch.Size([2, 4, 192])"
    certified, wrong = outputs[:2]
    assert Image.open("strip.png").size == (64 * 8, 64)
    assert "<svg" in Path("two_slopes.html").read_text(encoding="utf-8")
    assert re.search(r"fail +order +0.956 +2 ± 0.1", wrong)
    if compare:
        assert "distance to 100 steps" in outputs[2]
        assert Path("comparison.html").read_text(encoding="utf-8").count("<svg") == 6
    lines = re.findall(r"^  (?:pass|measured) +(.*?)  ", text, re.MULTILINE)
    assert len(lines) == 4
    for line in lines:
        assert line in certified
