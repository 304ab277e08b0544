"""Measurements. Run them from the repository's root: `python -m bench.side_by_side`."""
