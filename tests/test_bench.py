"""What the bench takes for granted."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))

import side_by_side


def test_work_in_a_guided_call():
    """1.354 TFLOP at 512 in convolutions and projections, and attention's products, counted by
    hand: 4 N M C for each of two prompts, five layers a level and one in the middle."""
    levels = [(5, 4096, 320), (5, 1024, 640), (5, 256, 1280), (1, 64, 1280)]
    products = sum(2 * layers * 4 * n * (n + 77) * c for layers, n, c in levels) / 1e12
    assert abs(side_by_side.guided_tflop(512) - 1.354 - products) < 1e-3


def test_pairs_compare_times_and_results():
    row = side_by_side.row("x", [1.0, 2.0, 4.0], [2.0, 2.0, 2.0], 0.0, first=6.0)
    assert (row["minisd"], row["diffusers"], row["ratio"], row["first"]) == (2.0, 2.0, 1.0, 3.0)
    assert (row["low"], row["high"]) == (0.5, 2.0)
