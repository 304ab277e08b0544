"""What the bench relies on, and that it runs."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from bench import side_by_side, step_count, trace_cost, whole_runs

ROOT = Path(__file__).parent.parent


def test_work_in_a_guided_call():
    """At 512: 1.354 TFLOP in convolutions and projections, and attention's products.

    The products are counted by hand: 4 N M C for each of two prompts, five layers at each of three
    levels and one in the middle.
    """
    levels = [(5, 4096, 320), (5, 1024, 640), (5, 256, 1280), (1, 64, 1280)]
    products = sum(2 * layers * 4 * n * (n + 77) * c for layers, n, c in levels) / 1e12
    assert abs(side_by_side.guided_tflop(512) - 1.354 - products) < 1e-3


def test_pairs_compare_times_and_results():
    row = side_by_side.row_of("x", "y", [1.0, 2.0, 4.0], [2.0, 2.0, 2.0], 0.0, first=6.0)
    assert (row["minisd"], row["other"], row["ratio"], row["first"]) == (2.0, 2.0, 1.0, 3.0)
    assert (row["low"], row["high"]) == (0.5, 2.0)


def measured(path: Path, *words: str) -> list[dict]:
    """The rows that a quick run writes."""
    command = [sys.executable, "-m", "bench.side_by_side", "--quick", "--json", str(path), *words]
    subprocess.run(command, check=True, cwd=ROOT)
    return [row for row in json.loads(path.read_text())["rows"] if "name" in row]


def assert_close(rows: list[dict]) -> None:
    """In float32 two systems differ by rounding: about 1e-6 of the largest value.

    Guidance 7.5 multiplies that by up to ten. Loads give exactly the same numbers.
    """
    for row in rows:
        limit = 1e-12 if row["name"].startswith("load") else 1e-4
        if row["dtype"] == "float32" or row["name"].startswith("load"):
            assert row["apart"] <= limit, row
        assert 0 < row["low"] <= row["ratio"] <= row["high"], row


@pytest.mark.slow
def test_quick(tmp_path):
    """The command of bench/README.md: every row is there, and both systems compute the same."""
    rows = measured(tmp_path / "rows.json")
    loads = ["load, from cache", "load and touch, from cache"]
    loads += ["load, from disk", "load and touch, from disk"]
    calls = [f"guided UNet call, 64{batch}" for batch in ("", ", each of 2", ", each of 4")]
    rest = ["encode, 64", "decode, 64"]
    for dtype in ("float32", "bfloat16"):
        names = [row["name"] for row in rows if row["dtype"] == dtype]
        assert names == [*loads, "text, two prompts", *calls, *rest]
    assert_close(rows)
    for row in rows[:4]:
        ours, theirs = row["peak"]
        # The weights are 69 MB. Some of them go where the model loaded before was; those of
        # diffusers may still be on the disk.
        assert ours > 10e6 and theirs > 10e6


@pytest.mark.slow
@pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
def test_others(tmp_path):
    """ONNX Runtime needs three more packages, and is measured where these are."""
    systems = ["engine", "openvino", "plain"]
    if all(map(find_spec, ("onnxruntime", "onnx", "onnxscript"))):
        systems.append("onnxruntime")
    words = ["--others", ",".join(systems), "--batches", "1", "--dtype", "float32"]
    rows = measured(tmp_path / "rows.json", *words)
    for name in ("guided UNet call, 64", "encode, 64", "decode, 64"):
        assert [row["beside"] for row in rows if row["name"] == name] == ["diffusers", *systems]
    assert_close(rows)


@pytest.mark.slow
def test_whole_runs(monkeypatch, capsys, tmp_path):
    """Pictures agree: a value on the edge between two levels of 255 may get the other one. A killed
    command goes on with the first round that is not whole."""
    path, words = tmp_path / "runs.json", ["--quick", "--dtype", "float32"]
    words += ["--systems", "minisd,diffusers"]
    monkeypatch.setattr(sys, "argv", ["whole_runs", str(path), *words])
    whole_runs.main()
    assert "minisd and diffusers: at most 1 of 255 apart" in capsys.readouterr().out
    measured = json.loads(path.read_text())
    (times,) = measured.values()
    assert [len(each) for each in times.values()] == [2, 2]
    whole_runs.main()
    assert "apart" not in capsys.readouterr().out  # nothing is left to measure
    times["diffusers"].pop()
    path.write_text(json.dumps(measured))
    whole_runs.main()
    assert capsys.readouterr().out.count("diffusers 0.") == 1
    assert [each[0] for each in json.loads(path.read_text()).popitem()[1].values()] == [
        each[0] for each in times.values()
    ]


@pytest.mark.slow
def test_trace_cost_runs(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["trace_cost", "--runs", "1"])
    trace_cost.main()
    lines = capsys.readouterr().out.split("\n")
    assert lines[0].startswith("a run of 21 steps: ") and len(lines) == 4


@pytest.mark.slow
def test_step_count_runs(monkeypatch, capsys, tmp_path):
    """With three step counts and two seeds. A second run finds its pictures in the folder."""
    small = {"SEEDS": [1, 2], "MORE_SEEDS": [1], "DENSE": range(10, 13), "PAIRS": [], "MOST": 14}
    for name, value in small.items():
        monkeypatch.setattr(step_count, name, value)
    monkeypatch.setattr(sys, "argv", ["step_count", str(tmp_path)])
    tables = []
    for _ in range(2):
        step_count.main()
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1]
    assert len(list(tmp_path.glob("fire-sketch/img2img-k_lms/*.png"))) == 4 * 2
    lines = [line for line in tables[0].split("\n") if "to   11 steps" in line]
    assert len(lines) == 3 and (tmp_path / "settle.png").exists()
