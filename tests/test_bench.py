"""What the bench takes for granted, and that it runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))

import side_by_side


def test_work_in_a_guided_call():
    """1.354 TFLOP at 512 in convolutions and projections, and attention's products, counted by
    hand: 4 N M C for each of two prompts, five layers a level and one in the middle."""
    levels = [(5, 4096, 320), (5, 1024, 640), (5, 256, 1280), (1, 64, 1280)]
    products = sum(2 * layers * 4 * n * (n + 77) * c for layers, n, c in levels) / 1e12
    assert abs(side_by_side.guided_tflop(512) - 1.354 - products) < 1e-3


def test_pairs_compare_times_and_results():
    row = side_by_side.row("x", "y", [1.0, 2.0, 4.0], [2.0, 2.0, 2.0], 0.0, first=6.0)
    assert (row["minisd"], row["it"], row["ratio"], row["first"]) == (2.0, 2.0, 1.0, 3.0)
    assert (row["low"], row["high"]) == (0.5, 2.0)


def measured(path: Path, *words: str) -> list[dict]:
    """The rows that a quick run writes."""
    command = [sys.executable, side_by_side.__file__, "--quick", "--json", path, *words]
    subprocess.run(command, check=True)
    return [row for row in json.loads(path.read_text())["rows"] if "what" in row]


def assert_close(rows: list[dict]) -> None:
    """In float32 two systems differ by rounding, some 1e-6 of the largest value, which guidance 7.5
    makes up to ten times as much; a whole run's pictures by one level of 255 where that falls on
    the edge between two. Loads end with the same numbers."""
    for row in rows:
        limit = 1e-4
        if row["what"].startswith("img2img"):
            limit = 1.01 / 255
        elif row["what"].startswith("load"):
            limit = 1e-12
        if row["dtype"] == "float32" or row["what"].startswith("load"):
            assert row["apart"] <= limit, row
        assert 0 < row["low"] <= row["ratio"] <= row["high"], row


def test_quick(tmp_path):
    """The command as in bench/README.md: every row is there, and nobody wins by computing something
    else."""
    rows = measured(tmp_path / "rows.json")
    loads = ["load, from cache", "load and touch, from cache"]
    loads += ["load, from disk", "load and touch, from disk"]
    calls = [f"guided UNet call, 64{batch}" for batch in ("", ", each of 2", ", each of 4")]
    rest = ["encode, 64", "decode, 64", "img2img, 20 steps, 64"]
    for dtype in ("float32", "bfloat16"):
        found = [row["what"] for row in rows if row["dtype"] == dtype]
        assert found == [*loads, "text, two prompts", *calls, *rest]
    assert_close(rows)
    for row in rows[:4]:
        ours, theirs = row["peak"]
        assert ours > 50e6 and theirs > 10e6  # of weights of 69 MB; theirs may still be on the disk


def test_others(tmp_path):
    for module in ("openvino", "onnxruntime", "onnx", "onnxscript"):
        pytest.importorskip(module)
    words = ["--others", "openvino,onnxruntime", "--batches", "1", "--dtype", "float32"]
    rows = measured(tmp_path / "rows.json", *words)
    for what in ("guided UNet call, 64", "encode, 64", "decode, 64"):
        systems = [row["beside"] for row in rows if row["what"] == what]
        assert systems == ["diffusers", "openvino", "onnxruntime"]
    assert_close(rows)
