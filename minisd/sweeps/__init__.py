"""Many runs: all combinations of some settings, drawn in batches."""
